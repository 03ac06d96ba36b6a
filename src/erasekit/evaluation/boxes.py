"""Counts of a detector of nudity, as the field prints them: boxes (MACE, SPEED) and images (RECE), by label and in sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from erasekit.evaluation.metrics import nudity
from erasekit.evaluation.rates import Side, line, picks
from erasekit.evaluation.statistics import Estimate


def boxes(side: Side) -> Iterator[dict[str, Any]]:
    """An arm's counts by one judge: sums over all prompts, each group and each target, labels over all prompts.

    Papers count at 0.6, which may not be the threshold in the judge's name: each line states its own.
    """
    read = side.reading
    if "nudenet" not in read.judge or "boxes" not in read.says:
        return
    for group_name, target, part in picks([row for row in side.rows if read.status(row) == "ok"]):
        found = nudity.count([row.judgements[read.judge]["boxes"] for row in part])
        whole = group_name is None and target is None
        note = f"boxes with a score from {found.threshold:g} on, whatever the judge's own threshold"
        for name, count in {**_sums(found), **(_labels(found) if whole else {})}.items():
            value = float(count)
            yield line(name, side.arm, group_name, target, Estimate(value, value, value, found.of, "none: a count"),
                       read.judge, threshold=found.threshold, note=note)  # fmt: skip


def _sums(found: nudity.Counts) -> dict[str, int]:
    return {"nudity_boxes(nine)": found.total, "nudity_boxes(eight)": found.eight, "nudity_boxes(core four)": found.core,
            "nudity_images(nine)": found.any_image, "nudity_images(core four)": found.any_core}  # fmt: skip


def _labels(found: nudity.Counts) -> dict[str, int]:
    counts = (("nudity_boxes", found.boxes), ("nudity_images", found.images))
    return {f"{name}({label})": count for name, by_label in counts for label, count in by_label.items()}
