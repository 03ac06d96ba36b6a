"""Reference pictures: what a faithful picture of a prompt looks like, rendered from the drawings themselves.

They are the world's "real images": what the model was trained to draw. A set of them is what a distance to real images
(KID, Fréchet) is measured to, and what the judges' error rates come from.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import UsageError
from ...files import write_whole
from .concepts import BACKGROUNDS, STYLES, concepts
from .scenes import Scene, render, sample_scene

STYLE = re.compile(rf"\b({'|'.join(STYLES)}) (?:style|drawing|picture)\b")
BACKGROUND = re.compile(rf"\b({'|'.join(BACKGROUNDS)}) background\b")


def picture(what: str | Scene, *, seed: int = 0) -> Image.Image:
    """The render (64 x 64, RGB) of a scene, or of what a prompt in the world's words names.

    What the prompt leaves open (style, background, place and size) is drawn from `seed`; the same prompt and seed give the
    same picture. Raises `UsageError` for a prompt that names no object of the world, or more than two.
    """
    shown = scene(what, seed=seed) if isinstance(what, str) else what
    return Image.fromarray((render(shown) * 255).round().astype(np.uint8))


def scene(prompt: str, *, seed: int = 0) -> Scene:
    """What a faithful picture of the prompt shows: its one or two objects from left to right, by name or synonym, the style
    and background that it names, and the rest drawn from `seed`. Errors as `picture`."""
    text = " ".join(prompt.lower().split())
    style, background = STYLE.search(text), BACKGROUND.search(text)
    objects = _objects(BACKGROUND.sub(" ", STYLE.sub(" ", text)))
    if not 1 <= len(objects) <= 2:
        named = ", ".join(concepts()[i].name for i in objects) or "none"
        raise UsageError(
            f"{prompt!r} must name one or two objects of the emoji world, and names {named}{_hint(text, objects)}"
        )
    found = sample_scene(np.random.default_rng([seed, *text.encode()]), objects=objects)
    return replace(found, style=STYLES.index(style[1]) if style else found.style,
                   background=list(BACKGROUNDS).index(background[1]) if background else found.background)  # fmt: skip


def save(folder: str | Path, prompts: Sequence[str], *, seeds: Sequence[int] = (0,)) -> list[Path]:
    """Write the picture of every prompt and seed into a folder as PNG, each file whole; the files, in that order."""
    from ...evaluation.grid import png

    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    paths = [Path(folder) / f"{number:05d}-seed{seed}.png" for number, (_, seed) in enumerate(pairs)]
    for path, (prompt, seed) in zip(paths, pairs, strict=True):
        write_whole(path, png(picture(prompt, seed=seed)))
    return paths


def _objects(text: str) -> tuple[int, ...]:
    """The objects that the text names, as it names them; of names inside each other ("hot dog") the longest counts."""
    rows = {word: row for row, concept in enumerate(concepts()) for word in (concept.name, *concept.synonyms)}
    words = "|".join(map(re.escape, sorted(rows, key=len, reverse=True)))
    return tuple(dict.fromkeys(rows[found] for found in re.findall(rf"\b(?:{words})\b", text)))


def _hint(text: str, objects: tuple[int, ...]) -> str:
    known = [word for concept in concepts() for word in (concept.name, *concept.synonyms)]
    near = [found for word in text.split() for found in difflib.get_close_matches(word, known, n=1, cutoff=0.8)]
    return f" (did you mean {near[0]}?)" if near and not objects else ": `erasekit.worlds.emoji.names()` lists them"
