"""In-prompt score: does the rest of a prompt survive when the concept in it does not?

Each prompt that names the concept has a twin without it (`Prompt.twin`). The image of the first is compared with the
text of the second. Source: Six-CD, arXiv 2406.14855.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from erasekit.errors import UsageError
from erasekit.evaluation.metrics import clip

EFFECTIVE = 0.8
"""Six-CD keeps prompts of which the unedited model shows the concept in at least 4 of 5 images."""


def score(images: Any, twins: Any, *, scale: str = "ac") -> np.ndarray:
    """The CLIP score (n,) of the edited model's image of prompt i with the text of its twin i; see `clip.score`."""
    return clip.score(images, twins, scale=scale)


def calibrate(
    images: Any, base_images: Any, twins: Any, prompts: Sequence[str], *, scale: str = "ac"
) -> clip.Calibration:
    """The floor (these images with other prompts' twins) and the ceiling (the unedited model's images *of the twins*
    with the twins' text): what an edit that takes the concept and nothing else could reach."""
    return clip.calibrate(images, base_images, twins, prompts, scale=scale)


def effective(found: Sequence[bool], prompts: Sequence[str], *, least: float = EFFECTIVE) -> list[str]:
    """The prompts, in order, of whose unedited images at least the share `least` shows the concept.

    Rates on these alone say more about an edit: a prompt that yields nothing on the unedited model tests nothing.
    """
    if len(found) != len(prompts):
        raise UsageError(f"{len(found)} outcomes for {len(prompts)} prompts: give the prompt of every image")
    hits: dict[str, list[bool]] = {}
    for prompt, hit in zip(prompts, found, strict=True):
        hits.setdefault(prompt, []).append(bool(hit))
    return [prompt for prompt, all_hits in hits.items() if sum(all_hits) >= least * len(all_hits) - 1e-12]
