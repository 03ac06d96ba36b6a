"""What is kept of real images beside the rows: their embeddings by every CLIP judge, and distances in Inception's features.

With the embeddings the aggregates need neither the images nor a judge. All of it is kept in `measured/` as well, a batch of
images or an arm at a time, and never computed twice for the same images and weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import drawing, measures
from erasekit.evaluation.cache import Store
from erasekit.evaluation.distances import APART
from erasekit.evaluation.judges import TextJudge
from erasekit.evaluation.measures import Count
from erasekit.evaluation.metrics.distribution import LEAST
from erasekit.evaluation.real import Picture, Real
from erasekit.evaluation.real_distances import Fixed, refusal
from erasekit.evaluation.rows import Row
from erasekit.evaluation.shards import digest

if TYPE_CHECKING:
    from torch import Tensor

    from erasekit.evaluation.judges import Judge
    from erasekit.evaluation.metrics.inception import Inception
    from erasekit.methods import Progress

VERSION = 1  # raise it when the same images and weights give other numbers than before


def check(named: str | None, judges: Iterable[Judge], inception: Inception | None) -> None:
    """`UsageError` where real images are named, and nothing in the whole run has features to compare them in."""
    if named and inception is None and not any(isinstance(judge, TextJudge) for judge in judges):
        raise UsageError("no judge of this run embeds images, so nothing can be compared with real ones: take a suite with a "
                         "CLIP judge, or give --inception WEIGHTS")  # fmt: skip


def measure(folder: Path, rows: Sequence[Row], real: Real, judges: Sequence[Judge], inception: Inception | None, *,
            progress: Progress | None = None) -> dict[str, Any]:  # fmt: skip
    """What `measures.json` holds under "real". Raises `EraseKitError` naming an image that a judge cannot embed, or that is
    another by now."""
    store = Store(folder)
    with drawing.one_thread("cpu"):
        found = real.facts | {"parts": real.parts, "spaces": _spaces(store, real, judges, progress)}
        if inception is not None:
            found["inception"] = measures.said(inception) | _sets(store, rows, real, inception, progress)
    return found


def _spaces(store: Store, real: Real, judges: Sequence[Judge], progress: Progress | None) -> dict[str, list[str]]:
    """CLIP judge -> the vector of every image in the set's order, base64 of float16 as in rows."""
    towers = [judge for judge in judges if isinstance(judge, TextJudge)]
    count = Count(progress, len(towers) * len(real.pictures), "embeddings of real images")
    found: dict[str, list[str]] = {judge.name: [] for judge in towers}
    for judge in towers:
        for start in range(0, len(real.pictures), measures.BATCH):
            part = real.pictures[start : start + measures.BATCH]
            found[judge.name] += _batch(store, part, judge)
            count(len(part))
    return found


def _batch(store: Store, part: Sequence[Picture], judge: Judge) -> list[str]:
    of = digest([VERSION, "real", judge.name, judge.weights_sha256, [picture.sha256 for picture in part]])
    known = store.kept(of)
    if known is None:
        known = [_embedded(picture, judge) for picture in part]
        store.keep(of, known)
    return known


def _embedded(picture: Picture, judge: Judge) -> str:
    (found,) = judge.judge(picture.pixels(), [""])  # one by one: real images are of many sizes
    if found.status != "ok":
        raise EraseKitError(f"{judge.name} cannot embed the real image {picture.name} ({found.data['reason']}): replace or "
                            "delete it")  # fmt: skip
    return str(found.data["embedding"])


def _sets(store: Store, rows: Sequence[Row], real: Real, inception: Inception,
          progress: Progress | None) -> dict[str, Any]:  # fmt: skip
    """FID and KID of every arm's unrelated images to the real ones; reasons where there are too few of either."""
    arms: dict[str, list[Row]] = {row.arm: [] for row in rows}
    for row in rows:
        if row.group in APART and row.status == "ok":
            arms[row.arm].append(row)
    shape = len(real.pictures), inception.width
    omitted = [why for own in arms.values() for kind in measures.KINDS
               if (why := refusal(kind, inception.name, len(own), *shape))]  # fmt: skip
    enough = {arm: own for arm, own in arms.items() if len(own) >= LEAST}
    found = _walked(store, enough, real, inception, progress)
    return {"distances": [one for lines in found for one in lines], "omitted": list(dict.fromkeys(omitted))}


def _walked(store: Store, arms: Mapping[str, list[Row]], real: Real, inception: Inception,
            progress: Progress | None) -> list[list[dict[str, Any]]]:  # fmt: skip
    """Each arm's distances, kept when it is done. The real images are walked once for all arms that are not."""
    about = [VERSION, "real sets", measures.said(inception), real.facts, real.parts]
    of = {arm: digest([*about, arm, [row.sha256 for row in own]]) for arm, own in arms.items()}
    found = {arm: store.kept(key) for arm, key in of.items()}
    todo = {arm: own for arm, own in arms.items() if found[arm] is None}
    if todo:
        count = Count(progress, len(real.pictures) + sum(map(len, todo.values())), "features of real and drawn images")
        fixed = Fixed(real.facts, inception(_pixels(real, count)), real.parts)
        for arm, own in todo.items():
            ours = measures.features(store.folder, own, inception, count)
            found[arm] = [fixed.found(kind, ours, arm) for kind in measures.KINDS if not fixed.refusal(kind, len(ours))]
            store.keep(of[arm], found[arm])
    return [found[arm] for arm in arms]


def _pixels(real: Real, count: Count) -> Iterator[Tensor]:
    for picture in real.pictures:
        yield picture.pixels()
        count(1)
