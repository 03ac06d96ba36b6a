"""The second moment of a list of prompts, R R', which is all that most closed-form edits know of what must stay.

Prompts are encoded in batches that are reduced at once: memory does not grow with their number. What is summed depends on
the list alone, so that with a cache (`_cache.grown`) methods share it, and a longer list goes on where a shorter one ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone
from erasekit.methods import Progress
from erasekit.methods._cache import State, grown
from erasekit.methods._features import BATCH, PROBES, encoded


@dataclass(frozen=True)
class Moment:
    """`total` sum of e e^T (d, d) over the rows of `prompts` prompts; `probes` (p, r, d) rows of at most PROBES of them,
    evenly spread: the last subject token and, where all rows count, the first EOS and the last padding. All float64."""

    total: Tensor
    probes: Tensor
    prompts: int


def moment(
    backbone: Backbone, prompts: Sequence[str], *, rows: Literal["all", "last"], cache: Path | None, progress: Progress,
    what: str,
) -> Moment:  # fmt: skip
    """The prompts' second moment over all their rows, or over their last subject tokens; `cache` keeps it, `what` is told
    with the progress."""
    width = backbone.weight(backbone.sites("cross.kv")[0]).shape[1]
    shapes = {"total": (width, width), "probes": (0, 3 if rows == "all" else 1, width)}
    start = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def add(state: State, first: int) -> State:
        progress(first, len(prompts), what)
        return _added(state, backbone, prompts, first, whole=rows == "all")

    found = grown(backbone, prompts, f"second moment and probes of {rows} rows", start, add, batch=BATCH, folder=cache)
    return Moment(found["total"], found["probes"], len(prompts))


def _added(state: State, backbone: Backbone, prompts: Sequence[str], first: int, *, whole: bool) -> State:
    """The state after the batch that begins with prompt number `first`."""
    batch = list(encoded(backbone, prompts[first : first + BATCH], whole=whole))
    columns = torch.cat([rows if whole else rows[last : last + 1] for rows, last in batch]).T
    step = _step(first + len(batch))
    probes = [state["probes"][:: step // _step(first)]]
    for number, (rows, last) in enumerate(batch, first):
        if number % step == 0:
            at = [last, min(last + 1, len(rows) - 1), -1] if whole else [last]
            probes.append(rows[at].double()[None])
    return {"total": state["total"] + solvers.second_moment(columns), "probes": torch.cat(probes)}


def _step(count: int) -> int:
    """Every how-manieth of so many prompts is a probe: a power of two, which a longer list has only to thin out."""
    step = 1
    while count > step * PROBES:
        step *= 2
    return step
