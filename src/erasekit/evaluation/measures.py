"""What needs the pixels of two arms at once: LPIPS, and distances in Inception's features, with weights the user gives.
(What needs no pixels at all, and is kept in the same file, is in `text_changes`; what real images give, in `real_measures`.)

A judge sees one image and writes into its row. These look at pairs of images after all are drawn; what they find stands
in `measures.json`, LPIPS under the hashes of both images, so that the aggregates need no pixels and no weights. It is
kept in `measured/` too, a batch or an arm at a time and for all weights that were ever given, and never computed twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erasekit.errors import EraseKitError
from erasekit.evaluation import drawing
from erasekit.evaluation.cache import Store
from erasekit.evaluation.distances import APART, DIGITS, Pair, comparable, pair_key, set_distance
from erasekit.evaluation.metrics import distribution
from erasekit.evaluation.metrics.distribution import Features
from erasekit.evaluation.rows import Row
from erasekit.evaluation.shards import digest

if TYPE_CHECKING:
    from torch import Tensor

    from erasekit.evaluation.metrics.inception import Inception
    from erasekit.evaluation.metrics.perceptual import Lpips
    from erasekit.evaluation.plan import Plan
    from erasekit.methods import Progress

FILE = "measures.json"
BATCH = 32  # images, or pairs of them, whose pixels are held at once
KINDS = ("Fréchet", "KID")
VERSION = 1  # raise it when the same images and weights give other numbers than before


@dataclass(frozen=True)
class Tools:
    """The extractors that the user gave weights for."""

    lpips: Lpips | None = None
    inception: Inception | None = None

    @property
    def names(self) -> list[dict[str, str]]:
        """What the results say of them."""
        return [said(tool) for tool in (self.lpips, self.inception) if tool is not None]


@dataclass
class Count:
    """Progress in steps: each call says how many more are done."""

    progress: Progress | None
    total: int
    what: str
    done: int = 0

    def __call__(self, more: int) -> None:
        """Say it to whom it concerns, if to anybody."""
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total, self.what)


def tools(plan: Plan) -> Tools:
    """The plan's extractors, loaded; `ModelError` in one line where a file or a package is missing."""
    from erasekit.evaluation.metrics.inception import Inception
    from erasekit.evaluation.metrics.perceptual import Lpips

    return Tools(Lpips(plan.lpips) if plan.lpips else None, Inception(plan.inception) if plan.inception else None)


def measure(folder: Path, rows: Sequence[Row], given: Tools, *, progress: Progress | None = None) -> dict[str, Any]:
    """What `measures.json` holds for these rows, whose images lie in the folder; {} without an extractor.

    What an earlier call measured with the same weights, and be it one that was ended, is not measured again.
    """
    found: dict[str, Any] = {}
    both, store = list(_pairs(rows)), Store(folder)
    with drawing.one_thread("cpu"):
        if given.lpips is not None:
            found["lpips"] = said(given.lpips) | {"pairs": _lpips(store, both, given.lpips, progress)}
        if given.inception is not None:
            found["inception"] = said(given.inception) | _sets(store, both, given.inception, progress)
    return found


def read(folder: Path) -> dict[str, Any]:
    """The folder's `measures.json`; {} where there is none. `EraseKitError` in one line where it is damaged."""
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EraseKitError(f"cannot read {path}: delete it and run the same `erasekit evaluate` again") from error


def _pairs(rows: Sequence[Row]) -> Iterator[Pair]:
    base = {row.shot: row for row in rows if row.arm == "base"}
    for row in rows:
        if row.arm != "base" and row.shot in base and comparable(row, base[row.shot]):
            yield row, base[row.shot]


