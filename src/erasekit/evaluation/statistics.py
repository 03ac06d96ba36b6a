"""Proportions with intervals, exact tests on pairs, and what a judge's own errors do to a rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from erasekit.errors import UsageError


def wilson(successes: float, trials: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """The Wilson score interval (low, high) of a proportion, always within 0..1; (0, 1) without trials.

    `successes` may be a sum of shares, one a trial: then the interval is wider than need be.
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
    low, high = (centre - half) / (1 + extra), (centre + half) / (1 + extra)
    # 0 of n begins at 0 and n of n ends at 1 exactly, which rounding may miss by 1e-17.
    return 0.0 if successes == 0 else max(0.0, low), 1.0 if successes == trials else min(1.0, high)


@dataclass(frozen=True)
class Estimate:
    """A number with its interval: `n` is how many images (or pairs) it rests on, `method` how the interval was
    made ("wilson95", "bootstrap95 over prompts", or "none: ..." where low = high = value for want of data)."""

    value: float
    low: float
    high: float
    n: int
    method: str


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

    @property
    def estimate(self) -> Estimate | None:
        """The proportion with its 95 % Wilson interval; None without trials, where there is no rate to state."""
        return Estimate(self.value, *self.interval, self.trials, "wilson95") if self.trials else None

    def __add__(self, other: Share) -> Share:
        return Share(self.hits + other.hits, self.trials + other.trials)


@dataclass(frozen=True)
class Outcomes:
    """Hits among the images that could be judged; `failed` and `invalid` ones are in no rate but in `pessimistic`."""

    hits: int
    valid: int
    failed: int = 0
    invalid: int = 0

    @classmethod
    def count(cls, statuses: Sequence[str], hits: Sequence[bool]) -> Outcomes:
        """From one status ("ok", "failed", "invalid") and one outcome an image; outcomes of images that are not ok
        are not read. Raises `UsageError` for another status, or lists of unlike length."""
        if len(statuses) != len(hits):
            raise UsageError(f"{len(statuses)} statuses for {len(hits)} outcomes: give one of each for every image")
        if unknown := set(statuses) - {"ok", "failed", "invalid"}:
            raise UsageError(f"unknown status {min(unknown)!r}: use ok, failed or invalid")
        good = [bool(hit) for status, hit in zip(statuses, hits, strict=True) if status == "ok"]
        kinds = list(statuses)
        return cls(sum(good), len(good), kinds.count("failed"), kinds.count("invalid"))

    @property
    def drawn(self) -> int:
        """All images, judged or not."""
        return self.valid + self.failed + self.invalid

    @property
    def estimate(self) -> Estimate | None:
        """The rate over the valid images, with its Wilson interval; None where none is valid."""
        return Share(self.hits, self.valid).estimate

    @property
    def pessimistic(self) -> Estimate | None:
        """The rate over all images, each that is not valid counted as a miss; None without images."""
        return Share(self.hits, self.drawn).estimate

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(
            self.hits + other.hits,
            self.valid + other.valid,
            self.failed + other.failed,
            self.invalid + other.invalid,
        )


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """The two-sided exact p-value that two paired yes/no outcomes have one rate: binomial(1/2) on discordant pairs.

    `first_only`, `second_only`: pairs in which only the first or only the second says yes; pairs that agree carry
    nothing. 1 without discordant pairs. Pairs are taken as independent: several seeds of one prompt are not quite.
    Source: Q. McNemar, 1947, in the exact (sign test) form.
    """
    if min(first_only, second_only) < 0:
        raise UsageError(f"counts of pairs cannot be negative: {first_only} and {second_only}")
    n, least = first_only + second_only, min(first_only, second_only)
    tail = sum(math.comb(n, k) for k in range(least + 1))  # integers: exact at any n
    return min(1.0, 2 * tail / 2**n)


def discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """How many pairs say yes only in `first`, and only in `second`: what `mcnemar_exact` takes."""
    pairs = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
    return pairs.count((True, False)), pairs.count((False, True))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the order given: below alpha means significant at family-wise alpha.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise UsageError("every p-value must lie in 0..1")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, floor = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted


def corrected_rate(rate: float, *, fpr: float, tpr: float) -> float:
    """What the true rate is if the judge finds the concept where it is with rate `tpr` and where it is not with
    rate `fpr`: (rate - fpr) / (tpr - fpr), clamped to 0..1. Report it beside the raw rate, never instead.

    Raises `UsageError` where the judge does not tell the two apart (tpr <= fpr).
    Source: W. J. Rogan and B. Gladen, 1978.
    """
    if not 0 <= fpr < tpr <= 1:
        raise UsageError(
            f"the judge's hit rate {tpr:g} must be above its false-positive rate {fpr:g}, both in 0..1: calibrate it"
        )
    return min(1.0, max(0.0, (rate - fpr) / (tpr - fpr)))


def corrected(estimate: Estimate, *, fpr: float, tpr: float) -> Estimate:
    """The estimate and both ends of its interval through `corrected_rate`; the error of fpr and tpr themselves is not
    in the interval, and the method says so."""
    value, low, high = (corrected_rate(x, fpr=fpr, tpr=tpr) for x in (estimate.value, estimate.low, estimate.high))
    return Estimate(value, low, high, estimate.n, f"{estimate.method}, judge-corrected with fixed error rates")
