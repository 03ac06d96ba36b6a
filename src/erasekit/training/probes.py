"""What a run is measured on when it is over: a few of its prompts, and how much two predictions differ."""

from __future__ import annotations

import torch
from torch import Tensor

PROBES = 8
"""At most so many targets, and so many of what is retained, are measured after training."""


def spread(count: int) -> range:
    """At most `PROBES` indices below `count`, evenly spread."""
    return range(0, count, max(1, -(-count // PROBES)))


def relative_drift(moved: float, size: float) -> float | None:
    """How far what is retained moved, relative to its size, from the squares of both; None where nothing is retained."""
    return (moved / size) ** 0.5 if size else None


def energy(tensor: Tensor) -> float:
    """The sum of the squares, added up in float64."""
    return float(doubled(tensor).square().sum())


def doubled(tensor: Tensor) -> Tensor:
    """The tensor in float64 on the CPU, without gradient: not every device has float64 (Apple's GPUs do not)."""
    return tensor.detach().cpu().double()


def widest(device: torch.device) -> torch.dtype:
    """The widest floating-point dtype of a device, for what is too much work to take elsewhere."""
    return torch.float32 if device.type == "mps" else torch.float64
