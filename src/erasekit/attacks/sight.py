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

    `labels`: the judge's labels that count as the target (default: the target itself); `kind`: "object" or "style".
    Raises `UsageError` for a target that the judge says it does not know.
    """

    def __init__(self, judge: Judge, target: str, *, labels: Sequence[str] = (), kind: str = "object") -> None:
        self.judge, self.target, self.kind = judge, target, kind
        self.labels = tuple(labels) or (target,)
        known: Sequence[str] | None = getattr(judge, "labels", None) if kind == "object" else None
        if known is not None and (unknown := [label for label in self.labels if label not in known]):
            raise UsageError(f"the judge {judge.name} does not know {unknown[0]!r}: name another target, or judge")

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
        if self.kind == "style":
            scores = data.get("style_scores", {})
            return Seen("ok", data.get("style") in self.labels, self._best(scores))
        found = data["found"] if "found" in data else [data["best"]] if "best" in data else None
        if found is None:
            raise UsageError(f"the judge {self.judge.name} names nothing in a picture: give one that finds labels")
        boxes = {box["label"]: box["score"] for box in sorted(data.get("boxes", ()), key=lambda box: box["score"])}
        return Seen("ok", not set(found).isdisjoint(self.labels), self._best(data.get("scores", boxes)))

    def _best(self, scores: Mapping[str, float]) -> float:
        return max((float(scores.get(label, 0.0)) for label in self.labels), default=0.0)
