"""Rates corrected for a judge's known errors: beside the raw ones, and only where the errors are known for the target."""

from __future__ import annotations

import handmade
import pytest
from handmade import HEAD, RULE, one

from erasekit.evaluation.aggregate import aggregate
from erasekit.evaluation.statistics import corrected_rate


def found(calibration: dict, labels: dict | None = None) -> dict:
    first, second = HEAD["suite"]["judges"]
    suite = HEAD["suite"] | {"judges": [first | {"calibration": calibration}, second]}
    return aggregate(handmade.data(), HEAD | {"suite": suite, "labels": labels or HEAD["labels"]}, {})


BY_LABEL = {"labels": {"cat": {"tpr": {"value": 0.9}, "fpr": {"value": 0.1}}}}
ANY = {"labels": 132, "any_label": {"tpr": {"value": 0.9}, "fpr": {"value": 0.1}}}


@pytest.mark.parametrize("calibration", [BY_LABEL, ANY])
def test_the_raw_rate_has_the_corrected_one_beside_it(calibration: dict) -> None:
    lines = found(calibration)
    raw, better = (entry := one(lines, "target_rate", "edit:e")), entry["corrected"]
    assert better["value"] == corrected_rate(raw["value"], fpr=0.1, tpr=0.9) and (better["tpr"], better["fpr"]) == (
        0.9,
        0.1,
    )
    gone = one(lines, "efficacy", "edit:e", "plain")
    assert gone["corrected"]["value"] == pytest.approx(1 - corrected_rate(1 - gone["value"], fpr=0.1, tpr=0.9))
    assert gone["corrected"]["low"] <= gone["corrected"]["value"] <= gone["corrected"]["high"]
    assert "corrected" not in one(lines, "specificity", "edit:e") and gone["judge"] == RULE


@pytest.mark.parametrize(("calibration", "labels"), [
    ({}, None), ({"labels": {"dog": BY_LABEL["labels"]["cat"]}}, None), (BY_LABEL, {"cat": ["cat", "kitten"]}),
    ({"labels": {"cat": {"tpr": None, "fpr": {"value": 0.1}}}}, None),
    ({"any_label": {"tpr": {"value": 0.1}, "fpr": {"value": 0.1}}}, None),
])  # fmt: skip
def test_what_is_not_known_is_not_corrected(calibration: dict, labels: dict | None) -> None:
    assert not [m for m in found(calibration, labels)["metrics"] if "corrected" in m]
