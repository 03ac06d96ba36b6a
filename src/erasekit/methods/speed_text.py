"""What SPEED reads of the prompts: the columns that every matrix shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.methods import Progress
from erasekit.methods._features import BATCH, encoded, last_subject
from erasekit.methods._retained import retained_last_subject
from erasekit.methods.speed_retain import invariants


@dataclass(frozen=True)
class Problem:
    """`x` C1 and `gap` C* - C1 (d, n), `marks` the targets' last subject tokens (d, k), `retained` C0 (d, N),
    `invariants` C2 (d, 4); float64."""

    x: Tensor
    gap: Tensor
    marks: Tensor
    retained: Tensor
    invariants: Tensor

    @property
    def count(self) -> int:
        """k, the number of targets."""
        return self.marks.shape[1]

    @cached_property
    def reach(self) -> Tensor:
        """K = (C1' C1 + k I)^-1 C1' (n, d): D_erase = W (C* - C1) K."""
        return solvers.inverse(self.x, scale=1 / self.count).rows

    @cached_property
    def pulls(self) -> Tensor:
        """K C0 (n, N)."""
        return self.reach @ self.retained

    def outside(self, top: Tensor) -> Tensor:
        """||P c|| / ||c|| (k,) of the marks, to 1e-8."""
        inside = (top.T @ self.marks).square().sum(0) / self.marks.square().sum(0)
        return (1 - inside).clamp_min(0).sqrt()

    def conflicts(self, request: EraseRequest) -> list[str]:
        """A warning for each pair of targets that the model reads the same and that have different anchors."""
        if self.x.shape[1] != self.count:
            return []
        return [
            f"the model reads {request.targets[i]!r} and {request.targets[j]!r} as the same: their anchors are mixed"
            for i, j in solvers.conflicts(self.x, self.x + self.gap).tolist()
        ]


def gather(
    backbone: Backbone, request: EraseRequest, names: Sequence[str], *, all_rows: bool, progress: Progress
) -> Problem:
    """Every prompt encoded once, what is retained (`names`) not at all where the cache has it; without `names` the
    empty prompt's rows behind BOS are retained.

    `all_rows`: pairs are formed of all rows behind BOS, else of the last subject tokens. More than 2d pairs are
    reduced to 2d with the same second moments, which give the same edit.
    """
    whole = [] if all_rows else list(request.anchors)
    prompts = [prompt for prompt in dict.fromkeys([*request.targets, *whole]) if prompt]
    found = last_subject(backbone, prompts, progress=progress, what="encoding the concepts")
    (empty, last), *_ = encoded(backbone, [""], whole=True)
    empty = empty.double()
    found = torch.cat([found, empty[[last]].T], 1)  # the empty anchor needs no pass of its own
    place = {prompt: i for i, prompt in enumerate([*prompts, ""])}
    marks = found[:, [place[name] for name in request.targets]]
    if all_rows:
        x, y = _rows(backbone, request, progress=progress)
    else:
        x, y = _reduced(torch.cat([marks, found[:, [place[name] for name in request.anchors]]])).chunk(2)
    retained = empty[1:].T
    if names:
        retained = retained_last_subject(backbone, names, folder=request.retain_cache, progress=progress)
    return Problem(x, y - x, marks, retained, invariants(empty, torch.Generator().manual_seed(request.seed)))


def _rows(backbone: Backbone, request: EraseRequest, *, progress: Progress) -> tuple[Tensor, ...]:
    """All rows behind BOS of the targets and of their anchors, (d, n) each."""
    pairs = list(zip(request.targets, request.anchors, strict=True))
    stacked: list[Tensor] = []
    for start in range(0, len(pairs), BATCH):
        progress(start, len(pairs), "encoding the targets")
        batch = pairs[start : start + BATCH]
        prompts = list(dict.fromkeys(prompt for pair in batch for prompt in pair))
        rows = {p: r[1:].T.double() for p, (r, _) in zip(prompts, encoded(backbone, prompts, whole=True), strict=True)}
        stacked += [torch.cat([rows[target], rows[anchor]]) for target, anchor in batch]
        stacked = [_reduced(torch.cat(stacked, 1))]
    return stacked[0].chunk(2)


def _reduced(stacked: Tensor) -> Tensor:
    """At most 2d columns with the second moment of `stacked` (2d, n): all that the edit depends on."""
    if stacked.shape[1] <= stacked.shape[0]:
        return stacked
    return torch.linalg.qr(stacked.T, mode="r").R.T
