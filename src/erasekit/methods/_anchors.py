"""Anchor captions and the target's captions made of them, for Ablating Concepts (arXiv 2303.13516, section 3.2).

The built-in captions are ours, and fewer than the paper's 200 a concept; a user's file replaces them. "{}" in a caption
is the place of the anchor, "{a}" that of the anchor with its article.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.errors import UsageError
from erasekit.methods._templates import fill, has_place

VIEWS = ("a photo of {}", "a picture of {}", "a close view of {}", "a drawing of {}", "an illustration of {}", "{}")
PLACES = ("", "on a table", "in a garden", "in the street", "by the sea", "on a sofa", "in the snow", "in a field",
          "at night", "in the morning", "in front of a wall", "on a white background")  # fmt: skip
SCENES = ("a river at dawn", "a wooden bridge", "a village street", "a vase of flowers", "a bowl of fruit", "a harbour",
          "a field of wheat", "a mountain lake", "an old woman", "a man with a hat", "two children", "a city at night",
          "a stormy sea", "a quiet room", "a horse", "a cat on a chair", "a garden in spring", "a forest path",
          "a snowy village", "a sailing boat", "a market", "a church", "a table with bread", "a bird on a branch",
          "a dancing couple", "a cloudy sky", "a small house", "an orchard", "a waterfall", "a cafe terrace")  # fmt: skip
DOINGS = ("on a beach", "in a park", "reading a book", "at a window", "in the kitchen", "on a stage", "dancing",
          "lying on a bed", "in a swimming pool", "in an evening dress", "looking into a mirror", "on a sofa",
          "in a forest", "at a party", "in a studio, portrait", "running", "in summer clothes", "by a fireplace",
          "sleeping", "in the rain", "playing music", "at work", "in a bathroom", "with a friend")  # fmt: skip
FAR, CLOSE = ("a far away {}", "very small {}"), ("zoomed in {}", "close up {}")
"""What the target's caption becomes where its image was made much smaller, or larger."""


@dataclass(frozen=True)
class Kind:
    """How one kind of concept is asked for."""

    captions: tuple[str, ...]
    """Built-in anchor captions."""
    plain: str
    """What stands in them for the empty anchor."""
    forms: tuple[str, ...] = ()
    """The target's captions, equally likely: {c} the anchor's caption, {s} the target. None: the target takes the
    anchor's place."""


KINDS = {
    "object": Kind(tuple(f"{view} {place}".strip() for view in VIEWS for place in PLACES), ""),
    # One form twice: the released choice is 1/3 to 2/3.
    "style": Kind(tuple(f"{{}} of {scene}" for scene in SCENES), "painting",
                  ("{c}, in the style of {s}", "in {s}'s style, {c}", "in {s}'s style, {c}")),
    "nudity": Kind(tuple(f"{{}} {doing}" for doing in DOINGS), "a person",
                   ("{s}, {c}", "in {s} style, {c}", "{c}, {s}")),
    "memorised": Kind(("{}",), "", ("{s}",)),
}  # fmt: skip


class Item(NamedTuple):
    """An anchor image by its number, its caption, and the target's captions for it, equally likely."""

    image: int
    caption: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """What is learned from: `drawn`, the caption and the negative prompt of each image that the model is to draw (none
    where a folder holds the images); `items`, those of each target; `dropped`, how many captions could not be used."""

    drawn: tuple[tuple[str, str], ...]
    items: tuple[tuple[Item, ...], ...]
    dropped: int


def to_draw(request: EraseRequest, kind: str, captions: Sequence[str], images: int) -> Gallery:
    """A gallery of `images` images to draw for each anchor, from `captions` in turn (none: the built-in ones).

    Nudity is drawn for each target, which is its negative prompt. Raises `UsageError` for an anchor without captions.
    """
    pools: dict[tuple[str, str], int] = {}
    drawn: list[tuple[str, str]] = []
    items, dropped = [], 0
    for target, anchor in zip(request.targets, request.anchors, strict=True):
        key = (anchor, target if kind == "nudity" else "")
        templates = _templates(kind, anchor, captions)
        dropped += len(captions) - len(templates) if captions else 0
        turns = [templates[k % len(templates)] for k in range(images)]
        if key not in pools:
            pools[key] = len(drawn)
            drawn += [(_caption(kind, template, anchor), key[1]) for template in turns]
        items.append(tuple(_item(kind, pools[key] + k, t, anchor, target) for k, t in enumerate(turns)))
    return Gallery(tuple(drawn), tuple(items), dropped)


