"""What RECE reads of the prompts: UCE's aligned columns and, for the attack, every row of the same prompts.

Prompts are encoded in UCE's own batches and reduced at once, so that memory does not grow with their number. The
attack and the erasing see the columns C (target), A (anchor) only through products such as A C', and C* = M C:
kd columns that have the second moment of the k stacked parts give the same edit as all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.methods import Progress
from erasekit.methods._features import BATCH, encoded
from erasekit.methods.uce import UCEConfig
from erasekit.methods.uce_text import Pairs

UCE_SETTINGS = UCEConfig()
"""The 2023 settings, which the first stage uses: lambda 0.5, a = 1, b = max(0.1, 1/retained prompts), tail rows."""


@dataclass(frozen=True)
class Rows:
    """Every row of the prompts as columns (d, n), float64, paired by position: the targets', their anchors' and, for
    the standard penalty, those of the old target prompts."""

    target: Tensor
    anchor: Tensor
    old: Tensor | None


def gather(backbone: Backbone, groups: Sequence[tuple[str, ...]], *, progress: Progress) -> tuple[Pairs, Rows]:
    """UCE's pairs (as `uce_text.gather_pairs` gives them) and all rows of every group (target, anchor[, old])."""
    tails: list[Tensor] = []
    wholes: list[Tensor] = []
    for start in range(0, len(groups), BATCH):
        progress(start, len(groups), "encoding the targets")
        batch = groups[start : start + BATCH]
        prompts = list(dict.fromkeys(prompt for group in batch for prompt in group))
        read = dict(zip(prompts, encoded(backbone, prompts, whole=True), strict=True))
        tails += [_tail(read[target], read[anchor]) for target, anchor, *_ in batch]
        wholes += [torch.cat([read[prompt][0].T for prompt in group]) for group in batch]
        tails, wholes = _reduced(tails, 3), _reduced(wholes, 3)  # now and then: it costs a QR
    return _pairs(_reduced(tails, 1)), _rows(_reduced(wholes, 1), parts=len(groups[0]))


def _tail(target: tuple[Tensor, int], anchor: tuple[Tensor, int]) -> Tensor:
    """The rows that UCE pairs, target over anchor (2d, n): from the last subject token on, as many as both have."""
    (x, f), (y, g) = target, anchor
    count = len(x) - max(f, g)
    return torch.cat([x[f : f + count].T, y[g : g + count].T])


def _pairs(blocks: Sequence[Tensor]) -> Pairs:
    x, y = torch.cat(list(blocks), 1).double().chunk(2)
    numbers = torch.arange(len(blocks)).repeat_interleave(torch.tensor([block.shape[1] for block in blocks]))
    return Pairs(x, (y,), numbers)


def _rows(blocks: Sequence[Tensor], *, parts: int) -> Rows:
    target, anchor, *old = torch.cat(list(blocks), 1).double().chunk(parts)
    return Rows(target, anchor, old[0] if old else None)


def _reduced(blocks: list[Tensor], limit: int) -> list[Tensor]:
    """If there are more than `limit` times as many columns as a column has numbers: as many columns as numbers, with
    the same second moment."""
    if sum(block.shape[1] for block in blocks) <= limit * blocks[0].shape[0]:
        return blocks
    return [torch.linalg.qr(torch.cat(blocks, 1).double().T, mode="r").R.T]
