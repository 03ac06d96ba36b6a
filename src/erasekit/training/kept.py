"""Latents that take long to make, kept beside a run's checkpoint while they are being made: a run that is ended goes on
from those that it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasekit.training.checkpoint import Checkpoint

Keep = Callable[[Sequence[Tensor]], None]
"""Takes all batches that there are so far."""
Make = Callable[[Tensor | None, Keep], Tensor]
"""(the first of the latents or None, where to put what there is so far) -> all of them."""
SHARE = 0.1
"""The part of the time that writing may take before the last batch."""


def nowhere(found: Sequence[Tensor]) -> None:
    """Keeps nothing."""


def kept(make: Make, checkpoint: Path | None, about: Mapping[str, Any], *, count: int) -> Tensor:
    """The `count` latents that `make` gives, those in the file beside the checkpoint not made again
    (`<checkpoint>.images.safetensors`).

    `about`: all that decides them; a file of other images raises `TrainingError` that says in what they differ.
    """
    if checkpoint is None:
        return make(None, nowhere)
    place = Checkpoint.at(checkpoint, about)
    place = replace(place, path=place.path.with_name(f"{place.path.stem}.images.safetensors"))
    saved = place.load()
    known = saved[0]["latents"] if saved else None
    if known is not None and len(known) == count:
        return known
    latents = make(known, Sparing(place))
    place.save({"latents": latents}, [])
    return latents


class Sparing:
    """Writes what there is so far, the first batch always and then so often that writing takes SHARE of the time: after
    every batch where these take long, seldom where they are quick."""

    def __init__(self, place: Checkpoint) -> None:
        self.place, self.ended, self.cost = place, 0.0, 0.0

    def __call__(self, found: Sequence[Tensor]) -> None:
        """Write them, unless the last time is too short ago."""
        began = time.perf_counter()
        if self.cost and began - self.ended < self.cost * (1 - SHARE) / SHARE:
            return
        self.place.save({"latents": torch.cat(list(found))}, [])
        self.ended = time.perf_counter()
        self.cost = self.ended - began
