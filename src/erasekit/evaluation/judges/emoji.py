"""The emoji world's own classifier as a judge: which objects, which style, which background a picture shows.

Its error rates on renders are what `erasekit judges calibrate emoji` measures. Pictures of other sizes than the
world's 64 x 64 are resized (bilinear, antialiased).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erasekit.worlds.emoji import judge as world
from erasekit.worlds.emoji.scenes import SIZE

from .base import DIGITS, Judgement, judge_each, scores, sha256, threshold

WEIGHTS = world.JUDGE_DIR / "judge.safetensors"


class EmojiJudge:
    """Each object answers for itself: `found` are those over the threshold, none, one or several.

    `data`: `scores`, `found`, `best` of the objects; `style` and `background` (the most probable), and the
    probabilities of all of them, `style_scores` and `background_scores`.
    """

    licence = "Apache-2.0"

    def __init__(
        self, judge: world.Judge, *, threshold: float = world.THRESHOLD, weights_sha256: str = "",
        calibration: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.world, self.threshold, self.weights_sha256 = judge, threshold, weights_sha256
        self.calibration = dict(calibration or {})
        self.labels, self.styles = tuple(judge.labels), tuple(judge.styles)
        self.name = f"{judge.name.split('@')[0]}[{len(self.labels)}]@{threshold:g}"

    def judge(self, images: Tensor, prompts: Sequence[str]) -> list[Judgement]:
        """One verdict for each image."""
        return judge_each(images, prompts, self._verdicts)

    def label(self, word: str) -> str:
        """The label that `word` is; `UsageError` if it is none (synonyms are not)."""
        return self.labels[self.world.index(word)]

    def _verdicts(self, images: Tensor) -> list[dict[str, Any] | str]:
        images = images.to(next(self.world.network.parameters()).device).float()
        if images.shape[2:] != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True).clamp(0, 1)
        verdict = self.world(images)
        rows = zip(verdict.objects.tolist(), verdict.style.tolist(), verdict.background.tolist(), strict=True)
        finite = torch.isfinite(verdict.objects).all(1).tolist()
        return [
            self._data(*row) if ok else "the judge gave no finite number" for row, ok in zip(rows, finite, strict=True)
        ]

    def _data(self, objects: list[float], style: list[float], background: list[float]) -> dict[str, Any]:
        known = scores(self.labels, objects)
        looks = (("style", self.world.styles, style), ("background", self.world.backgrounds, background))
        return {
            "scores": known,
            "found": [label for label, p in known.items() if p > self.threshold],
            "best": self.labels[max(range(len(objects)), key=objects.__getitem__)],
            **{name: words[max(range(len(p)), key=p.__getitem__)] for name, words, p in looks},
            **{
                f"{name}_scores": dict(zip(words, (round(x, DIGITS) for x in p), strict=True))
                for name, words, p in looks
            },
        }


def load(*, option: str | None = None) -> EmojiJudge:
    """The shipped judge, at its own threshold or the one of `option` ("@0.7"); `ModelError` if its weights are gone."""
    least = threshold(option, world.THRESHOLD, judge="emoji", floor=0.02)
    judge = world.load_judge()
    # What was measured at the judge's own threshold says nothing about another.
    known = _with_errors(world.calibration()) if least == world.THRESHOLD else {}
    return EmojiJudge(judge, threshold=least, weights_sha256=sha256([WEIGHTS]), calibration=known)


def _with_errors(known: Mapping[str, Any]) -> dict[str, Any]:
    """With `any_label`, tpr and fpr of a label as `calibrate` names them: hits on scenes that went through the model's
    autoencoder, false alarms on pictures that the model drew."""
    hits, alarms = known["through_autoencoder"], known["generated"]
    tpr, fpr = hits["object_recall"], alarms["false_alarms_per_concept_and_image"]
    return {**known, "any_label": {"tpr": {"value": tpr}, "fpr": {"value": fpr}}}
