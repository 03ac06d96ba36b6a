"""Which concepts are compared: the emoji world's own, a short list of common nouns, or a user's."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from erasekit.errors import UsageError

COMMON = (
    "airplane", "apple", "baby", "banana", "bear", "bicycle", "bird", "boat", "book", "bottle", "bread", "bridge",
    "bus", "cake", "car", "cat", "chair", "child", "church", "clock", "cloud", "coffee", "cow", "cup", "doctor", "dog",
    "duck", "elephant", "fish", "flower", "forest", "fox", "garden", "guitar", "hat", "horse", "house", "lamp", "lion",
    "man", "mountain", "mouse", "painting", "phone", "piano", "pizza", "rabbit", "river", "robot", "rose", "sheep",
    "ship", "shoe", "soldier", "statue", "sword", "table", "tiger", "tower", "train", "tree", "truck", "umbrella",
    "wolf", "woman",
)  # fmt: skip
LEAST = 3


def key(name: str) -> str:
    """How concepts compare: as the tokenizer reads them, case and spacing aside."""
    return " ".join(name.split()).lower()


def usable(
    target: str, candidates: Sequence[str], synonyms: Collection[str] = ()
) -> tuple[str, list[str], tuple[str, ...]]:
    """The target with tidy spaces, the candidates without repetitions and without what means the target, and what
    was left out for that. Raises `UsageError` for an empty target and for fewer than three candidates."""
    target = " ".join(target.split())
    if not target:
        raise UsageError("the target is empty: name the concept to erase")
    same = {key(target), *map(key, synonyms)}
    distinct = {key(name): " ".join(name.split()) for name in reversed(candidates) if key(name)}
    names = list(distinct.values())[::-1]
    kept = [name for name in names if key(name) not in same]
    if len(kept) < LEAST:
        raise UsageError(
            f"{len(kept)} candidates besides the target {target!r}: give at least {LEAST}, they are compared "
            "with each other (one a line in the --candidates file)"
        )
    return target, kept, tuple(name for name in names if key(name) in same and key(name) != key(target))


def emoji_candidates(target: str) -> tuple[str, ...]:
    """What the emoji world sets beside the target: concepts for a concept, styles for a style, colours for a colour, in
    the target's form ("ink" or "ink style", "blue" or "blue background").

    Raises `UsageError` for a word that the world does not know, naming the nearest that it does.
    """
    from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, concepts, names

    words = {word: names() for concept in concepts() for word in (concept.name, *concept.synonyms)}
    for kind, known in (("style", STYLES), ("background", tuple(BACKGROUNDS))):
        for form in (known, tuple(f"{word} {kind}" for word in known)):
            words = dict.fromkeys(form, form) | words
    if key(target) in words or not key(target):
        return words.get(key(target), names())
    near = difflib.get_close_matches(key(target), words, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"the emoji world does not know {target!r}: {hint}give one of its words, or --candidates FILE")


def emoji_synonyms(target: str) -> tuple[str, ...]:
    """Every word of the emoji world for the concept that `target` names; empty where it names none."""
    from erasekit.worlds.emoji.concepts import concepts

    found = ((concept.name, *concept.synonyms) for concept in concepts())
    return next((words for words in found if key(target) in words), ())
