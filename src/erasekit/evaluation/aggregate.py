"""From rows to results: every number of `results.json` is a function of `rows.jsonl`, `run.json` and `texts.json`.

`run.json` (the head) says what was run; `texts.json` holds the vectors of the texts in the space of each CLIP judge, so
that nothing has to be loaded or drawn to compute an aggregate again, on another machine and years later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from erasekit.errors import EraseKitError
from erasekit.evaluation import rows as row_file
from erasekit.evaluation.differences import means, rate_differences, score_differences, with_holm
from erasekit.evaluation.metrics import clip, nudity
from erasekit.evaluation.rates import Side, group, line, shares
from erasekit.evaluation.results import SCHEMA
from erasekit.evaluation.rows import Row
from erasekit.evaluation.similarity import Space, similarities
from erasekit.evaluation.statistics import Estimate
from erasekit.evaluation.verdicts import Reading

HEAD, TEXTS = "run.json", "texts.json"
RARE = 0.1  # a base rate below this leaves an edit nothing to do
STATUSES = ("ok", "failed", "invalid")


def aggregate(rows: Sequence[Row], head: Mapping[str, Any], texts: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The results document of these rows (schema: `results.py`); the same rows give the same document, bit for bit.

    `head`: what `runner` writes into `run.json`. `texts`: CLIP judge -> text -> vector (base64, as in the rows).
    """
    sides = list(_sides(rows, head))
    spaces = {judge: _space(judge, words, head) for judge, words in texts.items()}
    metrics, differences = [], []
    for side in sides:
        judge, base = side.reading.judge, side.arm == "base"
        if side.reading.decides(side.rows):
            metrics += shares(side) + means(side)
            differences += [] if base else rate_differences(side)
        if judge in spaces:
            space = _anchored(spaces[judge], head, side.arm)
            metrics += similarities(side, space)
            differences += [] if base else score_differences(side, space)
        metrics += _boxes(side)
    return {
        "erasekit_results": SCHEMA, "created_by": head["created_by"], "suite": head["suite"], "model": head["model"],
        "arms": [arm | {"seconds": None, "images": _count(rows, arm["arm"])} for arm in head["arms"]],
        "counts": {arm["arm"]: _counts(rows, arm["arm"]) for arm in head["arms"]},
        "metrics": metrics, "differences": with_holm(differences), "rows": row_file.FILE, "labels": head["labels"],
        "warnings": [*head["warnings"], *_warnings(rows, sides)],
        **({"published": head["published"]} if head.get("published") else {}),
    }  # fmt: skip


def recompute(folder: str | Path) -> dict[str, Any]:
    """The results of a folder, computed again from its rows; equal to its `results.json` bit for bit.

    No model, judge or image is read. Raises `EraseKitError` naming the file that is missing or damaged.
    """
    place = Path(folder)
    head, texts = (_object(place / name) for name in (HEAD, TEXTS))
    return aggregate(row_file.read(place / row_file.FILE), head, texts)


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
    for arm in head["arms"]:
        own = [row for row in rows if row.arm == arm["arm"]]
        anchors = {target: found["label"] for target, found in _anchors(head, arm["arm"]).items() if found["label"]}
        for judge in head["suite"]["judges"]:
            yield Side(arm["arm"], own, base, Reading(judge["name"], head["labels"], head["suite"]["kind"]), anchors)


def _anchors(head: Mapping[str, Any], arm: str) -> dict[str, dict[str, Any]]:
    """target -> {"name", "label"} of the anchor; an arm without its own takes those of the edits, the first first."""
    merged: dict[str, dict[str, Any]] = {}
    for pairs in head["anchors"].values():
        merged = pairs | merged
    return head["anchors"].get(arm, merged)


def _space(judge: str, words: Mapping[str, str], head: Mapping[str, Any]) -> Space:
    vectors = {text: clip.decode(stored) for text, stored in words.items()}
    return Space(judge, vectors, {}, head["twins"], head["suite"]["kind"] == "style")


def _anchored(space: Space, head: Mapping[str, Any], arm: str) -> Space:
    names = {target: found["name"] for target, found in _anchors(head, arm).items() if found["name"]}
    return Space(space.judge, space.texts, names, space.twins, space.style)


def _boxes(side: Side) -> Iterator[dict[str, Any]]:
    """Counts of a detector of nudity, as the field prints them: boxes and images, nine labels and the core four."""
    good = [row.judgements[side.reading.judge] for row in side.rows if side.reading.status(row) == "ok"]
    if not good or not all("boxes" in said for said in good) or "nudenet" not in side.reading.judge:
        return
    found = nudity.count([said["boxes"] for said in good])
    numbers = {"nudity_boxes(nine)": found.total, "nudity_boxes(core four)": found.core,
               "nudity_images(nine)": found.any_image, "nudity_images(core four)": found.any_core}  # fmt: skip
    numbers |= {f"nudity_boxes({label})": count for label, count in found.boxes.items()}
    for name, count in numbers.items():
        value = float(count)
        yield line(name, side.arm, None, None, Estimate(value, value, value, found.of, "none: a count"),
                   side.reading.judge, threshold=found.threshold)  # fmt: skip


def _count(rows: Sequence[Row], arm: str) -> int:
    return sum(row.arm == arm for row in rows)


def _counts(rows: Sequence[Row], arm: str) -> dict[str, int]:
    return {status: sum(row.arm == arm and row.status == status for row in rows) for status in STATUSES}


def _warnings(rows: Sequence[Row], sides: Sequence[Side]) -> Iterator[str]:
    """What a reader must see: images that could not be judged, and groups in which the base has nothing to lose."""
    for arm in dict.fromkeys(side.arm for side in sides):
        counts = _counts(rows, arm)
        if counts["failed"] or counts["invalid"]:
            yield (f"{arm}: {counts['failed']} images could not be judged and {counts['invalid']} are black or constant; "
                   "they are in no rate, and the pessimistic rates count them against the arm")  # fmt: skip
    for side in sides:
        if side.arm == "base" and side.reading.decides(side.rows):
            yield from _rare(side)


def _rare(side: Side) -> Iterator[str]:
    read = side.reading
    for name in dict.fromkeys(row.group for row in side.rows):
        part = [row for row in side.rows if row.group == name and read.status(row) == "ok"]
        asks = bool(part) and group(part[0]).asks
        part = part if asks else [row for row in part if read.asks(row)]
        hits = sum(map(read.target if asks else read.wanted, part))
        if part and hits < RARE * len(part):
            what = "the target" if asks else "what is asked for"
            yield (f"{read.judge} finds {what} in {hits} of {len(part)} images of the unedited model in the group {name}: "
                   "what is measured there says little about an edit")  # fmt: skip
