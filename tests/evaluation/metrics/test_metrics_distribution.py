"""Fréchet distance, KID and CMMD: closed forms, naive loops, unbiasedness, and names that never mix spaces."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from erasekit.errors import UsageError
from erasekit.evaluation.metrics import distribution as d


def features(n: int, width: int = 4, *, seed: int = 0, shift: float = 0.0, space: str = "test-v1") -> d.Features:
    return d.Features(space, np.random.default_rng(seed).normal(size=(n, width)) + shift)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_frechet_of_equal_covariances_is_the_squared_distance_of_means() -> None:
    a = features(50)
    moved = d.Features("test-v1", a.values + np.array([3.0, 0, 4.0, 0]))
    assert d.frechet(a, moved).value == pytest.approx(25, abs=1e-9)
    assert d.frechet(a, a).value == pytest.approx(0, abs=1e-12)


def test_frechet_against_the_square_root_of_the_product() -> None:
    a, b = features(60), d.Features("test-v1", features(40, seed=1).values @ np.diag([1, 2, 0.5, 3]) + 1)
    s1, s2 = np.cov(a.values.T), np.cov(b.values.T)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(s1 @ s2).real, 0))
    naive = ((a.values.mean(0) - b.values.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * roots.sum()
    assert d.frechet(a, b).value == pytest.approx(naive) == d.frechet(b, a).value


def test_frechet_with_fewer_images_than_features() -> None:
    a = features(5, 20)
    assert d.frechet(a, d.Features("test-v1", a.values + 0.1)).value == pytest.approx(0.2, abs=1e-9)


def test_frechet_is_biased_by_few_images_as_known() -> None:
    """Two samples of one 64-d Gaussian: 22.0 for 100 images, 11.1 for 200 (own calculation in the notes)."""
    for n, expected in ((100, 22.0), (200, 11.1)):
        found = d.frechet(features(n, 64, seed=1), features(n, 64, seed=2))
        assert found.value == pytest.approx(expected, rel=0.08) and "biased" in found.note


def naive_kid(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / len(x) + 1) ** 3

    own = [np.mean([kernel(x, y) for x, y in itertools.permutations(s, 2)]) for s in (a, b)]
    return own[0] + own[1] - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_kid_against_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d, "CHUNK", 3)  # several chunks and a rest
    a, b = features(8), features(11, seed=1, shift=0.5)
    assert d.kid(a, b, generator=rng(), subsets=2).value == pytest.approx(naive_kid(a.values, b.values))


def test_kid_of_halves_averages_to_zero_and_goes_below_it() -> None:
    whole, draws = features(60).values, rng()
    found = []
    for _ in range(200):
        order = draws.permutation(60)
        halves = [d.Features("test-v1", whole[order[i::2]]) for i in (0, 1)]
        found.append(d.kid(*halves, generator=draws, subsets=2).value)
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(200) and min(found) < 0 < max(found)


def test_kid_grows_with_the_shift_and_states_its_sd() -> None:
    values = [d.kid(features(40), features(40, seed=1, shift=s), generator=rng(), subsets=20) for s in (0, 0.5, 1, 2)]
    assert all(a.value < b.value for a, b in itertools.pairwise(values))
    assert all(v.sd > 0 and v.note == "sd over 20 subsets of 20" for v in values)
    with pytest.raises(UsageError, match="subsets"):
        d.kid(features(4), features(4), generator=rng(), size=5)


def test_cmmd_against_loops() -> None:
    a, b = features(6).values, features(9, seed=1, shift=1).values
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))

    def mean(p: np.ndarray, q: np.ndarray, sigma: float) -> float:
        return float(np.mean([math.exp(-((x - y) @ (x - y)) / (2 * sigma**2)) for x in p for y in q]))

    for sigma in (10.0, 0.5):
        naive = 1000 * (mean(u, u, sigma) + mean(v, v, sigma) - 2 * mean(u, v, sigma))
        found = d.cmmd(d.Features("s", a), d.Features("s", b), sigma=sigma)
        assert found.value == pytest.approx(naive, rel=1e-8) and found.value > 0
    assert d.cmmd(features(6), features(6)).value == 0


def test_names_carry_the_space() -> None:
    assert (d.name("Fréchet", d.INCEPTION), d.name("KID", d.INCEPTION)) == ("FID", "KID")
    assert d.name("CMMD", d.CLIP_L_336) == "CMMD"
    a, b = features(6, space="emoji-clip-v1"), features(6, seed=1, space="emoji-clip-v1")
    assert d.frechet(a, b).name == "Fréchet(emoji-clip-v1)"
    assert d.kid(a, b, generator=rng(), subsets=2).name == "KID(emoji-clip-v1)"
    assert d.cmmd(a, b).name == "MMD(emoji-clip-v1)"


def test_spaces_are_never_mixed() -> None:
    a, b = features(6, space="emoji-clip-v1"), features(6, space=d.INCEPTION)
    for distance in (d.frechet, d.cmmd, lambda x, y: d.kid(x, y, generator=rng())):
        with pytest.raises(UsageError, match="never mixed"):
            distance(a, b)
    with pytest.raises(UsageError, match="widths"):
        d.frechet(features(6), features(6, 5))
    for wrong in (np.ones((1, 3)), np.full((3, 3), np.nan), np.ones(3)):
        with pytest.raises(UsageError, match="finite"):
            d.Features("s", wrong)


def test_the_keys_of_results_are_bare_in_the_fields_own_space_only() -> None:
    assert [d.key("Fréchet", s) for s in (d.INCEPTION, "emoji-clip-v1")] == ["fid", "frechet(emoji-clip-v1)"]
    assert [d.key("KID", s) for s in (d.INCEPTION, "emoji-clip-v1")] == ["kid", "kid(emoji-clip-v1)"]
    assert [d.key("CMMD", s) for s in (d.CLIP_L_336, d.INCEPTION)] == ["cmmd", "mmd(inception-2015)"]


def test_too_few_images_are_refused_with_the_number_that_is_needed() -> None:
    assert d.refusal("KID", 15, 4) == d.refusal("Fréchet", 15, 4) == "15 pairs of images, and 16 are needed"
    assert d.refusal("Fréchet", 128, 128) == "128 pairs of images, and 129 are needed"
    assert not d.refusal("Fréchet", 129, 128) and not d.refusal("CMMD", 16, 2048)
