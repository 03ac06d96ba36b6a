"""What every closed-form edit of the cross-attention alone shares: the form of its ops, its measures, the finished edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone, Site
from erasekit.concept import EraseRequest
from erasekit.edit import Base, Dense, Edit, LowRank, library_versions
from erasekit.errors import InfeasibleError
from erasekit.methods._check import fingerprints, require_finite, summary

ROWS = 256
"""So many rows of a weight are measured at a time: their float64 copies stay in the processor's cache."""


def silent(done: int, total: int, what: str) -> None:
    """The progress report that nobody reads."""


def narrow(weight: Tensor, rank: int) -> bool:
    """Whether two factors of this rank hold fewer numbers than the matrix."""
    out, width = weight.shape
    return rank * (out + width) < out * width


def make_op(site: Site, weight: Tensor, up: Tensor, right: Tensor) -> LowRank | Dense:
    """The change `up @ right` ((o, r) times (r, d), float64) of this site's weight, as factors where they are smaller."""
    if narrow(weight, right.shape[0]):
        return LowRank(site.component, site.module, up.float(), right.float())
    return Dense(site.component, site.module, (up @ right).float())


def measure(
    site: Site, weight: Tensor, op: LowRank | Dense, x: Tensor, asked: Tensor, probes: Tensor
) -> dict[str, Any]:
    """Residuals, update and drift of `op` at one site, where outputs at the columns `x` (d, m) should move by `asked`
    (o, m); `probes` (d, k) are columns that should stay. All float64. The caller adds `condition`."""
    delta, sums = op.delta(weight), torch.zeros(8, dtype=torch.float64)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        sums += _squares(weight[rows], delta[rows], x, asked[rows], probes)
    asked_, residual, cast, wanted, update, original, moved, kept = sums.sqrt().clamp_min(1e-300).tolist()
    return {
        "site": site.key,
        "group": site.group,
        "depth": site.depth,
        "asked": asked_ / wanted,
        "residual": residual / wanted,
        "residual_cast": cast / wanted,
        "relative_update": update / original,
        "drift": moved / kept if probes.shape[1] else 0.0,
        "rank": op.rank,
    }


def _squares(weight: Tensor, delta: Tensor, x: Tensor, asked: Tensor, probes: Tensor) -> Tensor:
    """Squared norms over some rows: asked, its residual before and after the cast, wanted, update, weight, drift on the
    probes, output at the probes."""
    original, change = weight.double(), delta.double()
    cast = (weight.float() + delta).to(weight.dtype).double() - original
    wanted = original @ x + asked
    found = (asked, change @ x - asked, cast @ x - asked, wanted, change, original, change @ probes, original @ probes)
    return torch.stack([part.square().sum() for part in found])


def finish(
    backbone: Backbone,
    request: EraseRequest,
    *,
    method: str,
    parameters: dict[str, object],
    ops: Sequence[LowRank | Dense],
    records: Sequence[dict[str, Any]],
    warnings: Sequence[str] = (),
) -> Edit:
    """The edit with its self-check; raises for numbers that are not finite and for an edit that changes nothing."""
    held = sum(record["residual"] > 0.5 * record["asked"] for record in records)
    conflict = (
        f"{held} of {len(records)} sites keep over half of the gap on the columns that the method asks to move: what "
        "is kept (the retained, the prior, the distance to the old weights) outweighs the targets"
    )
    check = summary(records, [*warnings, conflict] if held else warnings)
    require_finite(check)
    if check["relative_update"] == 0:
        raise InfeasibleError("the model reads target and anchor as the same: choose another anchor")
    return make_edit(backbone, request, method=method, parameters=parameters, ops=ops, check=check)


def make_edit(
    backbone: Backbone,
    request: EraseRequest,
    *,
    method: str,
    parameters: dict[str, object],
    ops: Sequence[LowRank | Dense],
    check: dict[str, Any],
) -> Edit:
    """The ops as an edit of this base."""
    edited = {(op.component, op.module) for op in ops}
    sites = [site for site in backbone.sites("cross.kv") if (site.component, site.module) in edited]
    prints = fingerprints(backbone, sites)
    return Edit(
        ops=tuple(ops), base=Base(backbone.model_id, backbone.family, prints), method=method, parameters=parameters,
        targets=request.targets, anchors=request.anchors, retain=request.retain, seed=request.seed,
        versions=library_versions(), self_check=check,
    )  # fmt: skip
