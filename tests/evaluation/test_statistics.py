"""Wilson intervals, outcomes, exact tests on pairs, corrections: known values, enumeration, properties."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasekit.errors import UsageError
from erasekit.evaluation.statistics import (
    Estimate,
    Outcomes,
    Share,
    corrected,
    corrected_rate,
    discordant,
    holm,
    mcnemar_exact,
    wilson,
)

counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_known_values() -> None:
    """p = 0: (0, z^2 / (n + z^2)); 81 of 263 as in Newcombe 1998, table I: 0.2553 to 0.3662."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


@given(counts)
def test_holds_the_share_and_mirrors(pair: tuple[int, int]) -> None:
    hits, n = pair
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n + 1e-12 and hits / n - 1e-12 <= high <= 1 and low < high
    mirrored = wilson(n - hits, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@given(counts)
def test_its_ends_solve_the_score_equation(pair: tuple[int, int]) -> None:
    """(p_hat - p)^2 = z^2 p (1 - p) / n at both ends."""
    hits, n = pair
    for p in wilson(hits, n):
        assert (hits / n - p) ** 2 == pytest.approx(3.841458820694124 * p * (1 - p) / n, abs=1e-9)


def test_bad_counts_raise() -> None:
    for hits, n in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match=r"0\.\.3"):
            wilson(hits, n)


def test_shares_add() -> None:
    assert Share(1, 4) + Share(2, 4) == Share(3, 8) and Share(3, 8).value == 0.375 and Share(0, 0).value == 0


PERCENT = {
    (0, 50): (0, 7.1), (1, 50): (0.4, 10.5), (3, 50): (2.1, 16.2), (7, 50): (7.0, 26.2), (16, 50): (20.8, 45.8),
    (30, 50): (46.2, 72.4), (0, 142): (0, 2.6), (3, 142): (0.7, 6.0), (30, 142): (15.2, 28.6),
    (108, 142): (68.4, 82.3), (0, 200): (0, 1.9), (10, 200): (2.7, 9.0), (5, 500): (0.4, 2.3), (50, 500): (7.7, 12.9),
}  # fmt: skip


@pytest.mark.parametrize("pair", PERCENT)
def test_wilson_in_percent(pair: tuple[int, int]) -> None:
    assert [round(100 * end, 1) for end in wilson(*pair)] == pytest.approx(PERCENT[pair])


def test_estimate_of_a_share() -> None:
    assert Share(0, 0).estimate is None
    assert Share(3, 50).estimate == Estimate(0.06, *wilson(3, 50), 50, "wilson95")


def test_outcomes_keep_what_was_not_judged_apart() -> None:
    statuses = ["ok", "failed", "ok", "invalid", "ok", "failed"]
    found = Outcomes.count(statuses, [True, True, False, True, True, False])
    assert found == Outcomes(hits=2, valid=3, failed=2, invalid=1) and found.drawn == 6
    assert found.estimate == Share(2, 3).estimate and found.pessimistic == Share(2, 6).estimate
    assert Outcomes.count(["failed"], [True]).estimate is None
    assert found + found == Outcomes(4, 6, 4, 2)
    with pytest.raises(UsageError, match="unknown status 'erased'"):
        Outcomes.count(["erased"], [True])
    with pytest.raises(UsageError, match="2 statuses for 1"):
        Outcomes.count(["ok", "ok"], [True])


def test_mcnemar_oracles() -> None:
    assert mcnemar_exact(0, 6) == mcnemar_exact(6, 0) == 0.03125
    assert mcnemar_exact(5, 5) == mcnemar_exact(0, 0) == 1
    with pytest.raises(UsageError):
        mcnemar_exact(-1, 2)


@pytest.mark.parametrize(("b", "c"), [(1, 4), (3, 7), (2, 2), (0, 1), (9, 1)])
def test_mcnemar_by_enumeration(b: int, c: int) -> None:
    """All 2^n ways in which the discordant pairs could have fallen, as extreme or more on either side."""
    ways = [sum(way) for way in itertools.product((0, 1), repeat=b + c)]
    extreme = sum(abs(way - (b + c) / 2) >= abs(b - (b + c) / 2) for way in ways)
    assert mcnemar_exact(b, c) == pytest.approx(extreme / len(ways))


def test_discordant_pairs() -> None:
    assert discordant([True, True, False, False, True], [True, False, True, False, False]) == (2, 1)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_bonferroni_test(p_values: list[float]) -> None:
    """Each p-value is adjusted to the largest Bonferroni p of any set of hypotheses that holds it."""
    n = range(len(p_values))
    sets = [s for k in range(1, len(p_values) + 1) for s in itertools.combinations(n, k)]
    naive = [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in n]
    assert holm(p_values) == pytest.approx(naive)


@given(st.floats(0, 1), st.floats(0, 0.4), st.floats(0.6, 1))
def test_corrected_rate_undoes_the_judge(true: float, fpr: float, tpr: float) -> None:
    seen = true * tpr + (1 - true) * fpr
    assert corrected_rate(seen, fpr=fpr, tpr=tpr) == pytest.approx(true, abs=1e-9)


def test_corrected_rate_is_clamped_and_refuses_a_blind_judge() -> None:
    assert corrected_rate(0.0, fpr=0.1, tpr=0.9) == 0 and corrected_rate(1.0, fpr=0.1, tpr=0.9) == 1
    with pytest.raises(UsageError, match="calibrate"):
        corrected_rate(0.5, fpr=0.5, tpr=0.5)
    found = corrected(Estimate(0.5, 0.3, 0.7, 20, "wilson95"), fpr=0.1, tpr=0.9)
    assert (found.low, found.value, found.high) == pytest.approx((0.25, 0.5, 0.75)) and "fixed" in found.method


def test_nothing_and_everything_end_exactly_at_the_edge() -> None:
    for n in range(1, 300):
        assert wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0
