"""From rows to results: every number of `results.json` is a function of `rows.jsonl`, `run.json`, `texts.json` and, where
there is one, `measures.json`.

`run.json` (the head) says what was run; `texts.json` holds the vectors of the texts in the space of each CLIP judge, so
that nothing has to be loaded or drawn to compute an aggregate again, on another machine and years later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from erasekit.errors import EraseKitError
from erasekit.evaluation import distances, measures, real_distances
from erasekit.evaluation import rows as row_file
from erasekit.evaluation.boxes import boxes
from erasekit.evaluation.canvas import canvas
from erasekit.evaluation.cautions import cautions
from erasekit.evaluation.classes import classes, without_kept
from erasekit.evaluation.combined import means
from erasekit.evaluation.criteria import criteria
from erasekit.evaluation.differences import Rival, between, rate_differences, score_differences, with_holm
from erasekit.evaluation.metrics import clip
from erasekit.evaluation.rates import Side, shares
from erasekit.evaluation.real_distances import Fixed
from erasekit.evaluation.results import SCHEMA
from erasekit.evaluation.rows import Row
from erasekit.evaluation.similarity import Space, similarities
from erasekit.evaluation.verdicts import Reading

HEAD, TEXTS = "run.json", "texts.json"
STATUSES = ("ok", "failed", "invalid")


def aggregate(rows: Sequence[Row], head: Mapping[str, Any], texts: Mapping[str, Mapping[str, str]],
              measured: Mapping[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    """The results document of these rows (schema: `results.py`); the same rows give the same document, bit for bit.

    `head`: what `runner` writes into `run.json`. `texts`: CLIP judge -> text -> vector (base64, as in the rows).
    `measured`: what `measures.json` holds, where the user gave weights for what needs the pixels of two arms.
    """
    found = measured or {}
    sides = list(_sides(rows, head))
    spaces = {judge: _space(judge, words, head) for judge, words in texts.items()}
    real = real_distances.fixed(spaces, head, found)
    metrics = [one for side in sides for one in _judged(side, spaces, head, real)]
    metrics += [one for own in _by_arm(sides) for one in _whole(own, spaces, found)]
    differences = [one for side in sides if side.arm != "base" for one in _compared(side, spaces, head)]
    differences += [one for judge in head["suite"]["judges"] for one in _edits(sides, judge["name"], spaces, head)]
    counts = {arm["arm"]: _counts(rows, arm["arm"]) for arm in head["arms"]}
    labels = {arm["arm"]: arm["label"] for arm in head["arms"]}
    optional = {"published": head.get("published"), "extractors": head.get("extractors"), "attacks": head.get("attacks"),
                "real": head.get("real"),
                "omitted": [*distances.omitted(sides, spaces, found), *real_distances.omitted(sides, spaces, real, found),
                            *without_kept(sides, spaces)]}  # fmt: skip
    return {
        "erasekit_results": SCHEMA, "created_by": head["created_by"], "suite": head["suite"], "model": head["model"],
        "arms": [arm | {"seconds": None, "images": _count(rows, arm["arm"])} for arm in head["arms"]],
        "counts": counts, "metrics": metrics, "differences": with_holm(differences), "rows": row_file.FILE,
        "labels": head["labels"], "warnings": [*head["warnings"], *cautions(labels, counts, sides)],
        **{name: value for name, value in optional.items() if value},
    }  # fmt: skip


def _judged(side: Side, spaces: Mapping[str, Space], head: Mapping[str, Any],
            real: Mapping[str, Fixed]) -> Iterator[dict[str, Any]]:  # fmt: skip
    """What one judge says of one arm."""
    if side.reading.decides:
        yield from [*shares(side), *means(side), *canvas(side)]
    if (space := spaces.get(side.reading.judge)) is not None:
        own = _of_arm(space, head, side.arm)
        yield from [*similarities(side, own), *classes(side, own)]
        yield from distances.distances(side, space)
        yield from real_distances.distances(side, space, real.get(space.judge))
    yield from boxes(side)


def _whole(own: Sequence[Side], spaces: Mapping[str, Space], found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What takes several judges, or pixels: the criteria in every space by the deciding judge, and the measures."""
    yield from distances.measured(own[0], found)
    yield from real_distances.measured(own[0], found)
    deciding = next((side for side in own if side.reading.decides), None)
    if deciding is not None:
        yield from (one for space in spaces.values() for one in criteria(deciding, space))


