"""Wilson intervals: known values and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasekit.evaluation.statistics import Share, wilson

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
