"""Captions that say which directions of the text features are in use: what an edit is weighted by (ErasePro's covariance).

They need not name the concepts. What matters is that they are of the kind that the model will be asked for: words at the
positions where prompts have them, beside the words that stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from erasekit.methods._anchors import read_captions
from erasekit.methods._templates import listed

GENERIC = (
    "a photo of a house by a lake", "a man reading a newspaper on a train", "a bowl of fruit on a wooden table",
    "two children playing in the park", "an old car parked in a narrow street", "a watercolor painting of mountains",
    "a red flower in the grass", "a city at night seen from above", "a portrait of a woman with a hat",
    "a bird sitting on a branch", "a plate of food with a fork", "a boat on the sea under a blue sky",
    "a black and white drawing of a tree", "a small room with a bed and a lamp", "a train crossing a bridge",
    "a close up of a cup of coffee", "people walking on the beach", "a cartoon of a happy robot",
    "a green field with a fence", "an astronaut riding a horse", "a book and a clock on a shelf",
    "snow on the roof of a church", "a bus stop in the rain", "a field of stars in the sky",
)  # fmt: skip


def _emoji() -> tuple[str, ...]:
    from erasekit.worlds.emoji.captions import sentences

    return sentences(400)


NAMED: dict[str, Callable[[], tuple[str, ...]]] = {"generic": lambda: GENERIC, "emoji": _emoji}


def written_out(captions: Sequence[str]) -> tuple[str, ...]:
    """The captions with names and @files replaced by what they stand for, without repetitions; `GENERIC` for none.

    Raises `UsageError` for a file that cannot be read or holds nothing.
    """
    found = [text for one in captions or ("generic",) for text in _texts(one)]
    return tuple(dict.fromkeys(found))


def described(captions: Sequence[str]) -> dict[str, Any]:
    """How many captions were used, and the sha256 of their text."""
    return listed(written_out(captions))


def _texts(one: str) -> Sequence[str]:
    if one.startswith("@"):
        return read_captions(one[1:])
    return NAMED[one]() if one in NAMED else (one,)
