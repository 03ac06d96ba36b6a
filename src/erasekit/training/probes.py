"""What a run is measured on when it is over: a few of its prompts, and how much two predictions differ."""

from __future__ import annotations

from torch import Tensor

PROBES = 8
"""At most so many targets, and so many of what is retained, are measured after training."""


def spread(count: int) -> range:
    """At most `PROBES` indices below `count`, evenly spread."""
    return range(0, count, max(1, -(-count // PROBES)))


def energy(tensor: Tensor) -> float:
    """The sum of the squares, added up in float64."""
    return float(tensor.double().square().sum())
