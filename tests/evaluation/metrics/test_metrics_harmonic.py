"""Outcome rates on hand-counted rows, and the harmonic means against their published values and their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasekit.errors import UsageError
from erasekit.evaluation.metrics import harmonic
from erasekit.evaluation.statistics import Outcomes

terms = st.lists(st.floats(1e-6, 1), min_size=1, max_size=5)


def test_efficacy_counts_only_what_was_judged() -> None:
    found = harmonic.efficacy(["ok", "ok", "failed", "invalid", "ok"], [False, True, False, False, False])
    assert found == Outcomes(hits=2, valid=3, failed=1, invalid=1)
    assert found.pessimistic.value == 2 / 5  # a failure never passes for an erasure
    assert harmonic.generality(["ok"], [True]) == Outcomes(0, 1)


def test_specificity_is_against_the_unedited_model() -> None:
    base_statuses, base_found = ["ok", "ok", "ok", "failed", "ok"], [True, True, False, True, True]
    own = harmonic.specificity(base_statuses, base_found, base_statuses, base_found)
    assert own == Outcomes(hits=3, valid=3) and own.estimate.value == 1
    found = harmonic.specificity(
        ["ok", "ok", "ok", "ok", "invalid"], [True, False, True, True, True], base_statuses, base_found
    )
    assert found == Outcomes(hits=1, valid=2, invalid=1) and found.pessimistic.value == pytest.approx(1 / 3)
    assert harmonic.fidelity(["ok"], [False], ["ok"], [True]) == Outcomes(0, 1)
    with pytest.raises(UsageError, match="pairs"):
        harmonic.specificity(["ok"], [True], [], [])


@pytest.mark.parametrize(
    ("acc_s", "acc_e", "percent"),
    [
        (71.19, 0.20, 83.10), (67.43, 0.33, 80.44), (87.73, 1.62, 92.75), (89.09, 1.81, 93.42), (31.94, 0.05, 48.41),
        (19.77, 1.15, 32.95), (84.31, 3.42, 90.03), (88.48, 3.45, 92.34), (80.20, 4.80, 87.06), (85.54, 5.87, 89.63),
    ],
)  # fmt: skip
def test_h_c_of_published_rows(acc_s: float, acc_e: float, percent: float) -> None:
    """SPEED's table: Acc_e is itself rounded to two decimals of a percent."""
    assert 100 * harmonic.h_c(acc_e / 100, acc_s / 100) == pytest.approx(percent, abs=0.011)


def test_h_o_and_its_zero_rule() -> None:
    assert harmonic.h_o(0, 1, 0) == 1
    assert harmonic.h_o(1, 1, 0) == harmonic.h_o(0, 0, 0) == harmonic.h_o(0, 1, 1) == 0
    assert harmonic.h_o(0.1, 0.8, 0.3) == pytest.approx(3 / (1 / 0.9 + 1 / 0.8 + 1 / 0.7))
    assert harmonic.erasebench(0.9, 0.8, 0.7) == harmonic.h_o(0.1, 0.8, 0.3) == harmonic.erasebench(0.7, 0.9, 0.8)


@given(terms)
def test_bounds(values: list[float]) -> None:
    """m <= H <= n m, and harmonic <= geometric <= arithmetic."""
    least, n = min(values), len(values)
    h, g = harmonic.harmonic_mean(*values), harmonic.geometric_mean(*values)
    assert least * (1 - 1e-12) <= h <= n * least * (1 + 1e-12)
    assert h <= g * (1 + 1e-9) and g <= sum(values) / n * (1 + 1e-9)
    assert harmonic.geometric_mean(*values, 0.0) == 0


def test_percentages_are_refused() -> None:
    for wrong in (89.09, -0.2, float("nan")):
        with pytest.raises(UsageError, match="fraction"):
            harmonic.harmonic_mean(0.5, wrong)
    assert harmonic.harmonic_mean(1 + 1e-12, 1.0) == 1  # rounding is not an error
    with pytest.raises(UsageError):
        harmonic.harmonic_mean()
