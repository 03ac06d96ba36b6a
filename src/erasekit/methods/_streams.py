"""Prompts on their way through an encoder, read at the columns that are asked for, and many of these a block at a time.

Thousands of retained prompts have more columns than memory should hold twice. Nothing that a fit computes from them (a
basis, a second moment) needs them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Tokens
from erasekit.methods._pairs import Place, Plan

BLOCK = 4
"""Columns read at once, as a multiple of the width: up to there all are solved as they stand."""


@dataclass(frozen=True)
class Stream:
    """Hidden states (rows, positions, d) and what a level reads of them, position by position (none: themselves).

    Places name rows of the plan: row i stands at `like[i]` of `hidden` (none: at i).
    """

    hidden: Tensor
    read: Callable[[Tensor], Tensor] | None = None
    like: Tensor | None = None

    def at(self, places: Sequence[Place]) -> Tensor:
        """The columns (d, n) at the places, on the CPU."""
        rows = torch.tensor([row for row, _ in places], dtype=torch.long, device=self.hidden.device)
        positions = torch.tensor([position for _, position in places], dtype=torch.long, device=self.hidden.device)
        found = self.hidden[rows if self.like is None else self.like[rows], positions]
        if self.read:
            found = self.read(found[:, None])[:, 0]
        return found.T.cpu()

    def blocks(self, places: Sequence[Place]) -> Iterator[Tensor]:
        """The columns at the places, `BLOCK` times the width of them at a time."""
        size = max(1, int(BLOCK * self.hidden.shape[2]))
        return (self.at(places[start : start + size]) for start in range(0, len(places), size))

    def reduced(self, places: Sequence[Place]) -> Tensor:
        """The columns at the places, or where they are more than a block as few as the width that stand for them."""
        return solvers.reduced(self.blocks(places))

    def moment(self, places: Sequence[Place]) -> Tensor:
        """The second moment of the columns at the places."""
        return reduce(Tensor.add_, map(solvers.second_moment, self.blocks(places)))

    def outside(self, kept: Sequence[Place], places: Sequence[Place], *, cut: float) -> list[float]:
        """Which share of each column at `places` lies outside the span of those at `kept`, from their second moment: directions
        below `cut` of the strongest, or what rounding leaves, are not in the span."""
        values, vectors = torch.linalg.eigh(self.moment(kept))
        basis = vectors[:, values > max(cut**2, 1e-13) * values[-1]]
        columns = self.at(places).double()
        return (1 - (basis.T @ columns).square().sum(0) / columns.square().sum(0)).clamp_min(0).sqrt().tolist()


def carried(plan: Plan, places: Sequence[Place]) -> tuple[Tokens, Tensor, int]:
    """The prompts that the original must walk to be read at `places`, a `like` that finds a row of the plan among them (a row
    that is not there has a number too large), and how many come first as the targets' different anchors."""
    ids, count = plan.reference.ids, len(plan.targets)
    rows = torch.tensor(sorted({row for row, _ in places if row >= count}), dtype=torch.long)
    distinct, first = torch.unique(ids[:count], dim=0, return_inverse=True)
    like = torch.full((len(ids),), len(distinct) + len(rows))
    like[:count] = first
    like[rows] = torch.arange(len(distinct), len(distinct) + len(rows))
    return Tokens(torch.cat([distinct, ids[rows]]), ()), like, len(distinct)
