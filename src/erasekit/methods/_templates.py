"""Prompt pairs for the methods that read a concept in many sentences, and their features a batch at a time.

The sentences are ours; which media occur in them (photo, snapshot, illustration, sketch, portrait, oil painting, ...)
and how many there are follow MACE (arXiv 2403.06135: 30 a concept) and TRCE (arXiv 2503.07389: 15 a concept). In a
sentence "{}" is the concept's place, and "{a}" that of the concept with its article (`concept.with_article`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest, with_article
from erasekit.errors import UsageError
from erasekit.methods import Progress
from erasekit.methods._features import BATCH, encoded

OBJECT: tuple[str, ...] = (
    "a photo of {}", "a snapshot of {}", "an illustration of {}", "a sketch of {}", "a portrait of {}",
    "an oil painting of {}", "a magazine cover with {}", "a photograph showing {}", "a close view of {}",
    "a watercolor of {}", "a poster of {}", "a pencil drawing of {}", "a cartoon of {}", "a film still with {}",
    "a picture of {} in the morning", "a photo of {} at night", "a photo of {} by the window",
    "a black and white photo of {}", "a blurry photo of {}", "a bright photo of {}", "an old photo of {}",
    "a digital rendering of {}", "a comic panel with {}", "a painting of {} outdoors", "a postcard showing {}",
    "a mural of {}", "a small picture of {}", "a sketch of {} on paper", "an image of {}", "{} in the picture",
)  # fmt: skip
STYLE: tuple[str, ...] = (
    "an artwork by {}", "a picture in the style of {}", "a sketch by {}", "a painting by {}", "a drawing by {}",
    "an oil painting by {}", "a landscape by {}", "a portrait by {}", "a print by {}", "a study by {}",
    "a famous work by {}", "a poster in the style of {}", "a scene painted by {}", "a still life by {}",
    "a watercolor by {}", "a mural by {}", "an illustration by {}", "a photo in the style of {}",
    "a city drawn in the style of {}", "a forest in the style of {}", "a detail from a work by {}",
    "a canvas by {}", "an early work by {}", "a late work by {}", "an exhibition of {}", "art inspired by {}",
    "a copy after {}", "a house in the style of {}", "a figure drawn by {}", "{} artwork",
)  # fmt: skip
PROMPT: tuple[str, ...] = (
    "a photo of {}", "a snapshot of {}", "an illustration of {}", "an oil painting of {}", "a sketch of {}",
    "a photo of {} at sunset", "a photo of {} at sunrise", "a drawing of {}", "a picture of {} in a room",
    "a portrait of {}", "a poster of {}", "a film still of {}", "a detailed image of {}",
    "a watercolor of {}", "a black and white picture of {}",
)  # fmt: skip
TEMPLATES: dict[str, tuple[str, ...]] = {"object": OBJECT, "style": STYLE, "prompt": PROMPT, "none": ("{}",)}
"""The lists by name; none: the bare concept."""

Rows = tuple[Tensor, int]
"""A prompt's text features (length, d) float32 and the position of its last token before the first EOS."""


class Pair(NamedTuple):
    """One sentence twice: with the target, and with its anchor in the same place; `target` is the phrase itself."""

    prompt: str
    anchor_prompt: str
    target: str


def fill(template: str, concept: str) -> str:
    """The sentence with the concept; an empty concept leaves the rest of the sentence, with tidy spaces."""
    return " ".join(template.replace("{a}", with_article(concept)).replace("{}", concept).split())


def has_place(template: str) -> bool:
    """Whether the sentence says where the concept stands."""
    return "{}" in template or "{a}" in template


