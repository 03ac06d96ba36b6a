"""The emoji world's vocabulary: concepts, styles, backgrounds, near neighbours.

The concept table is `concepts.tsv` (name, icon, category, synonyms); every concept exists in all five styles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
STYLES = ("twemoji", "noto", "blob", "flat", "ink")

# Pastel colours: each lies far from the others, and black ink is legible on all of them.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (196, 198, 204),
    "blue": (146, 196, 255),
    "green": (160, 226, 160),
    "yellow": (255, 240, 140),
    "pink": (255, 184, 208),
    "orange": (255, 198, 138),
    "purple": (200, 174, 246),
}

# Sets of concepts that look or read alike: erasing one must leave the others.
NEIGHBOURS: tuple[tuple[str, ...], ...] = (
    ("cat", "dog", "fox", "wolf", "tiger", "lion"),
    ("bear", "panda", "koala", "monkey"),
    ("rabbit", "mouse"),
    ("horse", "unicorn", "cow", "camel"),
    ("whale", "dolphin", "fish"),
    ("bee", "ladybug", "butterfly"),
    ("owl", "eagle", "duck", "penguin"),
    ("snake", "dragon", "turtle", "frog"),
    ("apple", "strawberry", "cherries", "lemon"),
    ("hamburger", "hot dog", "taco", "pizza"),
    ("beer", "wine"),
    ("car", "truck", "bus", "police car", "ambulance", "fire engine"),
    ("bicycle", "motorcycle"),
    ("airplane", "helicopter", "rocket"),
    ("dagger", "knife", "swords"),
    ("guitar", "violin"),
    ("house", "castle", "church"),
    ("palm tree", "pine tree", "cactus"),
    ("rose", "sunflower"),
    ("alien", "ghost", "robot", "skull"),
    ("football", "basketball"),
    ("sun", "moon", "star"),
)


@dataclass(frozen=True)
class Concept:
    """One object of the world: its caption word, its category, and the other words that mean it."""

    name: str
    icon: str
    category: str
    synonyms: tuple[str, ...]


@cache
def concepts() -> tuple[Concept, ...]:
    """All concepts, in the order of the judge's labels and of the sprite sheets."""
    rows = [line.split("\t") for line in (HERE / "concepts.tsv").read_text().splitlines() if not line.startswith("#")]
    return tuple(Concept(name, icon, kind, tuple(s for s in words.split(",") if s)) for name, icon, kind, words in rows)


@cache
def names() -> tuple[str, ...]:
    """The concepts' caption words, in table order."""
    return tuple(c.name for c in concepts())


def neighbours(name: str) -> tuple[str, ...]:
    """The near neighbours of a concept, without itself; empty where the table has none."""
    return tuple(n for group in NEIGHBOURS if name in group for n in group if n != name)
