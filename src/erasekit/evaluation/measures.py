"""What needs the pixels of two arms at once: LPIPS, and distances in Inception's features, with weights the user gives.
(What needs no pixels at all, and is kept in the same file, is in `text_changes`.)

A judge sees one image and writes into its row. These look at pairs of images after all are drawn; what they find is kept
in `measures.json`, LPIPS under the hashes of both images, so that the aggregates need no pixels and no weights, and
a pair is never computed twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import EraseKitError
from erasekit.evaluation import drawing
from erasekit.evaluation.distances import APART, DIGITS, Pair, comparable, pair_key, set_distance
from erasekit.evaluation.metrics import distribution
from erasekit.evaluation.rows import Row

if TYPE_CHECKING:
    from torch import Tensor

    from erasekit.evaluation.metrics.inception import Inception
    from erasekit.evaluation.metrics.perceptual import Lpips
    from erasekit.evaluation.plan import Plan

FILE = "measures.json"
BATCH = 32


@dataclass(frozen=True)
class Tools:
    """The extractors that the user gave weights for."""

    lpips: Lpips | None = None
    inception: Inception | None = None

    @property
    def names(self) -> list[dict[str, str]]:
        """What the results say of them."""
        given = [tool for tool in (self.lpips, self.inception) if tool is not None]
        return [{"name": tool.name, "weights_sha256": tool.weights_sha256} for tool in given]


def tools(plan: Plan) -> Tools:
    """The plan's extractors, loaded; `ModelError` in one line where a file or a package is missing."""
    from erasekit.evaluation.metrics.inception import Inception
    from erasekit.evaluation.metrics.perceptual import Lpips

    return Tools(Lpips(plan.lpips) if plan.lpips else None, Inception(plan.inception) if plan.inception else None)


def measure(folder: Path, rows: Sequence[Row], given: Tools) -> dict[str, Any]:
    """What `measures.json` holds for these rows, whose images lie in the folder; {} without an extractor.

    Pairs that an earlier call measured with the same weights are taken from the folder's own file.
    """
    found: dict[str, Any] = {}
    both = list(_pairs(rows))
    with drawing.one_thread("cpu"):
        if given.lpips is not None:
            known = _known(folder, given.lpips.weights_sha256)
            found["lpips"] = {"name": given.lpips.name, "weights_sha256": given.lpips.weights_sha256,
                              "pairs": _lpips(folder, both, given.lpips, known)}  # fmt: skip
        if given.inception is not None:
            found["inception"] = {"name": given.inception.name, "weights_sha256": given.inception.weights_sha256,
                                  **_sets(folder, both, given.inception)}  # fmt: skip
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


def _known(folder: Path, sha256: str) -> Mapping[str, float]:
    try:
        old = read(folder).get("lpips", {})
    except EraseKitError:  # damaged: all is measured again
        return {}
    return old.get("pairs", {}) if old.get("weights_sha256") == sha256 else {}


def _lpips(folder: Path, both: Sequence[Pair], lpips: Lpips, known: Mapping[str, float]) -> dict[str, float]:
    found = {pair_key(*pair): pair for pair in both}
    values = {key: known[key] for key in found if key in known}
    todo = [key for key in found if key not in known]
    for start in range(0, len(todo), BATCH):
        keys = todo[start : start + BATCH]
        after, before = (_images(folder, [found[key][side] for key in keys]) for side in (0, 1))
        values |= {key: round(float(value), 6) for key, value in zip(keys, lpips(before, after), strict=True)}
    return dict(sorted(values.items()))


def _sets(folder: Path, both: Sequence[Pair], inception: Inception) -> dict[str, Any]:
    """FID and KID of every arm's unrelated images to the unedited model's; reasons where there are too few."""
    arms: dict[str, list[Pair]] = {}
    for row, before in both:
        if row.group in APART:
            arms.setdefault(row.arm, []).append((row, before))
    distances, omitted = [], []
    for arm, own in arms.items():
        ours, base = (inception(_images(folder, [pair[side] for pair in own])) for side in (0, 1))
        for kind in ("Fréchet", "KID"):
            name = distribution.key(kind, inception.name)
            if why := distribution.refusal(kind, len(own), ours.values.shape[1]):
                omitted.append(f"{name} is not stated: {why}")
                continue
            one = set_distance(kind, ours, base, arm)
            distances.append({"arm": arm, "metric": name, "value": round(one.value, DIGITS), "n": len(own), "sd": one.sd,
                              "note": one.note})  # fmt: skip
    return {"distances": distances, "omitted": list(dict.fromkeys(omitted))}


def _images(folder: Path, rows: Sequence[Row]) -> Tensor:
    return drawing.to_tensor([(folder / row.image).read_bytes() for row in rows])
