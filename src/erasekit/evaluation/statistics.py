"""Proportions with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass


def wilson(successes: int, trials: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """The Wilson score interval (low, high) of a proportion, always within 0..1; (0, 1) without trials.

    `z` is the normal quantile (default: 95 %). Raises `ValueError` unless 0 <= successes <= trials.
    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0..{trials}, not {successes}")
    if trials == 0:
        return 0.0, 1.0
    share, extra = successes / trials, z * z / trials
    centre = share + extra / 2
    half = z * math.sqrt(share * (1 - share) / trials + extra / (4 * trials))
    return max(0.0, (centre - half) / (1 + extra)), min(1.0, (centre + half) / (1 + extra))


@dataclass(frozen=True)
class Share:
    """How often something was found: `hits` of `trials`."""

    hits: int
    trials: int

    @property
    def value(self) -> float:
        """The proportion; 0 without trials."""
        return self.hits / self.trials if self.trials else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return wilson(self.hits, self.trials)

    def __add__(self, other: Share) -> Share:
        return Share(self.hits + other.hits, self.trials + other.trials)
