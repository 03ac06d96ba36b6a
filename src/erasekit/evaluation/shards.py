"""Shards: fixed lists of images that are drawn together, whoever draws them.

A shard is the unit of work, of resuming and of batching: its images form one batch, so an image never depends on the
number of workers, and it carries the digest of all that decides its pixels, so that finished work is recognised.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from typing import TYPE_CHECKING, Any

from erasekit.evaluation.rows import canonical

if TYPE_CHECKING:
    from erasekit.evaluation.suites import Prompt

KEY = "erasekit"  # the PNG text chunk that holds an image's label


@dataclass(frozen=True)
class Item:
    """One image of a shard: its prompt, its seed, and its path under the output folder."""

    prompt: Prompt
    seed: int
    image: str


@dataclass(frozen=True)
class Shard:
    """Images of one arm that are drawn as one batch. `digest`: of all that decides their pixels."""

    arm: str
    items: tuple[Item, ...]
    digest: str

    def label(self, item: Item) -> str:
        """What the image's PNG says of itself; equal labels mean equal pixels."""
        return canonical({"digest": self.digest, "prompt": item.prompt.text, "seed": item.seed})


def split(arm: str, prompts: Sequence[Prompt], *, size: int, context: Any) -> list[Shard]:
    """The arm's images in canonical order (prompts, then seeds) as shards of at most `size`.

    A shard never crosses a group, a target or a guidance of its own, so that the unedited model's shards are the same in
    every plan that shares these prompts. `context` is JSON data of all else that decides the pixels (model, edit, sampling).
    """
    found = []
    for part in _runs(prompts):
        items = [Item(p, seed, image_path(arm, p, seed)) for p in part for seed in p.seeds]
        for start in range(0, len(items), size):
            found.append(_shard(arm, tuple(items[start : start + size]), context))
    return found


def image_path(arm: str, prompt: Prompt, seed: int) -> str:
    """Where an image lies: readable, and apart from every other by a hash of arm and prompt."""
    own = hashlib.sha256(canonical([arm, prompt.id, prompt.text]).encode()).hexdigest()[:8]
    return f"images/{slug(arm)}/{slug(prompt.id)}-{own}-seed{seed}.png"


def versions() -> dict[str, str]:
    """Of the libraries that decide pixels and fits beside weights and settings."""
    return {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}


def slug(text: str) -> str:
    """The text as a file name: lower case letters, digits and hyphens, at most 60 of them."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].rstrip("-") or "x"


def digest(value: Any) -> str:
    """The sha256 of JSON data."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _shard(arm: str, items: tuple[Item, ...], context: Any) -> Shard:
    images = [[i.prompt.text, i.seed, i.prompt.guidance] for i in items]
    return Shard(arm, items, digest({"context": context, "images": images}))


def _runs(prompts: Iterable[Prompt]) -> list[list[Prompt]]:
    """Consecutive prompts of one group, target and guidance."""
    return [list(part) for _, part in groupby(prompts, key=lambda p: (p.group, p.target, p.guidance))]
