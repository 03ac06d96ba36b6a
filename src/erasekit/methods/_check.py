"""What a closed-form fit measures of itself, without images: residuals, update norms, drift of what is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone, Site
from erasekit.edit import LowRank
from erasekit.errors import DivergenceError, InfeasibleError

T = TypeVar("T")
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest relative residual of an exact edit after the cast; half precision rounds above any useful bound, so there
only the residual before the cast is bounded (by float32's)."""
FULL = 0.95
"""A solve that uses this share of the input directions leaves too few for anything else."""
DRIFT_COLUMNS = 512
"""Drift is measured on at most so many retained columns, and on as many that gave way."""


@dataclass(frozen=True)
class Kept:
    """Columns that should not change: what the edited model reads (d, k), and what the original did."""

    now: Tensor
    before: Tensor


def probes(columns: Sequence[T]) -> Sequence[T]:
    """At most `DRIFT_COLUMNS` of them, in their order, drawn always alike: a prompt has a fixed number of columns, and every
    n-th of all might be padding alone."""
    if len(columns) <= DRIFT_COLUMNS:
        return columns
    drawn = torch.randperm(len(columns), generator=torch.Generator().manual_seed(0))[:DRIFT_COLUMNS]
    return [columns[i] for i in sorted(drawn.tolist())]


def measure(
    site: Site, weight: Tensor, op: LowRank, *, inputs: Tensor, wanted: Tensor, missed: float, kept: Kept | None
) -> dict[str, Any]:
    """The site's record: residuals relative to ||W_o Y||, before (`missed`, absolute) and after the cast to the
    weight's dtype, ||dW|| / ||W_o||, and the drift ||W R_now - W_o R|| / ||W_o R|| of kept columns (None without any)."""
    old = weight.detach().to("cpu", op.up.dtype)
    change = (old + op.delta(old)).to(weight.dtype).to(old.dtype) - old
    aim = old @ wanted
    rest = change @ inputs - old @ (wanted - inputs)
    record = {
        "site": site.key,
        "group": site.group,
        "depth": site.depth,
        "residual": missed / float(aim.norm()),
        "residual_cast": float(rest.norm() / aim.norm()),
        "relative_update": float(change.norm() / old.norm()),
        "rank": op.up.shape[1],
        "drift": _drift(old, change, kept),
    }
    return record


def summary(records: Sequence[dict[str, Any]], warnings: Sequence[str]) -> dict[str, Any]:
    """`Edit.self_check` from the records of every site (largest values over the sites). Drift is None where nothing
    was retained: there is nothing to measure it on."""
    largest = {key: max((r[key] for r in records), default=0.0) for key in ("residual", "residual_cast")}
    return {
        "modules": sum(record["rank"] > 0 for record in records),
        "residual": largest["residual_cast"],
        "residual_before_cast": largest["residual"],
        "relative_update": max((r["relative_update"] for r in records), default=0.0),
        "retained_drift": largest_drift(records),
        "sites": list(records),
        "warnings": list(warnings),
    }


def saturated(records: Sequence[dict[str, Any]]) -> list[str]:
    """A warning where a damped solve has about no input direction left over: from there on all that is asked is a
    compromise. (An exact one has its residual's bound, and gives way aloud.)"""
    full = [r for r in records if r.get("width") and r.get("used", 0) >= FULL * r["width"]]
    if not full:
        return []
    return [
        f"at {len(full)} of {len(records)} sites what is asked fills {full[0]['used']} of {full[0]['width']} directions of "
        "the text features: other prompts move too; erase fewer at once, or align fewer rows of each"
    ]


def largest_drift(records: Sequence[dict[str, Any]]) -> float | None:
    """The largest over the sites; None where it was measured at none."""
    return max((record["drift"] for record in records if record["drift"] is not None), default=None)


def require_finite(check: dict[str, Any]) -> None:
    """Raises `DivergenceError` where a measured number is not finite, and `InfeasibleError` where it was until the change was
    cast to the weights' dtype: what nearly contradicts itself asks for a change that float16 cannot hold."""
    for record in check["sites"]:
        numbers = (record["residual"], record["residual_cast"], record["relative_update"], record["drift"] or 0.0)
        if not all(map(math.isfinite, numbers)):
            if math.isfinite(record["residual"]):
                raise InfeasibleError(
                    f"{record['site']} would need a change too large for the weights' dtype: the prompts are too many or too "
                    "alike to be met exactly; erase fewer targets at once, or give a ridge where the method has one"
                )
            raise DivergenceError(
                f"{record['site']} gives numbers that are not finite: check the model's weights; "
                "where these are sound, erase fewer targets at once"
            )


def require_exact(check: dict[str, Any], dtypes: Mapping[str, torch.dtype], *, remedy: str) -> None:
    """Raises `InfeasibleError` with the worst site where an exact edit's residual is above the bound of the site's dtype.

    `dtypes`: that of each edited site by its key; text encoder and denoiser may differ.
    """

    def bounded(record: dict[str, Any]) -> tuple[float, float]:
        dtype = dtypes.get(record["site"], torch.float32)
        return record["residual_cast" if dtype in BOUNDS else "residual"], BOUNDS.get(dtype, BOUNDS[torch.float32])

    worst = max(check["sites"], key=lambda record: bounded(record)[0] / bounded(record)[1])
    residual, bound = bounded(worst)
    if residual > bound:
        raise InfeasibleError(f"{worst['site']} keeps a residual of {residual:.1e} (bound {bound:.0e}): {remedy}")


def _drift(old: Tensor, change: Tensor, kept: Kept | None) -> float | None:
    if kept is None or not kept.now.shape[1]:
        return None
    moved = old @ (kept.now - kept.before) + change @ kept.now
    return float(moved.norm() / (old @ kept.before).norm())


def fingerprints(backbone: Backbone, sites: Sequence[Site]) -> dict[str, dict[str, str]]:
    """What an edit's base records of these sites."""
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing lets other threads run
        return dict(zip((site.key for site in sites), pool.map(backbone.fingerprint, sites), strict=True))
