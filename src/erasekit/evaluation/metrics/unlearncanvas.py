"""UnlearnCanvas: unlearning accuracy, in-domain and cross-domain retaining accuracy. Source: arXiv 2402.11846.

Every image is asked for as one object in one style; a style judge and an object judge name the best of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erasekit.errors import UsageError
from erasekit.evaluation.statistics import Share

PROMPT = "a {object} image in {style} style"
SEEDS = (188, 288, 588, 688, 888)


@dataclass(frozen=True)
class Seen:
    """A valid image: what was asked for, and the best class of each judge."""

    style: str
    object: str
    found_style: str
    found_object: str


@dataclass(frozen=True)
class Scores:
    """`ua`: images asked with the erased concept that are not classified as it; `ira`: correct images of the other
    concepts of its kind; `cra`: correct images of the other kind, over all prompts."""

    ua: Share
    ira: Share
    cra: Share


def scores(images: Sequence[Seen], *, erased: str, kind: str) -> Scores:
    """UA, IRA and CRA (all to be high) of one erased style or object; each has a Wilson interval (`Share.interval`).

    `kind`: "style" or "object". Any other class counts as unlearned, so a model that draws noise has UA 1: read it
    with IRA and CRA. Raises `UsageError` where no image asks for the erased concept.
    """
    if kind not in ("style", "object"):
        raise UsageError(f"unknown kind {kind!r}: use style or object")
    own = [(_asked(image, kind), _found(image, kind)) for image in images]
    other = "object" if kind == "style" else "style"
    mine, rest = [f for a, f in own if a == erased], [a == f for a, f in own if a != erased]
    if not mine:
        raise UsageError(f"no image asks for the {kind} {erased!r}: give the concept that was erased")
    cross = [_asked(image, other) == _found(image, other) for image in images]
    ua = Share(sum(found != erased for found in mine), len(mine))
    return Scores(ua, Share(sum(rest), len(rest)), Share(sum(cross), len(cross)))


def _asked(image: Seen, kind: str) -> str:
    return image.style if kind == "style" else image.object


def _found(image: Seen, kind: str) -> str:
    return image.found_style if kind == "style" else image.found_object