def read_sentences(path: str | Path) -> tuple[str, ...]:
    """The distinct sentences of a UTF-8 text file, one a line. Raises `UsageError`, naming the file, where it cannot be
    read or is empty, and for a sentence without a place for the concept."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"the sentences {path} cannot be read ({reason}): give a text file, one a line") from error
    found = tuple(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if wrong := [sentence for sentence in found if not has_place(sentence)] or ([""] if not found else []):
        raise UsageError(f"the sentences {path} must have {{}} (or {{a}}, with its article) where the concept stands, "
                         f"not {wrong[0]!r}: write it in")  # fmt: skip
    return found


def listed(texts: Sequence[str]) -> dict[str, Any]:
    """How many there are, and the sha256 of their text: an edit's file names a list without holding it."""
    return {"count": len(texts), "sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest()}


def prompt_pairs(request: EraseRequest, templates: Sequence[str]) -> list[Pair]:
    """Every target in every template."""
    return [
        Pair(fill(template, target), fill(template, anchor), target)
        for target, anchor in zip(request.targets, request.anchors, strict=True)
        for template in templates
    ]


def encoded_pairs(
    backbone: Backbone, pairs: Sequence[Pair], *, whole: bool, progress: Progress
) -> Iterator[list[tuple[Pair, Rows, Rows]]]:
    """The pairs with their features, at most BATCH pairs at once, each distinct prompt of a batch encoded once.

    Pairs come sorted by their anchor's prompt, so that an anchor which many targets share is encoded about once.
    `whole` as in `_features.encoded`.
    """
    pairs = sorted(pairs, key=lambda pair: pair.anchor_prompt)
    for start in range(0, len(pairs), BATCH):
        progress(start, len(pairs), "encoding the targets")
        batch = pairs[start : start + BATCH]
        prompts = list(dict.fromkeys(prompt for pair in batch for prompt in pair[:2]))
        rows = dict(zip(prompts, encoded(backbone, prompts, whole=whole), strict=True))
        yield [(pair, rows[pair.prompt], rows[pair.anchor_prompt]) for pair in batch]


def unread(backbone: Backbone, request: EraseRequest) -> list[str]:
    """A warning for every target or anchor that is text for us and nothing for the tokenizer."""
    named = [name for name in dict.fromkeys(request.targets + request.anchors) if name]
    ends = backbone.tokenize(named).ends
    return [
        f"{name!r} has no tokens: the model reads it as nothing"
        for name, end in zip(named, ends, strict=True)
        if end < 2
    ]


def shared_rows(
    target: Sequence[int], anchor: Sequence[int], *, length: int, phrase: Collection[int] = ()
) -> tuple[list[int], list[int]]:
    """Which rows of two prompts face each other: two lists of equal length.

    `target`, `anchor`: the token ids from BOS to the first EOS of prompts that are padded to `length`. Shared are the
    longest common prefix, the longest common suffix of what is left, and the padding as far as both have it; rows of
    `phrase`, positions in the target's prompt, are left out. Source: MACE, the section on refinement.
    """
    shorter = min(len(target), len(anchor))
    head = next((i for i in range(shorter) if target[i] != anchor[i]), shorter)
    tail = next((i for i in range(shorter - head) if target[-1 - i] != anchor[-1 - i]), shorter - head)
    rows = [(i, i) for i in range(head)]
    behind = length - max(len(target), len(anchor))  # both have so much padding
    rows += [(len(target) + i, len(anchor) + i) for i in range(-tail, behind)]
    kept = [(mine, its) for mine, its in rows if mine not in phrase]
    return [mine for mine, _ in kept], [its for _, its in kept]


def shared_of(backbone: Backbone, pair: Pair, lasts: tuple[int, int]) -> tuple[list[int], list[int]]:
    """`shared_rows` of a pair whose prompts' last tokens before EOS are at `lasts`."""
    ids = backbone.tokenize(pair[:2]).ids
    mine, its = (row[: last + 2].tolist() for row, last in zip(ids, lasts, strict=True))
    phrase = {row for span in backbone.concept_spans(pair.prompt, pair.target) for row in span}
    return shared_rows(mine, its, length=ids.shape[1], phrase=phrase)