def _by_arm(both: Sequence[Pair]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in both:
        found.setdefault(pair[0].arm, []).append(pair)
    return found


def said(tool: Lpips | Inception) -> dict[str, Any]:
    """What the results say of an extractor: its name and the hash of its weights."""
    return {"name": tool.name, "weights_sha256": tool.weights_sha256}


def _lpips(store: Store, both: Sequence[Pair], lpips: Lpips, progress: Progress | None) -> dict[str, float]:
    """Batches are cut in each arm by itself, so that they are the same ones where an arm is added."""
    found: dict[str, float] = {}
    count = Count(progress, len(both), "pairs of images")
    for own in _by_arm(both).values():
        for start in range(0, len(own), BATCH):
            part = own[start : start + BATCH]
            found |= _batch(store, {pair_key(*pair): pair for pair in part}, lpips)
            count(len(part))
    return dict(sorted(found.items()))


def _batch(store: Store, pairs: Mapping[str, Pair], lpips: Lpips) -> dict[str, float]:
    of = digest([VERSION, "lpips", said(lpips), list(pairs)])
    known = store.kept(of)
    if known is not None:
        return known
    after, before = (_images(store.folder, [pair[side] for pair in pairs.values()]) for side in (0, 1))
    found = {key: round(float(value), 6) for key, value in zip(pairs, lpips(before, after), strict=True)}
    store.keep(of, found)
    return found


def _sets(store: Store, both: Sequence[Pair], inception: Inception, progress: Progress | None) -> dict[str, Any]:
    """FID and KID of every arm's unrelated images to the unedited model's; reasons where there are too few."""
    arms = _by_arm([pair for pair in both if pair[0].group in APART])
    omitted = [f"{distribution.key(kind, inception.name)} is not stated: {why}" for own in arms.values() for kind in KINDS
               if (why := distribution.refusal(kind, len(own), inception.width))]  # fmt: skip
    enough = {arm: own for arm, own in arms.items() if len(own) >= distribution.LEAST}
    distances = [one for lines in _walked(store, enough, inception, progress) for one in lines]
    return {"distances": distances, "omitted": list(dict.fromkeys(omitted))}


def _walked(store: Store, arms: Mapping[str, list[Pair]], inception: Inception,
            progress: Progress | None) -> list[list[dict[str, Any]]]:  # fmt: skip
    """Each arm's distances, kept when it is done. The unedited images are walked once for all arms that are not."""
    weights = said(inception)
    of = {arm: digest([VERSION, "sets", weights, arm, [pair_key(*pair) for pair in own]]) for arm, own in arms.items()}
    found = {arm: store.kept(key) for arm, key in of.items()}
    todo = {arm: own for arm, own in arms.items() if found[arm] is None}
    before = {row.shot: row for own in todo.values() for _, row in own}
    count = Count(progress, len(before) + sum(map(len, todo.values())), "features of images")
    base = dict(zip(before, features(store.folder, [*before.values()], inception, count), strict=True)) if todo else {}
    for arm, own in todo.items():
        ours = features(store.folder, [row for row, _ in own], inception, count)
        found[arm] = _distances(arm, ours, np.stack([base[row.shot] for _, row in own]), inception)
        store.keep(of[arm], found[arm])
    return [found[arm] for arm in arms]


def features(folder: Path, rows: Sequence[Row], inception: Inception, count: Count) -> np.ndarray:
    """Inception's features (n, 2048) of the rows' images, a few of which are held at once."""

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            yield _images(folder, part)
            count(len(part))

    return inception(batches()).values


def _distances(arm: str, ours: np.ndarray, base: np.ndarray, inception: Inception) -> list[dict[str, Any]]:
    first, second = (Features(inception.name, values) for values in (ours, base))
    kinds = [kind for kind in KINDS if not distribution.refusal(kind, len(ours), inception.width)]
    found = [(distribution.key(kind, inception.name), set_distance(kind, first, second, arm)) for kind in kinds]
    return [{"arm": arm, "metric": name, "value": round(one.value, DIGITS), "n": len(ours), "sd": one.sd, "note": one.note}
            for name, one in found]  # fmt: skip


def _images(folder: Path, rows: Sequence[Row]) -> Tensor:
    return drawing.to_tensor([(folder / row.image).read_bytes() for row in rows])
