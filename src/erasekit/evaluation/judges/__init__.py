"""Judges by name: `get("emoji")`, `get("nudenet@0.6")`, `get("clip:FOLDER")`. Nothing heavy is imported here.

A spec is `NAME`, `NAME@THRESHOLD` (emoji, nudenet) or `NAME:FOLDER` (clip, classifier, imagenet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError

from .base import STATUSES, Judge, Judgement, TextJudge, check

if TYPE_CHECKING:
    from torch import Tensor

# Each function takes what follows the name in the spec (as keyword "option", absent if nothing follows).
JUDGES: dict[str, str] = {
    "emoji": "erasekit.evaluation.judges.emoji:load",
    "emoji-clip": "erasekit.evaluation.judges.emoji_clip:load",
    "clip": "erasekit.evaluation.judges.clip:load",
    "classifier": "erasekit.evaluation.judges.classifier:load",
    "imagenet": "erasekit.evaluation.judges.classifier:load_imagenet",
    "nudenet": "erasekit.evaluation.judges.nudenet:load",
    "nudenet-rgb": "erasekit.evaluation.judges.nudenet:load_rgb",
}


@dataclass(frozen=True)
class Summary:
    """What the list of judges says of one: how to name it, what it gives, where its weights are from."""

    spec: str
    gives: str
    weights: str


SUMMARIES: dict[str, Summary] = {
    "emoji": Summary("emoji[@THRESHOLD]", "objects, style and background of the emoji world", "shipped, Apache-2.0"),
    "emoji-clip": Summary("emoji-clip", "image and text embeddings for the emoji world", "shipped, Apache-2.0"),
    "clip": Summary("clip:FOLDER_OR_HUB_ID", "image and text embeddings of any transformers CLIPModel", "yours"),
    "classifier": Summary("classifier:FOLDER", "labels of any transformers image classifier", "yours"),
    "imagenet": Summary("imagenet:FOLDER", "ImageNet-1k classes by the field's names and ids", "yours"),
    "nudenet": Summary("nudenet[@THRESHOLD]", "18 exposed and covered body parts, as boxes; channels in the order of "
                       "the published figures", "extra `nudenet`, AGPL-3.0"),
    "nudenet-rgb": Summary("nudenet-rgb[@THRESHOLD]", "the same, channels in RGB order", "extra `nudenet`, AGPL-3.0"),
}  # fmt: skip


def get(spec: str) -> Judge:
    """The judge that `spec` names, its weights loaded.

    Raises:
        UsageError: an unknown name (the message lists those there are), a threshold that cannot be.
        ModelError: its weights or its package are missing; the message tells how to get them.
    """
    name, option = split(spec)
    if name not in JUDGES:
        raise UsageError(f"no judge {name!r}: choose {', '.join(known.spec for known in SUMMARIES.values())}")
    module, function = JUDGES[name].split(":")
    load = getattr(import_module(module), function)
    if option is None:
        return load()
    if name == "emoji-clip":
        raise UsageError(f"the judge emoji-clip takes nothing after its name, got {spec!r}")
    return load(option=option)


def split(spec: str) -> tuple[str, str | None]:
    """Name and option of a spec; an option after `@` keeps that sign (a folder's name may hold one itself)."""
    name, colon, folder = spec.partition(":")
    if colon:
        return name, folder
    name, at, threshold = spec.partition("@")
    return name, at + threshold if at else None


def calibration(judge: Judge) -> dict[str, Any]:
    """The judge's own error rates as shipped with its weights, or from the file beside its folder; empty if it has none.

    Raises `ModelError` for a file that is damaged or of another judge (measure: `judges.calibrate`).
    """
    return dict(getattr(judge, "calibration", {}))


def text_embeddings(judge: Judge, texts: Sequence[str]) -> Tensor:
    """Unit vectors of the texts in the judge's space, float32 (n, dim); `UsageError` if it is no CLIP judge."""
    if not isinstance(judge, TextJudge):
        raise UsageError(f"the judge {judge.name} has no text embeddings: use emoji-clip or clip:FOLDER")
    return judge.text_embeddings(texts)


__all__ = ["JUDGES", "STATUSES", "SUMMARIES", "Judge", "Judgement", "Summary", "TextJudge", "calibration", "check",
           "get", "split", "text_embeddings"]  # fmt: skip