def of_folder(request: EraseRequest, kind: str, captions: Sequence[str | None]) -> Gallery:
    """A gallery of a folder's images with these captions; one without (None) has the first of the built-in ones.

    An image whose caption does not name a target's anchor is not used for that target. Raises `UsageError` for a
    target that is left without images.
    """
    items, dropped = [], 0
    for target, anchor in zip(request.targets, request.anchors, strict=True):
        found = [_found(kind, anchor, [KINDS[kind].captions[0] if caption is None else caption])
                 for caption in captions]  # fmt: skip
        mine = tuple(_item(kind, k, part[0], anchor, target) for k, part in enumerate(found) if part)
        if not mine:
            raise UsageError(_unnamed(anchor))
        dropped += len(captions) - len(mine)
        items.append(mine)
    return Gallery((), tuple(items), dropped)


def require_short(backbone: Backbone, gallery: Gallery, *, sized: bool) -> None:
    """`UsageError` for a caption with more tokens than the text encoder reads, whichever it is: before any long work.

    `sized`: the targets' captions may come to say that what they name is small.
    """
    items = {item for own in gallery.items for item in own}
    targets = {caption for item in items for caption in item.targets}
    said = {FAR[0].replace("{}", caption) for caption in targets} if sized else targets
    backbone.tokenize(sorted(said | {item.caption for item in items}))


def read_captions(path: str | Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty; `UsageError` where there are none, or it cannot be read."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(
            f"the prompts {path} cannot be read ({reason}): give a text file, one caption a line"
        ) from error
    found = tuple(" ".join(line.split()) for line in lines if line.strip())
    if not found:
        raise UsageError(f"the prompts {path} are empty: give a text file, one caption a line")
    return found


def _templates(kind: str, anchor: str, captions: Sequence[str]) -> list[str]:
    """The captions with a place for the anchor where the kind needs one; `UsageError` where none can be used."""
    if kind == "memorised" and not anchor and not captions:
        raise UsageError("a memorised caption needs paraphrases: give one as the anchor, or several as prompts=FILE")
    found = _found(kind, anchor, captions or KINDS[kind].captions)
    if not found:
        raise UsageError(_unnamed(anchor))
    return found


def _found(kind: str, anchor: str, captions: Sequence[str]) -> list[str]:
    if KINDS[kind].forms:
        return list(captions)
    places = [_placed(caption, anchor) for caption in captions]
    return [template for template in places if template is not None]


def _placed(caption: str, anchor: str) -> str | None:
    """The caption with "{}" where it names the anchor as whole words, or None where it does not; as it is with a place."""
    if has_place(caption):
        return caption
    words = r"\s+".join(map(re.escape, anchor.split()))
    found, count = re.subn(rf"(?<!\w){words}(?!\w)", "{}", caption, flags=re.IGNORECASE) if words else ("", 0)
    return found if count else None


def _caption(kind: str, template: str, anchor: str) -> str:
    return fill(template, anchor or KINDS[kind].plain)


def _item(kind: str, image: int, template: str, anchor: str, target: str) -> Item:
    caption = _caption(kind, template, anchor)
    # The forms bring the word themselves: "ink style" is drawn "in the style of ink".
    own = target[: -len(" style")] if kind == "style" and target.lower().endswith(" style") else target
    forms = tuple(form.format(c=caption, s=own) for form in KINDS[kind].forms)
    return Item(image, caption, forms or (fill(template, target),))


def _unnamed(anchor: str) -> str:
    return f"no caption names the anchor {anchor!r}: write it, or {{}} in its place, into the captions"
