"""Intervals for means whose images come in clusters: prompts are drawn again, each with all its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erasekit.errors import UsageError
from erasekit.evaluation.statistics import Estimate

DRAWS = 2000
TEST_DRAWS = 10_000
"""Of a difference: a p-value is at least 2 / (draws + 1), and with 2000 none of a family of 51 could pass Holm's 5 %."""
METHOD = "bootstrap95 over prompts"
ONE_PROMPT = "none: one prompt"
CELLS = 1 << 22
"""Numbers that are held at once: all draws of thirty thousand prompts would take gigabytes."""
BLOCK = 8192
"""Products that einsum adds in one go: of more it makes parts by its own buffer, in an order that the draws decide too."""


@dataclass(frozen=True)
class Comparison:
    """A paired difference (second minus first) and the two-sided bootstrap p-value that it is zero; None with one prompt."""

    difference: Estimate
    p: float | None


def mean(
    values: Sequence[float], prompts: Sequence[str], *, generator: np.random.Generator, draws: int = DRAWS
) -> Estimate:
    """The mean over all images with a 95 % percentile interval over prompts.

    `values[i]` is a finite number (a boolean counts as 0 or 1) of an image of `prompts[i]`. The order of the images
    does not matter. With one prompt there is nothing to draw from: low = high = value, and `method` says so. Where
    every value is equal the interval has no width: give rates a Wilson interval too (`statistics.Share`).
    """
    means, value, count = _draw(values, prompts, generator, draws)
    return _estimate(means, value, count)


def difference(
    first: Sequence[float],
    second: Sequence[float],
    prompts: Sequence[str],
    *,
    generator: np.random.Generator,
    draws: int = TEST_DRAWS,
) -> Comparison:
    """The mean of second - first over paired images, with a 95 % percentile interval over prompts and a p-value.

    Pair i is one prompt and seed drawn by two models; leave out pairs of which either image is not valid. The
    p-value is 2 min(P(d <= 0), P(d >= 0)) over the draws, one draw added to each so that it is never zero; with one
    prompt nothing can be drawn and there is none.
    """
    if len(first) != len(second):
        raise UsageError(f"{len(first)} and {len(second)} values are no pairs: give both values of every pair")
    deltas = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    means, value, count = _draw(deltas, prompts, generator, draws)
    return Comparison(_estimate(means, value, count), _p_value(means))


def _draw(
    values: Sequence[float], prompts: Sequence[str], generator: np.random.Generator, draws: int
) -> tuple[np.ndarray, float, int]:
    """The means of every draw (none with one prompt), the mean, the number of values."""
    sums, sizes = _clusters(values, prompts)
    value = math.fsum(sums) / int(sizes.sum())
    if len(sums) == 1:
        return np.empty(0), value, int(sizes.sum())
    return resampled(sums, sizes, generator, draws), value, int(sizes.sum())


def resampled(sums: np.ndarray, sizes: np.ndarray, generator: np.random.Generator, draws: int) -> np.ndarray:
    """The mean over images (draws,) of each draw of prompts with replacement, from every prompt's sum and size (k,).

    Slices of the draws give the same numbers as all draws at once.
    """
    k, sizes, found = len(sums), sizes.astype(np.float64), []
    step = max(1, CELLS // k)
    for start in range(0, draws, step):
        times = generator.multinomial(k, np.full(k, 1 / k), size=min(step, draws - start)).astype(np.float64)
        found.append(_weighted(times, sums) / _weighted(times, sizes))
    return np.concatenate(found)


def _weighted(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    # einsum, not @: BLAS may add in another order with another number of threads, and aggregates must not differ
    parts = [slice(start, start + BLOCK) for start in range(0, len(values), BLOCK)]
    return np.sum([np.einsum("dk,k->d", times[:, part], values[part]) for part in parts], axis=0)


def _clusters(values: Sequence[float], prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of values of each prompt, in the order of the prompts' names."""
    numbers = [float(value) for value in values]
    if len(numbers) != len(prompts):
        raise UsageError(f"{len(numbers)} values for {len(prompts)} prompts: give the prompt of every value")
    if not numbers:
        raise UsageError("no value to average: every image failed or none was drawn")
    if not all(map(math.isfinite, numbers)):
        raise UsageError("a value is not a finite number: leave out images that could not be judged, and count them")
    groups: dict[str, list[float]] = {}
    for prompt, number in zip(prompts, numbers, strict=True):
        groups.setdefault(str(prompt), []).append(number)
    names = sorted(groups)
    return np.array([math.fsum(groups[n]) for n in names]), np.array([len(groups[n]) for n in names], dtype=np.int64)


def _estimate(means: np.ndarray, value: float, count: int) -> Estimate:
    if not len(means):
        return Estimate(value, value, value, count, ONE_PROMPT)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value, float(low), float(high), count, METHOD)


def _p_value(means: np.ndarray) -> float | None:
    if not len(means):
        return None
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(means) + 1))
