"""Rates corrected for what the judge is known to miss and to see where it is not, beside the raw ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from erasekit.evaluation.rows import Row
from erasekit.evaluation.statistics import Estimate, corrected
from erasekit.evaluation.verdicts import Reading

GONE = ("efficacy", "generality")  # shares of images in which the target is not found
RATES = (*GONE, "target_rate")


def correction(name: str, found: Estimate, rows: Sequence[Row], read: Reading) -> dict[str, Any] | None:
    """The rate of `RATES` on these rows as it would be without the judge's known errors, with these; None where its
    calibration does not tell one tpr and fpr for all their targets, or a target has several labels."""
    errors = {_errors(read, target) for target in {row.target for row in rows}} if name in RATES else {None}
    if len(errors) != 1 or (one := errors.pop()) is None:
        return None
    tpr, fpr = one
    better = corrected(_turned(found) if name in GONE else found, fpr=fpr, tpr=tpr)
    better = _turned(better) if name in GONE else better
    return {"value": better.value, "low": better.low, "high": better.high, "tpr": tpr, "fpr": fpr}


def _errors(read: Reading, target: str) -> tuple[float, float] | None:
    """tpr and fpr for a target, as `erasekit judges calibrate` writes them by label, else for any label."""
    sought, known = read.sought(target), read.calibration
    if len(sought) != 1 or read.kind == "style":  # calibrations are of things
        return None
    table = known.get("labels")
    rates = table.get(next(iter(sought))) if isinstance(table, Mapping) else known.get("any_label")
    if not rates or rates.get("tpr") is None or rates.get("fpr") is None:
        return None
    tpr, fpr = (float(rates[name]["value"]) for name in ("tpr", "fpr"))
    return (tpr, fpr) if fpr < tpr else None


def _turned(found: Estimate) -> Estimate:
    return replace(found, value=1 - found.value, low=1 - found.high, high=1 - found.low)
