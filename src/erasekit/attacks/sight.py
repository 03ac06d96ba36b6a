"""Whether a picture shows the target: a judge's words, read for one target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from erasekit.attacks.base import Case, Outcome
from erasekit.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.evaluation.judges import Judge


@dataclass(frozen=True)
class Seen:
    """A judge's word on one picture. `status` is "ok", "failed" or "invalid"; only "ok" has a meaningful rest."""

    status: str
    hit: bool
    score: float
    reason: str = ""

    def outcome(self, case: Case, image: Image, **more: Any) -> Outcome:
        """The case's outcome if this picture decides it: success, failure, or invalid."""
        if self.status != "ok":
            return Outcome(case, "invalid", None, image, note=self.reason, **more)
        return Outcome(case, "success" if self.hit else "failure", self.score, image, **more)


class Sight:
    """A judge that looks for one target.

    `labels`: the judge's labels that count as the target (default: the target itself); `kind`: "object" or "style". Of a style
    "ink style" and "ink" are one: `target`, the word for sentences, is the name alone. Raises `UsageError` for a target that
    the judge says it does not know.
    """

    def __init__(self, judge: Judge, target: str, *, labels: Sequence[str] = (), kind: str = "object") -> None:
        self.judge, self.kind = judge, kind
        self.target = _bare(target) if kind == "style" else target
        self.known = _known(judge, kind)
        self.labels = tuple(map(self._label, tuple(labels) or (target,)))

    def _label(self, word: str) -> str:
        """The judge's own label for the word. What it has no label for it never finds, which would read as erased."""
        words = (word, _bare(word)) if self.kind == "style" else (word,)
        own = [one for one in words if self.known is None or one in self.known]
        if own:
            return own[-1]
        if self.kind == "style":
            raise UsageError(f"the judge {self.judge.name} does not know the style {word!r}: name one of "
                             f"{', '.join(self.known or ())}, or another judge")  # fmt: skip
        styled = _bare(word) in getattr(self.judge, "styles", ())
        remedy = "it is a style, attack it with --style" if styled else "name another target, or judge"
        raise UsageError(f"the judge {self.judge.name} does not know {word!r}: {remedy}")

    def look(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Seen]:
        """What the judge sees in each picture, in order. A judge's error propagates: it is never a verdict."""
        if not images:
            return []
        pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
        judged = self.judge.judge(pixels.permute(0, 3, 1, 2).float() / 255, list(prompts))
        return [self._read(one.status, one.data) for one in judged]

    def _read(self, status: str, data: Mapping[str, Any]) -> Seen:
        if status != "ok":
            return Seen(status, False, 0.0, str(data.get("reason", status)))
        if self.kind == "style" and "style" in data:
            return Seen("ok", data["style"] in self.labels, self._best(data.get("style_scores", {})))
        found = data["found"] if "found" in data else [data["best"]] if "best" in data else None
        if found is None:
            raise UsageError(f"the judge {self.judge.name} names nothing in a picture: give one that finds labels")
        boxes = {box["label"]: box["score"] for box in sorted(data.get("boxes", ()), key=lambda box: box["score"])}
        return Seen("ok", not set(found).isdisjoint(self.labels), self._best(data.get("scores", boxes)))

    def _best(self, scores: Mapping[str, float]) -> float:
        return max((float(scores.get(label, 0.0)) for label in self.labels), default=0.0)


def _known(judge: Judge, kind: str) -> tuple[str, ...] | None:
    """What the judge finds of such a kind: a judge that answers styles apart from things says which, a classifier of styles has
    them as its labels. None where it states no labels."""
    own: Sequence[str] | None = getattr(judge, "styles", None) if kind == "style" else None
    own = getattr(judge, "labels", None) if own is None else own
    return None if own is None else tuple(own)


def _bare(style: str) -> str:
    """A style's name without the word: the sentences that ask for it have that."""
    return style.removesuffix(" style")
