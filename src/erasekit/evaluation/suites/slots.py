"""Templates and their slots: which there are, how they are filled, and which candidate comes next."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from erasekit.evaluation.suites.parts import Text

WORDS = ("target", "anchor", "synonym", "implicit", "neighbour", "superset", "twin", "other", "word")
SLOTS = (*WORDS, *(f"a_{word}" for word in WORDS), "style", "background")
SLOT = re.compile(r"\{([^{}]*)\}")

DATA = {"synonym": "synonyms", "neighbour": "neighbours", "twin": "twins", "other": "unrelated",
        "style": "styles", "background": "backgrounds"}  # fmt: skip
"""What the file calls the data of a slot, where that is another word."""


def fill(template: str, values: dict[str, str]) -> str:
    """The template with its slots filled; `{a_word}` is the word with its article."""
    return SLOT.sub(lambda m: article(values[m[1][2:]]) if m[1].startswith("a_") else values[m[1]], template)


def article(word: str) -> str:
    """The word with "a" or "an", by its first letter."""
    low = word.lower()
    return f"{'an' if low[0] in 'aeiou' and not low.startswith('uni') else 'a'} {word}"


def slots(template: str) -> tuple[str, ...]:
    """The slots that a template names, without their articles, in order."""
    return tuple(dict.fromkeys(name.removeprefix("a_") for name in SLOT.findall(template)))


def used_slots(text: Text) -> tuple[str, ...]:
    """The slots of a template and of its twin."""
    return _used(text.text, text.twin or "")


@lru_cache(maxsize=1024)
def _used(text: str, twin: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*slots(text), *slots(twin))))


def nth(items: tuple[str, ...], seed: str, index: int) -> str:
    """The candidate at `index` of an endless sequence: all of them in one order, then all in another, and so on."""
    if len(items) == 1:
        return items[0]
    return _order(items, f"{seed}|{index // len(items)}")[index % len(items)]


@lru_cache(maxsize=1024)
def _order(items: tuple[str, ...], seed: str) -> tuple[str, ...]:
    return tuple(sorted(items, key=lambda item: hashlib.sha256(f"{seed}|{item}".encode()).hexdigest()))
