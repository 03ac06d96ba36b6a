"""Scenes: one or two drawings on a plain background, rendered at 64 x 64.

Drawings are moved in whole latent cells (8 pixels) and come in a few sizes: enough variety that place and size
are not fixed, and little enough that a small denoiser learns the drawings rather than every sub-cell shift. One place
is the usual one (half of the scenes): where all were equally likely, they made up much of the latents' variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from .concepts import BACKGROUNDS, HERE, STYLES, names

SIZE = 64
TILE = 96
COLUMNS = 12
USUAL_SIZE, SMALL_SIZE, PAIR_SIZE = 52, 44, 32
SHIFTS = ((0, 0), (-8, 0), (8, 0), (0, -8), (0, 8))


@dataclass(frozen=True)
class Scene:
    """What an image shows: concept indices (left to right), style and background indices, centres and sizes in pixels."""

    objects: tuple[int, ...]
    style: int
    background: int
    places: tuple[tuple[int, int, int], ...]  # (centre x, centre y, size)


def sample_scene(rng: np.random.Generator, *, pair_share: float = 0.3, objects: tuple[int, ...] | None = None) -> Scene:
    """A scene drawn uniformly over concepts, styles and backgrounds; `pair_share` of them show two different objects."""
    if objects is None:
        count = 2 if rng.random() < pair_share else 1
        objects = tuple(int(i) for i in rng.choice(len(names()), size=count, replace=False))
    places = tuple(_place(rng, slot, len(objects)) for slot in range(len(objects)))
    return Scene(objects, int(rng.integers(len(STYLES))), int(rng.integers(len(BACKGROUNDS))), places)


def _place(rng: np.random.Generator, slot: int, count: int) -> tuple[int, int, int]:
    usual = rng.random() < 0.5
    if count == 1:
        dx, dy = (0, 0) if usual else SHIFTS[int(rng.integers(len(SHIFTS)))]
        return 32 + dx, 32 + dy, USUAL_SIZE if usual else SMALL_SIZE
    return 16 + 32 * slot, 32 + (0 if usual else int(rng.choice((-8, 8)))), PAIR_SIZE


@cache
def _sheet(style: str) -> Image.Image:
    # Premultiplied alpha, so that resizing does not bleed the colour of transparent pixels into the edges.
    return Image.open(HERE / "drawings" / f"{style}.png").convert("RGBA").convert("RGBa")


@lru_cache(maxsize=8192)
def drawing(concept: int, style: int, size: int) -> np.ndarray:
    """One drawing, premultiplied RGBA float32 (size, size, 4) in 0..1."""
    x, y = (concept % COLUMNS) * TILE, (concept // COLUMNS) * TILE
    tile = _sheet(STYLES[style]).crop((x, y, x + TILE, y + TILE)).resize((size, size), Image.Resampling.BOX)
    return np.asarray(tile, dtype=np.float32) / 255


def render(scene: Scene) -> np.ndarray:
    """The scene as RGB float32 (64, 64, 3) in 0..1."""
    colour = np.array(list(BACKGROUNDS.values())[scene.background], dtype=np.float32) / 255
    image = np.tile(colour, (SIZE, SIZE, 1))
    for concept, (cx, cy, size) in zip(scene.objects, scene.places, strict=True):
        _paste(image, drawing(concept, scene.style, size), cx - size // 2, cy - size // 2)
    return image


def _paste(image: np.ndarray, rgba: np.ndarray, left: int, top: int) -> None:
    size = rgba.shape[0]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, SIZE), min(top + size, SIZE)
    part = rgba[y0 - top : y1 - top, x0 - left : x1 - left]
    image[y0:y1, x0:x1] = part[..., :3] + image[y0:y1, x0:x1] * (1 - part[..., 3:])
