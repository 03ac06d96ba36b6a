"""The harmonic means of a results document, each with a bootstrap interval, from rows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from erasekit.evaluation import bootstrap
from erasekit.evaluation.metrics.harmonic import harmonic_mean
from erasekit.evaluation.rates import Side, group, line, net
from erasekit.evaluation.rows import Row
from erasekit.evaluation.similarity import rng
from erasekit.evaluation.statistics import Estimate

Outcome = tuple[str, float]  # a prompt, and whether its image is a hit (or with what probability)
JEFFREYS = "Jeffreys for a term of one prompt or without a spread"
MEANS: dict[str, tuple[str, ...]] = {
    "erasebench": ("efficacy", "generality", "specificity"),
    "net_erasure": ("net_efficacy", "net_generality", "specificity"),
    "h_o": ("efficacy", "wanted", "synonym"),
    "h_c": ("efficacy", "wanted"),
}


def means(side: Side) -> list[dict[str, Any]]:
    """The harmonic means of an arm, each with a bootstrap interval; one whose terms were not all measured is left out."""
    found = terms(side)
    return [
        line(name, side.arm, None, None, mean_of([found[part] for part in parts], name, side.arm), side.reading.judge,
             terms=list(parts))
        for name, parts in MEANS.items() if all(found[part] for part in parts)
    ]  # fmt: skip


def terms(side: Side) -> dict[str, list[Outcome]]:
    """The valid images behind each term of the means: efficacy, generality, each also net of noise, synonym, wanted,
    specificity."""
    read = side.reading
    good = [row for row in side.rows if read.status(row) == "ok"]
    kept = [row for row in good if group(row).side == "specificity" and read.asks(row)]
    shown = [row for row in kept if shown_before(side, row)]
    gone = [(row, (row.prompt, not read.target(row))) for row in good if group(row).asks and read.seeks(row)]
    beyond = [(row, (row.prompt, net(side, row))) for row, _ in gone if row.shot in side.noise]
    return {
        "efficacy": [out for row, out in gone if group(row).side == "efficacy"],
        "generality": [out for row, out in gone if group(row).side == "generality"],
        "net_efficacy": [out for row, out in beyond if group(row).side == "efficacy"],
        "net_generality": [out for row, out in beyond if group(row).side == "generality"],
        "synonym": [out for row, out in gone if row.group == "synonym"],
        "wanted": [(row.prompt, read.wanted(row)) for row in kept],
        "specificity": [(row.prompt, read.wanted(row)) for row in shown],
    }


def shown_before(side: Side, row: Row) -> bool:
    """Whether the unedited model's image of the same prompt and seed shows what is asked."""
    base = side.base.get(row.shot)
    return base is not None and side.reading.status(base) == "ok" and side.reading.wanted(base)


def mean_of(parts: Sequence[Sequence[Outcome]], name: str, arm: str) -> Estimate:
    """The harmonic mean of the parts' rates; the parts hold different prompts and are drawn again independently.

    A part of one prompt, or in which every image agrees, has nothing to draw, and the interval would end at the value: its
    rate is drawn from Jeffreys' posterior (Brown, Cai and DasGupta 2001), which takes its images as independent.
    """
    generator = rng("mean", name, arm)
    value = harmonic_mean(*(math.fsum(hit for _, hit in part) / len(part) for part in parts))
    counts = [_clusters(part) for part in parts]
    drawn = np.stack([_drawn(sums, sizes, generator) for sums, sizes in counts])
    with np.errstate(divide="ignore"):  # a rate of 0 makes the mean 0, which is what 1/0 = inf gives
        draws = len(parts) / (1 / drawn).sum(0)
    low, high = (float(x) for x in np.quantile(draws, [0.025, 0.975]))
    method = bootstrap.METHOD + (f"; {JEFFREYS}" if any(_flat(*count) for count in counts) else "")
    return Estimate(value, min(low, value), max(high, value), sum(map(len, parts)), method)


def _clusters(part: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Hits and images of each prompt."""
    clusters: dict[str, list[float]] = {}
    for prompt, hit in part:
        clusters.setdefault(prompt, []).append(float(hit))
    names = sorted(clusters)
    return np.array([math.fsum(clusters[n]) for n in names]), np.array([float(len(clusters[n])) for n in names])


def _flat(sums: np.ndarray, sizes: np.ndarray) -> bool:
    return len(sizes) == 1 or sums.sum() in (0, sizes.sum())


def _drawn(sums: np.ndarray, sizes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The part's rate over draws of its prompts."""
    if _flat(sums, sizes):
        return generator.beta(sums.sum() + 0.5, (sizes - sums).sum() + 0.5, size=bootstrap.DRAWS)
    return bootstrap.resampled(sums, sizes, generator, bootstrap.DRAWS)
