"""Paired differences to the unedited model, and the harmonic means with their intervals, from rows alone.

A pair is one prompt and seed drawn by both, both of them valid. Intervals draw prompts again, with all their seeds;
p-values are McNemar's exact ones for yes/no outcomes, and Holm's correction over the whole table stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from erasekit.evaluation import bootstrap
from erasekit.evaluation.metrics.harmonic import harmonic_mean
from erasekit.evaluation.rates import Side, group, line
from erasekit.evaluation.rows import Row
from erasekit.evaluation.similarity import Space, rng, scores
from erasekit.evaluation.statistics import Estimate, discordant, holm, mcnemar_exact

Outcome = tuple[str, bool]  # a prompt, and whether its image is a hit
MEANS: dict[str, tuple[str, ...]] = {
    "erasebench": ("efficacy", "generality", "specificity"),
    "h_o": ("efficacy", "wanted", "synonym"),
    "h_c": ("efficacy", "wanted"),
}


def rate_differences(side: Side) -> list[dict[str, Any]]:
    """The arm's rates minus the unedited model's, over all groups of each rate and for each group."""
    read = side.reading
    asked = [row for row in side.rows if group(row).asks]
    kept = [row for row in side.of("specificity") if read.asks(row)]
    anchored = [row for row in asked if row.target in side.anchors]
    styled = [row for row in side.rows if row.style is not None and read.kind != "style"]
    tables: list[tuple[str, list[Row], Callable[[Row], bool]]] = [
        ("efficacy", side.of("efficacy"), lambda row: not read.target(row)),
        ("generality", side.of("generality"), lambda row: not read.target(row)),
        ("target_rate", asked, read.target),
        ("anchor_rate", anchored, lambda row: read.label(row, side.anchors[row.target])),
        ("wanted_rate", kept, read.wanted),
        ("style_rate", styled, lambda row: read.look(row, "style")),
    ]
    return [found for name, rows, hit in tables for found in _rates(side, name, rows, hit)]


def _rates(side: Side, name: str, rows: Sequence[Row], hit: Callable[[Row], bool]) -> Iterable[dict[str, Any]]:
    status = side.reading.status
    for group_name, part in _parts(rows):
        pairs = _pairs(side, part, lambda row: status(row) == "ok")
        if not pairs:
            continue
        ours, base = [hit(row) for row, _ in pairs], [hit(row) for _, row in pairs]
        found = bootstrap.difference(base, ours, [row.prompt for row, _ in pairs],
                                     generator=rng("difference", name, side.arm, group_name))  # fmt: skip
        p = mcnemar_exact(*discordant(base, ours))
        yield _difference(name, side.arm, group_name, found.difference, p, side.reading.judge)


def score_differences(side: Side, space: Space) -> list[dict[str, Any]]:
    """The arm's CLIP score minus the unedited model's, likewise; the p-value is the bootstrap's."""
    words = {row.prompt: row.text for row in side.rows}
    found = []
    for group_name, part in _parts([row for row in side.rows if space.has(row)]):
        pairs = _pairs(side, part, space.has)
        if not pairs:
            continue
        ours, base = (scores(space, list(rows), words).tolist() for rows in zip(*pairs, strict=True))
        compared = bootstrap.difference(base, ours, [row.prompt for row, _ in pairs],
                                        generator=rng("difference", "clip_score", side.arm, group_name))  # fmt: skip
        found.append(_difference("clip_score", side.arm, group_name, compared.difference, compared.p, space.judge))
    return found


def with_holm(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same lines with `p_holm`: corrected for the number of lines in the table."""
    adjusted = holm([one["p"] for one in differences])
    return [one | {"p_holm": p} for one, p in zip(differences, adjusted, strict=True)]


def means(side: Side) -> list[dict[str, Any]]:
    """The harmonic means of an arm, each with a bootstrap interval; one whose terms were not all measured is left out."""
    found = terms(side)
    return [
        line(name, side.arm, None, None, _mean([found[part] for part in parts], name, side.arm), side.reading.judge,
             terms=list(parts))
        for name, parts in MEANS.items() if all(found[part] for part in parts)
    ]  # fmt: skip


def terms(side: Side) -> dict[str, list[Outcome]]:
    """The valid images behind each term of the means: efficacy, generality, synonym, wanted, specificity."""
    read = side.reading
    good = [row for row in side.rows if read.status(row) == "ok"]
    kept = [row for row in good if group(row).side == "specificity" and read.asks(row)]
    shown = [row for row in kept if _shown(side, row)]
    gone = [(row, (row.prompt, not read.target(row))) for row in good if group(row).asks]
    return {
        "efficacy": [out for row, out in gone if group(row).side == "efficacy"],
        "generality": [out for row, out in gone if group(row).side == "generality"],
        "synonym": [out for row, out in gone if row.group == "synonym"],
        "wanted": [(row.prompt, read.wanted(row)) for row in kept],
        "specificity": [(row.prompt, read.wanted(row)) for row in shown],
    }


def _shown(side: Side, row: Row) -> bool:
    base = side.base.get(row.shot)
    return base is not None and side.reading.status(base) == "ok" and side.reading.wanted(base)


def _mean(parts: Sequence[Sequence[Outcome]], name: str, arm: str) -> Estimate:
    """The harmonic mean of the parts' rates; the parts hold different prompts and are drawn again independently."""
    generator = rng("mean", name, arm)
    value = harmonic_mean(*(sum(hit for _, hit in part) / len(part) for part in parts))
    drawn = np.stack([_drawn(part, generator) for part in parts])
    with np.errstate(divide="ignore"):  # a rate of 0 makes the mean 0, which is what 1/0 = inf gives
        draws = len(parts) / (1 / drawn).sum(0)
    low, high = (float(x) for x in np.quantile(draws, [0.025, 0.975]))
    return Estimate(value, min(low, value), max(high, value), sum(map(len, parts)), bootstrap.METHOD)


def _drawn(part: Sequence[Outcome], generator: np.random.Generator) -> np.ndarray:
    """The part's rate over bootstrap draws of its prompts."""
    clusters: dict[str, list[bool]] = {}
    for prompt, hit in part:
        clusters.setdefault(prompt, []).append(hit)
    hits = np.array([sum(clusters[key]) for key in sorted(clusters)], dtype=np.int64)
    sizes = np.array([len(clusters[key]) for key in sorted(clusters)], dtype=np.int64)
    times = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=bootstrap.DRAWS)
    return (times * hits).sum(1) / (times * sizes).sum(1)


def _parts(rows: Sequence[Row]) -> list[tuple[str | None, list[Row]]]:
    """All rows, then each group where there are several."""
    names = list(dict.fromkeys(row.group for row in rows))
    return [(None, list(rows)), *((name, [row for row in rows if row.group == name]) for name in names)] if rows else []


def _pairs(side: Side, rows: Sequence[Row], valid: Callable[[Row], bool]) -> list[tuple[Row, Row]]:
    base: Mapping[tuple[str, int], Row] = side.base
    return [(row, base[row.shot]) for row in rows if row.shot in base and valid(row) and valid(base[row.shot])]


def _difference(name: str, arm: str, group_name: str | None, found: Estimate, p: float, judge: str) -> dict[str, Any]:
    none = found.method.startswith("none")
    return {
        "metric": name, "arm": arm, "against": "base", "group": group_name, "target": None, "value": found.value,
        "low": None if none else found.low, "high": None if none else found.high, "n": found.n, "p": p, "judge": judge,
        "interval": "" if none else found.method,
    }  # fmt: skip
