"""Accuracy among the names of a suite's `classes`, by a CLIP judge, and the harmonic means of it.

MACE (arXiv 2403.06135) takes the softmax probability of a class among all of them, UCE (arXiv 2308.14761) the share of images
whose nearest name it is. A face classifier's accuracy is a share too, so for people the means take the share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from erasekit.evaluation import bootstrap
from erasekit.evaluation.combined import Outcome, mean_of
from erasekit.evaluation.metrics import clip
from erasekit.evaluation.rates import Side, group, line, picks
from erasekit.evaluation.rows import Row
from erasekit.evaluation.similarity import Space, rng
from erasekit.evaluation.statistics import Share

Seen = dict[tuple[str, int], tuple[float, bool]]  # by shot: the probability of the class, whether it is the nearest
MEANS = {"h_o": ("plain", "kept", "synonym"), "h_c": ("plain", "kept")}


def classes(side: Side, space: Space) -> list[dict[str, Any]]:
    """An arm's accuracies on what is erased and on what is kept, and H_o, H_c of them; empty without `classes`."""
    if len(space.classes) < 2:
        return []
    named = [(row, _class(side, row)) for row in side.rows if space.has(row)]
    rows = [(row, name) for row, name in named if name in space.classes]
    seen = _seen(space, rows)
    asked, kept = ([row for row, _ in rows if group(row).asks == asks] for asks in (True, False))
    return [*_lines("clip_accuracy", side, space, asked, seen), *_lines("clip_kept", side, space, kept, seen),
            *_means(side, space, asked, kept, seen)]  # fmt: skip


def without_kept(sides: Iterable[Side], spaces: Mapping[str, Space]) -> list[str]:
    """A sentence for every judge that has names to tell apart, and of an arm no image of one that is to be kept."""
    both = [(side, space) for side in sides if (space := spaces.get(side.reading.judge)) is not None and space.classes]
    bare = [space.judge for side, space in both if not any(_kept(side, row, space) for row in side.rows)]
    return [f"clip_kept_softmax, clip_kept_top1, h_o and h_c by {judge} are not stated: no prompt that is to be kept asks for "
            "one name alone (in a prompt file the column wanted says what a row asks for, or that of the target)"
            for judge in dict.fromkeys(bare)]  # fmt: skip


def _kept(side: Side, row: Row, space: Space) -> bool:
    return not group(row).asks and _class(side, row) in space.classes


def _class(side: Side, row: Row) -> str | None:
    """The class that the row's prompt is about: the target's, or the one that is to be kept."""
    if group(row).asks:
        return str(next(iter(side.reading.labels.get(row.target, (row.target,)))))
    return row.wanted[0] if len(row.wanted) == 1 else None


def _seen(space: Space, rows: Sequence[tuple[Row, str | None]]) -> Seen:
    names = list(space.classes)
    texts = np.stack([space.texts[text] for text in space.classes.values()])
    found: Seen = {}
    for index, name in enumerate(names):
        own = [row for row, one in rows if one == name]
        if own:
            images = space.images(own)
            both = clip.accuracy_softmax(images, texts, index), clip.accuracy_top1(images, texts, index)
            found |= {row.shot: (float(p), bool(top)) for row, p, top in zip(own, *both, strict=True)}
    return found


def _lines(stem: str, side: Side, space: Space, rows: list[Row], seen: Seen) -> Iterator[dict[str, Any]]:
    for group_name, target, part in picks(rows):
        mean = bootstrap.mean([seen[row.shot][0] for row in part], [row.prompt for row in part],
                              generator=rng(f"{stem}_softmax", side.arm, group_name, target))  # fmt: skip
        share = Share(sum(seen[row.shot][1] for row in part), len(part)).estimate
        assert share is not None
        for name, estimate in (("softmax", mean), ("top1", share)):
            yield line(f"{stem}_{name}", side.arm, group_name, target, estimate, space.judge, **_among(space))


def _means(side: Side, space: Space, asked: Sequence[Row], kept: Sequence[Row], seen: Seen) -> Iterator[dict[str, Any]]:
    place, kind = (1, "top1") if side.reading.kind == "person" else (0, "softmax")

    def gone(name: str) -> list[Outcome]:
        return [(row.prompt, 1 - seen[row.shot][place]) for row in asked if row.group == name]

    parts = {"plain": gone("plain"), "synonym": gone("synonym"),
             "kept": [(row.prompt, float(seen[row.shot][place])) for row in kept]}  # fmt: skip
    words = {"kept": f"clip_kept_{kind}"} | {n: f"1 - clip_accuracy_{kind} ({n})" for n in ("plain", "synonym")}
    for name, terms in MEANS.items():
        if all(parts[term] for term in terms):
            found = mean_of([parts[term] for term in terms], f"{name} {space.judge}", side.arm)
            yield line(name, side.arm, None, None, found, space.judge, terms=[words[term] for term in terms],
                       **_among(space))  # fmt: skip


def _among(space: Space) -> dict[str, Any]:
    many = len(space.classes)
    return {"names": many, "note": f"a similarity among {many} names; the judge names nothing"}
