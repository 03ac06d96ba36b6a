"""What every closed-form edit of the cross-attention alone shares: the form of its ops, its measures, the finished edit,
and for those made of prompt pairs and a prior the fit from end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone, Site
from erasekit.concept import EraseRequest
from erasekit.edit import Base, Dense, Edit, LowRank, library_versions
from erasekit.errors import InfeasibleError
from erasekit.methods import Method, Progress, check_family
from erasekit.methods._check import fingerprints, require_finite, saturated, summary
from erasekit.methods._retained import held_back
from erasekit.methods._templates import listed, prompt_pairs, unread
from erasekit.solvers import Inverse, RightFactor

if TYPE_CHECKING:
    from erasekit.methods._prior import Kept

ROWS = 320
"""So many rows of a weight are measured at a time: their float64 copies stay in the processor's cache."""


def silent(done: int, total: int, what: str) -> None:
    """The progress report that nobody reads."""


class Solved(Protocol):
    """A solved problem, whatever its form, and the prior that it was solved with."""

    @property
    def kept(self) -> Kept:
        """What had to stay."""
        ...


Found = TypeVar("Found", bound=Solved)
Sites = tuple[list[LowRank | Dense], list[dict[str, Any]]]
"""One op and one self-check record for each edited site."""


def fit(
    method: Method,
    backbone: Backbone,
    request: EraseRequest,
    config: Any,
    *,
    solve: Callable[..., Found],
    edit_sites: Callable[..., Sites],
    parameters: dict[str, object],
    idle: str,
    asked: float,
    progress: Progress | None,
) -> Edit:
    """The edit of a method that solves one problem for all matrices; the prior's record and what names its sentences join its
    self-check.

    `solve(backbone, pairs, config, retain=, cache=, progress=)` of every target in all of the config's `sentences`,
    then `edit_sites(backbone, solved, progress=)`. `idle` names the parameter that is 0 where nothing protects what is
    retained; else it is empty. `asked` is the weight with which the end of one target's text is asked to move, against
    which the self-check holds what is retained. Raises as `check_family` and `finish` do.
    """
    check_family(type(method), backbone)
    progress = progress or silent
    pairs = prompt_pairs(request, config.sentences)
    found = solve(backbone, pairs, config, retain=request.retain, cache=request.retain_cache, progress=progress)
    ops, records = edit_sites(backbone, found, progress=progress)
    warnings = unread(backbone, request)
    kept = found.kept
    warnings += held_back(backbone, request, kept.matrix, ridge=kept.ridge, scale=asked, progress=progress,
                          base=(kept.captions, kept.captions_ridge), ends=True)  # fmt: skip
    if request.retain and idle:
        warnings.append(f"{idle} is 0: what is retained is measured, not protected")
    edit = finish(
        backbone, request, method=method.name, parameters=parameters, ops=ops, records=records, warnings=warnings
    )
    return replace(edit, self_check=edit.self_check | {"prior": kept.record, "sentences": listed(config.sentences)})


def solved(found: Inverse | RightFactor, weight: Tensor) -> dict[str, Any]:
    """Of the solve, for a site's record: how many of the `width` input directions it has `used`, and its condition."""
    return {"condition": found.condition, "used": found.rank, "width": weight.shape[1]}


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
    site: Site, weight: Tensor, op: LowRank | Dense, x: Tensor, asked: Tensor | None, probes: Tensor,
    *, gap: Tensor | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Residuals, update and drift of `op` at one site, where outputs at the columns `x` (d, m) should move by `asked`
    (o, m), or by what `weight` makes of `gap` (d, m); `probes` (d, k) are columns that should stay. All float64. The
    caller adds `condition`."""
    delta, sums = op.delta(weight), torch.zeros(8, dtype=torch.float64)
    read = torch.cat([x, probes], 1)
    left, right = (op.up, op.down.double() @ read) if isinstance(op, LowRank) else (delta, read)
    space = read.new_empty(3, min(ROWS, len(weight)), weight.shape[1])
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        original, change, cast = space[:, : len(weight[rows])]
        original.copy_(weight[rows])
        change.copy_(delta[rows])
        cast.copy_((weight[rows].float() + delta[rows]).to(weight.dtype))
        before, moved = original @ read, left[rows].double() @ right
        held = cast @ x - before[:, : x.shape[1]]
        if gap is None:
            assert asked is not None, "one of both is given"
            goal = asked[rows]
        else:
            goal = original @ gap
        parts = _compared(before, moved, held, goal)
        sums += torch.stack([_square(part) for part in (*parts, change, original)])
    asked_, residual, cast, wanted, moved, kept, update, original = sums.sqrt().clamp_min(1e-300).tolist()
    return {
        "site": site.key,
        "group": site.group,
        "depth": site.depth,
        "asked": asked_ / wanted,
        "residual": residual / wanted,
        "residual_cast": cast / wanted,
        "relative_update": update / original,
        "drift": moved / kept if probes.shape[1] else None,
        "rank": op.rank,
    }


def _compared(before: Tensor, moved: Tensor, held: Tensor, asked: Tensor) -> tuple[Tensor, ...]:
    """Of some rows of outputs: asked, its residual before and after the cast, wanted, drift and output at the probes
    (the columns of `before` and `moved` behind those that are asked to move)."""
    count = asked.shape[1]
    near, change = before[:, :count], moved[:, :count]
    return asked, change - asked, held - asked, near + asked, moved[:, count:], before[:, count:]


def _square(part: Tensor) -> Tensor:
    """The squared norm, in one pass without a copy of the squares."""
    flat = part.reshape(-1)
    return torch.dot(flat, flat)


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
    check = summary(records, [*warnings, *saturated(records), *([conflict] if held else [])])
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
