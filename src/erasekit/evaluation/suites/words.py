"""What the emoji world knows around a concept: its synonyms, what is near it, what it is one of.

The world's text encoder knows caption words only. It has no word for a category ("animal") and none that describes:
the others of a category stand in for the superset, and a description is made of synonyms or of two neighbours.
"""

from __future__ import annotations

from typing import Any

from erasekit.evaluation.suites.names import key
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, Concept, concepts, names, neighbours

CATEGORIES = {"animals": "animal", "foods": "food", "vehicles": "vehicle", "persons": "person", "weapons": "weapon",
              "things": "thing", "places": "place", "nature": "nature"}  # fmt: skip
NEAR = (
    3  # at least so many neighbours: where the world lists fewer, the next rows of the table, which puts like by like
)

objects = names
styles: tuple[str, ...] = STYLES
backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)


def named(what: str) -> tuple[str, ...] | None:
    """The concepts that a word such as "objects", "weapons" or "styles" stands for; None for another word."""
    if what == "objects":
        return names()
    if what == "styles":
        return tuple(f"{style} style" for style in STYLES)
    kind = CATEGORIES.get(what)
    return tuple(c.name for c in concepts() if c.category == kind) if kind else None


def about(name: str, kind: str) -> dict[str, Any] | None:
    """The fields of a suite's target, as the world has them; None for what it cannot draw."""
    if kind == "style":
        return _style(name)
    concept = next((c for c in concepts() if c.name == name), None)
    return _object(concept) if concept else None


def canonical(word: str, kind: str) -> str | None:
    """The concept (or style) that a word or synonym means; None for what the world cannot draw."""
    if kind == "style":
        return next((f"{s} style" for s in STYLES if key(word) in (s, f"{s} style")), None)
    if key(word) in names():
        return key(word)
    return next((c.name for c in concepts() if key(word) in c.synonyms), None)


def _object(concept: Concept) -> dict[str, Any]:
    mates = [c.name for c in concepts() if c.category == concept.category]
    place = mates.index(concept.name)
    closest = sorted((m for m in mates if m != concept.name), key=lambda m: (abs(mates.index(m) - place), m))
    listed = neighbours(concept.name)
    near = listed + tuple(m for m in closest if m not in listed)[: max(0, NEAR - len(listed))]
    blends = (f"{near[0]} {near[1]}", f"{near[1]} {near[0]}")
    return {
        "label": concept.name, "anchor": near[0], "synonyms": concept.synonyms,
        "implicit": concept.synonyms or blends, "neighbours": near,
        "superset": tuple(m for m in closest if m not in near), "twins": _twins(concept.name),
    }  # fmt: skip


def _twins(name: str) -> tuple[str, ...]:
    """The concepts whose name shares a word with this one, or begins one with the other: sun and sunflower."""
    own = set(name.split())
    return tuple(n for n in names() if n != name and (own & set(n.split()) or n.startswith(name) or name.startswith(n)))


def _style(name: str) -> dict[str, Any] | None:
    style = name.removesuffix(" style")
    if style not in STYLES:
        return None
    rest = tuple(f"{s} style" for s in STYLES if s != style)
    return {"label": style, "anchor": rest[0], "synonyms": (style,), "implicit": (f"{style} drawing",),
            "neighbours": rest, "superset": (), "twins": ()}  # fmt: skip