def _compared(side: Side, spaces: Mapping[str, Space], head: Mapping[str, Any], rival: Rival | None = None, *,
              grouped: bool = True) -> list[dict[str, Any]]:  # fmt: skip
    """The paired differences of one arm by one judge: to the unedited model, or to another edit."""
    found = rate_differences(side, rival, grouped=grouped) if side.reading.decides else []
    space = spaces.get(side.reading.judge)
    return found + (score_differences(side, _of_arm(space, head, side.arm), rival, grouped=grouped) if space else [])


def _edits(
    sides: Sequence[Side], judge: str, spaces: Mapping[str, Space], head: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Edit against edit, every pair once."""
    edits = {arm["arm"] for arm in head["arms"] if arm["kind"] == "edit"}
    own = [side for side in sides if side.arm in edits and side.reading.judge == judge]
    for side, rival, grouped in between(own):
        yield from _compared(side, spaces, head, rival, grouped=grouped)


def _by_arm(sides: Sequence[Side]) -> list[list[Side]]:
    return [list(own) for _, own in groupby(sides, key=lambda side: side.arm)]


def recompute(folder: str | Path) -> dict[str, Any]:
    """The results of a folder, computed again from its rows; equal to its `results.json` bit for bit.

    No model, judge or image is read. Raises `EraseKitError` naming the file that is missing or damaged.
    """
    place = Path(folder)
    head, texts = (_object(place / name) for name in (HEAD, TEXTS))
    if head.get("measured", head.get("extractors")) and not (place / measures.FILE).exists():
        raise EraseKitError(f"{place / measures.FILE} does not exist: run the same `erasekit evaluate` again")
    return aggregate(row_file.read(place / row_file.FILE), head, texts, measures.read(place))


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EraseKitError(
            f"cannot read {path}: run the same `erasekit evaluate` again, it redoes what is damaged"
        ) from error
    return value


def _sides(rows: Sequence[Row], head: Mapping[str, Any]) -> Iterator[Side]:
    """Every arm with every judge, the deciding judge first in each arm."""
    base = {row.shot: row for row in rows if row.arm == "base"}
    suite = head["suite"]
    readings = [Reading.of(judge, rows, head["labels"], suite["kind"]) for judge in suite["judges"]]
    for arm in head["arms"]:
        own = [row for row in rows if row.arm == arm["arm"]]
        noise = {row.shot: row for row in rows if row.arm == f"random:{arm['arm'].removeprefix('edit:')}"}
        anchors = _anchors(head, arm["arm"])
        anchored = _anchored(rows, base, {target: found["arm"] for target, found in anchors.items()})
        words = {target: found["label"] for target, found in anchors.items() if found["label"]}
        for read in readings:
            named = {target: label for target, word in words.items() if (label := read.name(word)) is not None}
            yield Side(arm["arm"], own, base, read, named, anchored, noise)


def _anchors(head: Mapping[str, Any], arm: str) -> dict[str, dict[str, Any]]:
    """target -> {"name", "label"} of the anchor, and the `arm` that is asked for it; an arm without its own anchors takes those
    of the edits, the first first."""
    own = head["anchors"]
    merged: dict[str, dict[str, Any]] = {}
    for name, pairs in ({arm: own[arm]} if arm in own else own).items():
        merged = {target: found | {"arm": name} for target, found in pairs.items()} | merged
    return merged


def _anchored(rows: Sequence[Row], base: Mapping[tuple[str, int], Row], arms: Mapping[str, str]) -> list[Row]:
    """The unedited model's images of the anchors, by the prompts that ask for them in a target's place. `arms`: target -> the
    arm that is asked for its anchor: of another edit's anchor, the unedited model has images as well."""
    return [base[row.shot] for row in rows
            if row.group == "anchor" and row.arm == arms.get(row.target) and row.shot in base]  # fmt: skip


def _space(judge: str, words: Mapping[str, str], head: Mapping[str, Any]) -> Space:
    vectors = {text: clip.decode(stored) for text, stored in words.items()}
    return Space(judge, vectors, {}, head["twins"], head["suite"]["kind"] == "style", head.get("classes", {}))


def _of_arm(space: Space, head: Mapping[str, Any], arm: str) -> Space:
    """The space with the anchors and the competing names of one arm, which do not depend on what else was run."""
    names = {target: found["name"] for target, found in _anchors(head, arm).items() if found["name"]}
    rivals = head.get("rivals", {}).get(arm, space.classes)
    return replace(space, anchors=names, classes={name: space.classes[name] for name in rivals})


def _count(rows: Sequence[Row], arm: str) -> int:
    return sum(row.arm == arm for row in rows)


def _counts(rows: Sequence[Row], arm: str) -> dict[str, int]:
    return {status: sum(row.arm == arm and row.status == status for row in rows) for status in STATUSES}
