"""How far an arm's images are from the unedited model's at equal prompts and seeds: image by image, and as sets.

In the space of a CLIP judge all of it comes from the rows. LPIPS and Inception's features need pixels: where the user
gives their weights, `measures.py` has computed them after drawing. Every name holds its space; none stands in for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from erasekit.errors import EraseKitError
from erasekit.evaluation import bootstrap
from erasekit.evaluation.metrics import clip, distribution, eraseeval
from erasekit.evaluation.metrics.distribution import Distance, Features
from erasekit.evaluation.rates import Side, group, line, picks
from erasekit.evaluation.rows import Row
from erasekit.evaluation.similarity import Space, rng
from erasekit.evaluation.statistics import Estimate

Lines = Iterator[dict[str, Any]]
Pair = tuple[Row, Row]
APART = ("unrelated", "style")  # the groups whose images should be as before
ENDS = {"e": True, "u": False}  # on the target's prompts, on the others
DIGITS = 9  # of distances of sets: matrix products differ in the last bits from machine to machine


def distances(side: Side, space: Space) -> Lines:
    """An arm's lines of `metrics` from one CLIP judge; none for the unedited model, which they are measured from."""
    both = pairs(side, space)
    if not both:
        return
    ours, base = (space.images(rows) for rows in zip(*both, strict=True))
    apart = np.maximum(0.0, np.round(1 - clip.cosines(ours, base), 12)).tolist()
    values = {row.shot: value for (row, _), value in zip(both, apart, strict=True)}
    yield from changes(side, "image_distance", space.judge, space.judge, values, lambda part: _ends(side, space, part))
    kept = [(row, before) for row, before in both if row.group in APART]
    for kind in distribution.KEYS:
        if kept and not distribution.refusal(kind, len(kept), ours.shape[1]):
            yield _set(side, kind, space, kept)


def measured(side: Side, measures: Mapping[str, Any]) -> Lines:
    """An arm's lines from `measures.json`: LPIPS by pair of images, FID and KID on Inception's features, and what an edit
    changes in sentences."""
    if side.arm == "base":
        return
    if lpips := measures.get("lpips"):
        yield from changes(
            side, "lpips", lpips["name"].removeprefix("LPIPS-"), lpips["name"], _looked_up(side, lpips["pairs"])
        )
    inception = measures.get("inception", {})
    for one in inception.get("distances", ()):
        if one["arm"] == side.arm:
            yield distance_line(
                one["metric"], side.arm, inception["name"], one["value"], one["n"], one["sd"], one["note"]
            )
    yield from _sentences(side.arm, measures.get("text", {}).get(side.arm, {}))


def omitted(sides: Iterable[Side], spaces: Mapping[str, Space], measures: Mapping[str, Any]) -> list[str]:
    """A sentence for every distance that is not stated for want of images, and for every edit without a text side."""
    said = []
    for side in sides:
        if (space := spaces.get(side.reading.judge)) is None:
            continue
        kept = [(row, before) for row, before in pairs(side, space) if row.group in APART]
        width = space.images([kept[0][0]]).shape[1] if kept else 0
        for kind in distribution.KEYS if kept else ():
            if why := distribution.refusal(kind, len(kept), width):
                said.append(f"{distribution.key(kind, space.judge)} is not stated: {why}")
    said += measures.get("inception", {}).get("omitted", ())
    said += [f"text_residual and text_drift of {one['label']} are not stated: {one['why']}"
             for one in measures.get("text", {}).values() if "why" in one]  # fmt: skip
    return [*dict.fromkeys(said)]


def pairs(side: Side, space: Space) -> list[Pair]:
    """The arm's images beside the unedited model's of the same prompt and seed, both embedded; none for that itself."""
    if side.arm == "base":
        return []
    both = ((row, side.base[row.shot]) for row in side.rows if row.shot in side.base)
    return [(row, before) for row, before in both if space.has(row) and space.has(before)]


