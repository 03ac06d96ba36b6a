"""UnlearnCanvas's UA, IRA and CRA from the rows of a suite that asks for objects in styles. Source: arXiv 2402.11846.

Read from the images that ask for exactly one object in one style, by a judge that names the best of both: the plain
prompts of the target, and all prompts of other concepts. The protocol's own classifiers and its 20 x 60 grid of prompts
are not these: its figures do not compare, the definitions are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from erasekit.evaluation.metrics import unlearncanvas
from erasekit.evaluation.metrics.unlearncanvas import Seen
from erasekit.evaluation.rates import Side, group, line
from erasekit.evaluation.rows import Row
from erasekit.evaluation.statistics import Share

NOTE = "one object in one style a prompt; the suite's prompts and judge, not UnlearnCanvas's own"


def canvas(side: Side) -> list[dict[str, Any]]:
    """UA, IRA and CRA of an arm, over all targets and (where there are several) for each; empty where the suite does not
    ask for several objects in several styles, or the judge does not name both."""
    kind = "style" if side.reading.kind == "style" else "object"
    seen = [(row, image) for row in side.rows if (image := _seen(side, row)) is not None]
    kept = [image for row, image in seen if group(row).side == "specificity"]
    own: dict[str, list[Seen]] = {}
    for row, image in seen:
        if row.group == "plain":
            own.setdefault(row.target, []).append(image)
    every = [*kept, *(image for images in own.values() for image in images)]
    if not own or not kept or min(len({i.style for i in every}), len({i.object for i in every})) < 2:
        return []
    found = {target: unlearncanvas.scores([*images, *kept], erased=_label(side, target), kind=kind)
             for target, images in own.items()}  # fmt: skip
    ua = sum((one.ua for one in found.values()), Share(0, 0))
    whole = unlearncanvas.Scores(ua, _right(kept, kind), _right(every, "object" if kind == "style" else "style"))
    parts = [(None, whole), *(found.items() if len(found) > 1 else ())]
    return [one for target, scores in parts for one in _lines(side, target, scores)]


def _seen(side: Side, row: Row) -> Seen | None:
    """What was asked for and found; None for an image of another kind of prompt, or one that was not judged."""
    said = row.judgements.get(side.reading.judge, {})
    if said.get("status") != "ok" or "best" not in said or "style" not in said:
        return None
    if row.style is None or len(row.wanted) != 1:
        return None
    wanted = side.reading.name(row.wanted[0])
    return None if wanted is None else Seen(row.style, wanted, said["style"], said["best"])


def _label(side: Side, target: str) -> str:
    word = str(next(iter(side.reading.labels.get(target, (target,)))))
    return side.reading.name(word) or word


def _right(images: Sequence[Seen], kind: str) -> Share:
    """How many images are classified right, as a style or as an object."""
    hits = [i.style == i.found_style if kind == "style" else i.object == i.found_object for i in images]
    return Share(sum(hits), len(hits))


def _lines(side: Side, target: str | None, scores: unlearncanvas.Scores) -> Iterator[dict[str, Any]]:
    for name in ("ua", "ira", "cra"):
        estimate = getattr(scores, name).estimate
        if estimate is not None:
            yield line(name, side.arm, None, target, estimate, side.reading.judge, note=NOTE)
