"""What a CLIP judge's embeddings say of images and texts: scores, accuracy, and the in-prompt score of Six-CD (arXiv
2406.14855): the image of a prompt that names the concept against the text of its twin without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from erasekit.evaluation import bootstrap
from erasekit.evaluation.metrics import clip
from erasekit.evaluation.rates import Side, group, line, picks
from erasekit.evaluation.rows import Row
from erasekit.evaluation.statistics import Share

Vectors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Space:
    """A CLIP judge: its texts' unit vectors by text, the anchors' names by target, the twins by prompt id, and the texts of
    the names that compete in its accuracy."""

    judge: str
    texts: Vectors
    anchors: Mapping[str, str]
    twins: Mapping[str, str]
    style: bool
    classes: Mapping[str, str] = field(default_factory=dict)

    def images(self, rows: Sequence[Row]) -> np.ndarray:
        """The images' unit vectors (n, d)."""
        return np.stack([clip.decode(row.judgements[self.judge]["embedding"]) for row in rows])

    def has(self, row: Row) -> bool:
        """Whether the judge embedded this image."""
        return row.judgements.get(self.judge, {}).get("status") == "ok"

    def pair(self, target: str) -> tuple[str, str]:
        """The two texts that compete in the accuracy."""
        return clip.accuracy_texts(target, self.anchors[target], style=self.style)


def similarities(side: Side, space: Space) -> list[dict[str, Any]]:
    """An arm's lines of `metrics` from one CLIP judge."""
    rows = [row for row in side.rows if space.has(row)]
    if not rows:
        return []
    return [*_scores("clip_score", side, space, rows, {row.prompt: row.text for row in rows}),
            *_scores("in_prompt", side, space, [r for r in rows if r.prompt in space.twins and group(r).asks], space.twins),
            *_accuracy(side, space, [r for r in rows if r.target in space.anchors and group(r).asks])]  # fmt: skip


def scores(space: Space, rows: Sequence[Row], words: Mapping[str, str]) -> np.ndarray:
    """The CLIP score (n,) of each image with the words that go with its prompt."""
    return clip.score(space.images(rows), _texts(space, [words[row.prompt] for row in rows]))


def _scores(name: str, side: Side, space: Space, rows: list[Row], words: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for group_name, target, part in picks(rows):
        prompts = [row.prompt for row in part]
        found = bootstrap.mean(scores(space, part, words).tolist(), prompts,
                               generator=rng(name, side.arm, group_name, target))  # fmt: skip
        texts = _texts(space, [words[p] for p in prompts])
        floor = clip.floor(space.images(part), texts, prompts) if len(set(prompts)) > 1 else None
        ceiling = (_twins if name == "in_prompt" else _own)(side, space, part, words)
        yield line(name, side.arm, group_name, target, found, space.judge, floor=floor, ceiling=ceiling)


def _own(side: Side, space: Space, part: Sequence[Row], words: Mapping[str, str]) -> float | None:
    """The unedited model's score on the same prompts and seeds."""
    base = _unedited(side, space, part)
    return float(scores(space, base, words).mean()) if base else None


def _twins(side: Side, space: Space, part: Sequence[Row], words: Mapping[str, str]) -> float | None:
    """The unedited model's images of the twins, each with its own text; None where a twin was not drawn."""
    wanted = {words[row.prompt] for row in part}
    base = [row for row in side.base.values() if row.text in wanted and space.has(row)]
    if {row.text for row in base} != wanted:
        return None
    return float(scores(space, base, {row.prompt: row.text for row in base}).mean())


def _accuracy(side: Side, space: Space, rows: list[Row]) -> Iterator[dict[str, Any]]:
    hits, base = _nearer(space, rows), _nearer(space, _unedited(side, space, rows))
    anchored = [row for row in side.anchored if row.target in space.anchors and space.has(row)]
    apart = _nearer(space, anchored)
    for group_name, target, part in picks(rows):
        found = Share(sum(hits[row.shot] for row in part), len(part)).estimate
        targets = {row.target for row in part}
        ends = {"floor": _mean([apart[row.shot] for row in anchored if row.target in targets]),
                "ceiling": _mean([base[row.shot] for row in part if row.shot in base])}  # fmt: skip
        yield line("clip_accuracy", side.arm, group_name, target, found, space.judge, **ends)


def _nearer(space: Space, rows: Sequence[Row]) -> dict[tuple[str, int], bool]:
    """By shot, whether the image is nearer to its target's text than to the anchor's."""
    hits = {}
    for row in rows:
        first, second = (space.texts[text] for text in space.pair(row.target))
        hits[row.shot] = bool(clip.accuracy(space.images([row]), first, second)[0])
    return hits


def _unedited(side: Side, space: Space, rows: Sequence[Row]) -> list[Row]:
    return [side.base[row.shot] for row in rows if row.shot in side.base and space.has(side.base[row.shot])]


def _mean(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def rng(*names: object) -> np.random.Generator:
    """A generator of its own for every number, so that none depends on which others are computed."""
    return np.random.default_rng(list("|".join(map(str, names)).encode()))


def _texts(space: Space, captions: Sequence[str]) -> np.ndarray:
    return np.stack([space.texts[text] for text in clip.texts_with_prefix(captions)])
