"""The cluster bootstrap against a loop that draws prompts one by one, and against what clusters must do."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest

from erasekit.errors import UsageError
from erasekit.evaluation import bootstrap

PROMPTS = ["b", "a", "c", "a", "b", "a", "d", "e", "e"]
VALUES = [0.3, 1.0, 0.0, 0.5, 0.1, 0.9, 0.7, 0.2, 0.25]


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def looped(values, prompts, draws: int, seed: int = 3) -> list[float]:
    """Draws as lists of prompts, each brought with all its values, averaged in plain Python."""
    names = sorted(set(prompts))
    times = rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=draws)
    means = []
    for row in times:
        chosen = [name for name, count in zip(names, row, strict=True) for _ in range(count)]
        pooled = [v for name in chosen for v, p in zip(values, prompts, strict=True) if p == name]
        means.append(sum(pooled) / len(pooled))
    return means


def test_the_interval_of_a_loop_over_draws() -> None:
    found = bootstrap.mean(VALUES, PROMPTS, generator=rng(), draws=300)
    low, high = np.percentile(looped(VALUES, PROMPTS, 300), [2.5, 97.5])
    assert found.value == pytest.approx(sum(VALUES) / len(VALUES)) and found.n == 9
    assert (found.low, found.high) == pytest.approx((low, high)) and found.method == "bootstrap95 over prompts"


def test_one_image_each_is_the_plain_bootstrap() -> None:
    """Against indices drawn one by one by another generator: the same interval but for the draws' own noise."""
    values = [random.Random(i).random() for i in range(40)]
    found = bootstrap.mean(values, [f"p{i:02}" for i in range(40)], generator=rng(), draws=4000)
    means = np.array(values)[np.random.default_rng(8).integers(0, 40, (4000, 40))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)


def test_copies_of_a_prompt_s_image_add_no_certainty() -> None:
    values, prompts = [0, 1, 1, 0, 1, 1], list("abcdef")
    once = bootstrap.mean(values, prompts, generator=rng())
    often = bootstrap.mean(values * 5, prompts * 5, generator=rng())
    assert (often.low, often.high) == (once.low, once.high) and (once.n, often.n) == (6, 30)
    apart = bootstrap.mean(values * 5, [f"{p}{i}" for i in range(5) for p in prompts], generator=rng())
    assert apart.high - apart.low < 0.7 * (often.high - often.low)


def test_order_does_not_matter_to_the_last_bit() -> None:
    order = random.Random(1).sample(range(9), 9)
    shuffled = bootstrap.mean([VALUES[i] for i in order], [PROMPTS[i] for i in order], generator=rng())
    assert shuffled == bootstrap.mean(VALUES, PROMPTS, generator=rng())


def test_paired_difference() -> None:
    second = [v + 0.2 + 0.01 * i for i, v in enumerate(VALUES)]
    found = bootstrap.difference(VALUES, second, PROMPTS, generator=rng())
    deltas = bootstrap.mean([b - a for a, b in zip(VALUES, second)], PROMPTS, generator=rng(), draws=10_000)
    assert found.difference == deltas and found.difference.low > 0.19
    assert found.p == pytest.approx(2 / 10_001)  # no draw of 10,000 reaches zero
    back = bootstrap.difference(second, VALUES, PROMPTS, generator=rng())
    assert back.difference.value == -found.difference.value and back.p == found.p


def test_no_difference_has_p_one() -> None:
    found = bootstrap.difference(VALUES, VALUES, PROMPTS, generator=rng())
    assert (found.difference.low, found.difference.value, found.difference.high, found.p) == (0, 0, 0, 1)


def test_p_is_the_share_of_draws_beyond_zero() -> None:
    first, second = [0, 0, 1, 0, 1], [1, 0, 0, 1, 1]
    found = bootstrap.difference(first, second, list("abcde"), generator=rng(), draws=400)
    means = looped([b - a for a, b in zip(first, second)], list("abcde"), 400)
    tail = min(sum(m <= 0 for m in means), sum(m >= 0 for m in means))
    assert found.p == pytest.approx(2 * (tail + 1) / 401) and 0.05 < found.p < 1


@pytest.mark.parametrize(("prompts", "draws", "at_once"), [(60, 500, 7), (60, 500, 1), (12_000, 40, 3)])
def test_slices_of_draws_are_the_same_numbers_to_the_last_bit(prompts, draws, at_once, monkeypatch) -> None:
    sums, sizes = rng(1).normal(size=prompts), rng(2).integers(1, 9, prompts)
    whole = bootstrap.resampled(sums, sizes, rng(), draws)
    times = rng().multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)
    assert whole == pytest.approx(
        np.einsum("dk,k->d", times.astype(np.float64), sums) / (times @ sizes), rel=1e-9, abs=1e-12
    )
    monkeypatch.setattr(bootstrap, "CELLS", at_once * prompts)
    assert np.array_equal(bootstrap.resampled(sums, sizes, rng(), draws), whole)


def test_many_prompts_need_little_memory(monkeypatch) -> None:
    monkeypatch.setattr(bootstrap, "CELLS", 1 << 16)
    tracemalloc.start()
    bootstrap.resampled(np.ones(2000), np.ones(2000), rng(), 400)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 400 * 2000 * 8 / 3, "all draws at once are three times that and more"


def test_one_prompt_states_no_interval() -> None:
    found = bootstrap.mean([0.2, 0.4], ["a", "a"], generator=rng())
    assert (found.low, found.high) == (found.value, found.value) and found.method == bootstrap.ONE_PROMPT
    assert bootstrap.difference([0, 0], [1, 1], ["a", "a"], generator=rng()).p is None


@pytest.mark.parametrize(
    ("values", "prompts", "message"),
    [([], [], "no value"), ([1.0], ["a", "b"], "1 values for 2"), ([float("nan")], ["a"], "not a finite")],
)
def test_bad_values_are_refused(values, prompts, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bootstrap.mean(values, prompts, generator=rng())