def _sentences(arm: str, found: Mapping[str, Any]) -> Lines:
    """Residual and drift of one edit; none where there is a reason why not."""
    if "residual" not in found:
        return
    apart = f"; {found['skipped']} of its parts act elsewhere and are in no number" if found["skipped"] else ""
    notes = {"text_residual": (found["residual"], found["pairs"], f"{found['unedited']:.3g} without the edit{apart}"),
             "text_drift": (found["drift"], found["kept"], f"on prompts that ask for something else{apart}")}  # fmt: skip
    for name, (value, n, note) in notes.items():
        if n:
            yield line(name, arm, None, None, Estimate(value, value, value, n, "none: a ratio"), "", note=note)


def comparable(row: Row, before: Row) -> bool:
    """Whether both images are pictures that every judge could judge."""
    return row.status == before.status == "ok"


def pair_key(row: Row, before: Row) -> str:
    """How `measures.json` knows a pair: by the images themselves."""
    return f"{before.sha256}-{row.sha256}"


def changes(side: Side, stem: str, space: str, judge: str, values: Mapping[tuple[str, int], float],
            ends: Callable[[Sequence[Row]], dict[str, float | None]] = lambda part: {}) -> Lines:  # fmt: skip
    """Mean distances by group and target, with intervals over prompts: `stem`_e on the target's prompts, _u on others.
    `ends`: floor and ceiling of a part of the rows."""
    for end, asks in ENDS.items():
        name = f"{stem}_{end}({space})"
        rows = [row for row in side.rows if row.shot in values and group(row).asks == asks]
        for group_name, target, part in picks(rows):
            found = bootstrap.mean([values[row.shot] for row in part], [row.prompt for row in part],
                                   generator=rng(name, side.arm, group_name, target))  # fmt: skip
            yield line(name, side.arm, group_name, target, found, judge, **ends(part))


def _ends(side: Side, space: Space, part: Sequence[Row]) -> dict[str, float | None]:
    """How far the unedited model's images of these prompts are from each other: of other prompts, and of other seeds."""
    shown: dict[str, list[Row]] = {}
    for row in part:
        shown.setdefault(row.prompt, []).append(side.base[row.shot])
    groups = [space.images(rows) for rows in shown.values()]
    again = eraseeval.ceilings(groups)
    return {"floor": round(1 - eraseeval.floor(groups), DIGITS) if len(groups) > 1 else None,
            "ceiling": None if again is None else round(1 - again, DIGITS)}  # fmt: skip


def set_distance(kind: str, ours: Features, base: Features, arm: str) -> Distance:
    """The distance of that kind; KID's subsets are drawn by a generator of its own for every arm."""
    if kind == "KID":
        return distribution.kid(ours, base, generator=rng("kid", arm, None, None))
    return {"Fréchet": distribution.frechet, "CMMD": distribution.cmmd}[kind](ours, base)


def distance_line(name: str, arm: str, judge: str, value: float, n: int, sd: float | None, note: str,
                  **more: Any) -> dict[str, Any]:  # fmt: skip
    """One line of `metrics` for a distance of two sets, of an arm's n images; it has no interval."""
    value = round(value, DIGITS)
    why = "none: sd given" if sd is not None else "none: a distance of sets"
    more |= {"note": note} | ({} if sd is None else {"sd": round(sd, DIGITS)})
    return line(name, arm, None, None, Estimate(value, value, value, n, why), judge, **more)


def _looked_up(side: Side, known: Mapping[str, float]) -> dict[tuple[str, int], float]:
    both = ((row, side.base[row.shot]) for row in side.rows if row.shot in side.base)
    keys = {row.shot: pair_key(row, before) for row, before in both if comparable(row, before)}
    if any(key not in known for key in keys.values()):
        raise EraseKitError("measures.json is of other images than these rows: run the same `erasekit evaluate` again")
    return {shot: known[key] for shot, key in keys.items()}


def _set(side: Side, kind: str, space: Space, kept: list[Pair]) -> dict[str, Any]:
    ours, base = (Features(space.judge, space.images(rows)) for rows in zip(*kept, strict=True))
    found = set_distance(kind, ours, base, side.arm)
    return distance_line(distribution.key(kind, space.judge), side.arm, space.judge, found.value, len(kept), found.sd,
                         found.note)  # fmt: skip
