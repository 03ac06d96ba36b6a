"""What UCE reads of the prompts: the columns of its pairs and the second moment of what must stay.

Prompts are encoded in batches and reduced at once, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.methods import Progress
from erasekit.methods._features import BATCH, encoded, spread
from erasekit.methods._moments import Moment, moment

if TYPE_CHECKING:
    from erasekit.methods.uce import UCEConfig


@dataclass(frozen=True)
class Pairs:
    """Paired text features, float64: `x` and each of `ys` (d, n); `block` (n,) numbers a column's prompt pair."""

    x: Tensor
    ys: tuple[Tensor, ...]
    block: Tensor

    def block_dot(self, a: Tensor, b: Tensor) -> Tensor:
        """The inner product of two (o, n) outputs over each whole block, at every column of it: (n,)."""
        sums = self.x.new_zeros(int(self.block.max()) + 1)
        return sums.index_add(0, self.block, (a * b).sum(0))[self.block]


@dataclass(frozen=True)
class Retained:
    """What must stay: `moment` R R' (d, d) float64, its weight b, and columns (d, m) to measure the drift on."""

    moment: Tensor
    scale: float
    probes: Tensor


def gather_pairs(
    backbone: Backbone, groups: Sequence[tuple[str, ...]], config: UCEConfig, *, progress: Progress
) -> Pairs:
    """The columns of every group (target prompt, anchor prompt, ...), aligned as `config.tokens` says.

    Where the objective allows it, more columns than 2d are reduced to 2d that give the same edit.
    """
    blocks: list[tuple[Tensor, ...]] = []
    for start in range(0, len(groups), BATCH):
        progress(start, len(groups), "encoding the targets")
        batch = groups[start : start + BATCH]
        prompts = list(dict.fromkeys(prompt for group in batch for prompt in group))
        rows = dict(zip(prompts, encoded(backbone, prompts, whole=config.tokens == "tail"), strict=True))
        blocks += [_aligned([rows[prompt] for prompt in group], config) for group in batch]
        blocks = _compressed(blocks, 6) if config.linear else blocks  # now and then: it costs a QR
    blocks = _compressed(blocks, 2) if config.linear else blocks
    x, *ys = (torch.cat(columns, 1).double() for columns in zip(*blocks, strict=True))
    numbers = torch.arange(len(blocks)).repeat_interleave(torch.tensor([block[0].shape[1] for block in blocks]))
    return Pairs(x, tuple(ys), numbers)


def gather_retained(
    backbone: Backbone, retain: Sequence[str], config: UCEConfig, *, progress: Progress, cache: Path | None = None
) -> Retained:
    """R R' accumulated batch by batch: the features of all prompts are never held at once. With `tail` the empty prompt
    is one of them.

    `cache`: the folder where the named ones' is kept for the next fit (`_cache.grown`).
    """
    named = [prompt for prompt in dict.fromkeys(retain) if prompt or config.tokens == "last"]
    told = partial(second_moment, backbone, config=config, progress=progress)
    found = told(named, cache=cache)
    if config.tokens == "last":
        return Retained(found.total, preserve_scale(config, len(named)), found.probes[:, 0].T)
    empty = told([""], what="encoding the empty prompt")
    probes = torch.cat([empty.probes, found.probes])[:, 0].T
    few = probes[:, spread(probes.shape[1])]
    return Retained(empty.total + found.total, preserve_scale(config, 1 + len(named)), few)


def second_moment(
    backbone: Backbone, prompts: Sequence[str], config: UCEConfig, *, progress: Progress, cache: Path | None = None,
    what: str = "encoding the retained",
) -> Moment:  # fmt: skip
    """The moment of the prompts' rows that the edit reads."""
    rows = "all" if config.tokens == "tail" else "last"
    return moment(backbone, prompts, rows=rows, cache=cache, progress=progress, what=what)


def preserve_scale(config: UCEConfig, prompts: int) -> float:
    """b: as given, or the value of the authors' scripts for that many retained prompts."""
    if config.preserve_scale is not None:
        return config.preserve_scale
    if config.mode == "debias":
        return 0.1
    return 1.0 if config.tokens == "last" else max(0.1, 1 / max(1, prompts))


def _aligned(prompts: Sequence[tuple[Tensor, int]], config: UCEConfig) -> tuple[Tensor, ...]:
    """Rows of equal number from each prompt, their last subject tokens facing each other, as columns (d, n)."""
    if config.tokens == "last":
        return tuple(rows[last : last + 1].T for rows, last in prompts)
    far = max(last for _, last in prompts)
    return tuple(rows[last : len(rows) - (far - last)].T for rows, last in prompts)


def _compressed(blocks: list[tuple[Tensor, ...]], limit: int) -> list[tuple[Tensor, ...]]:
    """If there are more than `limit` d columns (x, y): 2d columns with the same X X', Y X' and Y Y'."""
    if sum(x.shape[1] for x, _ in blocks) <= limit * blocks[0][0].shape[0]:
        return blocks
    stacked = torch.cat([torch.cat([part.double() for part in block]) for block in blocks], 1)
    return [torch.linalg.qr(stacked.T, mode="r").R.T.chunk(2)]
