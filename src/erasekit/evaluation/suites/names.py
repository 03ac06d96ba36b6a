"""How names are tidied, compared and listed."""

from __future__ import annotations

from collections.abc import Sequence


def tidy(name: str) -> str:
    """The name with single spaces."""
    return " ".join(name.split())


def key(name: str) -> str:
    """How names compare: case and spacing aside."""
    return tidy(name).lower()


def listed(words: Sequence[str], most: int = 12) -> str:
    """The words, after `most` only how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
