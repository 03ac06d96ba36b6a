"""Paired differences of an arm to the unedited model, and of two edits, from rows alone.

A pair is one prompt and seed drawn by both, both of them valid. Intervals draw prompts again, with all their seeds;
p-values are McNemar's exact ones for yes/no outcomes, and none with one
prompt, whose seeds are no independent pairs. Holm's correction stands beside them, over all lines against the
unedited model and, apart from these, over all lines between edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from erasekit.evaluation import bootstrap
from erasekit.evaluation.combined import shown_before
from erasekit.evaluation.rates import Side, group
from erasekit.evaluation.rows import Row
from erasekit.evaluation.similarity import Space, rng, scores
from erasekit.evaluation.statistics import Estimate, discordant, holm, mcnemar_exact, wilson

Part = tuple[str | None, list[Row]]  # a group (None: all) and its rows
MANY = 3  # more edits than these are compared on whole rates only: their pairs grow with the square


@dataclass(frozen=True)
class Rival:
    """What an arm is compared with: the name of the other arm, and its rows by shot."""

    arm: str
    rows: Mapping[tuple[str, int], Row]


def between(sides: Sequence[Side]) -> Iterator[tuple[Side, Rival, bool]]:
    """Every pair of edits once, read by one judge: a side, its rival, and whether groups are compared too.

    `anchors` are those that both edits have, so that one label is looked for. With many edits only whole rates are compared.
    """
    for first, second in combinations(sides, 2):
        common = {target: label for target, label in second.anchors.items() if first.anchors.get(target) == label}
        yield replace(second, anchors=common), Rival(first.arm, _by_shot(first.rows)), len(sides) <= MANY


def rate_differences(side: Side, rival: Rival | None = None, *, grouped: bool = True) -> list[dict[str, Any]]:
    """The arm's rates minus the rival's (default: the unedited model's), over all groups of each rate and for each group.

    Specificity is compared between edits only, on the images of which the unedited model's twin shows what is asked; to
    the unedited model itself it is its own difference.
    """
    read, other = side.reading, rival or Rival("base", side.base)
    asked = [row for row in side.rows if group(row).asks and read.seeks(row)]
    kept = [row for row in side.of("specificity") if read.asks(row)]
    anchored = [row for row in asked if row.target in side.anchors]
    styled = [row for row in side.rows if row.style is not None and read.kind != "style" and "style" in read.says]
    tables: list[tuple[str, list[Row], Callable[[Row], bool]]] = [
        ("efficacy", [row for row in asked if group(row).side == "efficacy"], lambda row: not read.target(row)),
        ("generality", [row for row in asked if group(row).side == "generality"], lambda row: not read.target(row)),
        ("target_rate", asked, read.target),
        ("anchor_rate", anchored, lambda row: read.label(row, side.anchors[row.target])),
        ("specificity", [row for row in kept if shown_before(side, row)] if rival else [], read.wanted),
        ("wanted_rate", kept, read.wanted),
        ("style_rate", styled, lambda row: read.look(row, "style")),
    ]
    return [found for name, rows, hit in tables for found in _rates(side, other, name, _parts(rows, grouped), hit)]


def _rates(
    side: Side, rival: Rival, name: str, parts: Sequence[Part], hit: Callable[[Row], bool]
) -> Iterator[dict[str, Any]]:
    status = side.reading.status
    for group_name, part in parts:
        pairs = _pairs(rival, part, lambda row: status(row) == "ok")
        if not pairs:
            continue
        ours, theirs = [hit(row) for row, _ in pairs], [hit(row) for _, row in pairs]
        found = bootstrap.difference(theirs, ours, [row.prompt for row, _ in pairs],
                                     generator=_rng(name, side, rival, group_name))  # fmt: skip
        p = None if found.p is None else mcnemar_exact(*discordant(theirs, ours))
        yield _difference(name, side.arm, rival.arm, group_name, _open(found.difference), p, side.reading.judge)


def _open(found: Estimate) -> Estimate:
    """Where every pair differs in one way, draws of prompts have no width: then Wilson's interval of the pairs' share."""
    if found.method != bootstrap.METHOD or abs(found.value) < 1:
        return found
    least = wilson(found.n, found.n)[0]
    low, high = (least, 1.0) if found.value > 0 else (-1.0, -least)
    return replace(found, low=low, high=high, method="wilson95 of the pairs that differ")


def score_differences(
    side: Side, space: Space, rival: Rival | None = None, *, grouped: bool = True
) -> list[dict[str, Any]]:
    """The arm's CLIP score minus the rival's, likewise; the p-value is the bootstrap's."""
    words, other = {row.prompt: row.text for row in side.rows}, rival or Rival("base", side.base)
    found = []
    for group_name, part in _parts([row for row in side.rows if space.has(row)], grouped):
        pairs = _pairs(other, part, space.has)
        if not pairs:
            continue
        ours, theirs = (scores(space, list(rows), words).tolist() for rows in zip(*pairs, strict=True))
        compared = bootstrap.difference(theirs, ours, [row.prompt for row, _ in pairs],
                                        generator=_rng("clip_score", side, other, group_name))  # fmt: skip
        found.append(
            _difference("clip_score", side.arm, other.arm, group_name, compared.difference, compared.p, space.judge)
        )
    return found


def with_holm(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same lines with `p_holm`: corrected for the number of lines against the unedited model, or between edits."""
    found = []
    for family in (True, False):
        lines = [one for one in differences if (one["against"] == "base") == family]
        adjusted = iter(holm([one["p"] for one in lines if one["p"] is not None]))
        found += [one | {"p_holm": None if one["p"] is None else next(adjusted)} for one in lines]
    return found


def _parts(rows: Sequence[Row], grouped: bool) -> list[Part]:
    """All rows, then each group where there are several."""
    names = list(dict.fromkeys(row.group for row in rows)) if grouped else []
    return [(None, list(rows)), *((name, [row for row in rows if row.group == name]) for name in names)] if rows else []


def _pairs(rival: Rival, rows: Sequence[Row], valid: Callable[[Row], bool]) -> list[tuple[Row, Row]]:
    found = ((row, rival.rows[row.shot]) for row in rows if row.shot in rival.rows)
    return [(row, other) for row, other in found if valid(row) and valid(other)]


def _by_shot(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    return {row.shot: row for row in rows}


def _rng(name: str, side: Side, rival: Rival, group_name: str | None) -> np.random.Generator:
    against = () if rival.arm == "base" else (rival.arm,)
    return rng("difference", name, side.arm, group_name, *against)


def _difference(name: str, arm: str, against: str, group_name: str | None, found: Estimate, p: float | None,
                judge: str) -> dict[str, Any]:  # fmt: skip
    none = found.method.startswith("none")
    return {
        "metric": name, "arm": arm, "against": against, "group": group_name, "target": None, "value": found.value,
        "low": None if none else found.low, "high": None if none else found.high, "n": found.n, "p": p, "judge": judge,
        "interval": "" if none else found.method,
    }  # fmt: skip
