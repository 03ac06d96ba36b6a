"""What people call an edit in results and pages: its method, what it erases, what that becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WORD = 18  # characters of a target, an anchor or a method; the rest is cut


def label(about: Mapping[str, Any]) -> str:
    """The label of an edit from what its file says: "erasepro cat->dog"; with several targets the first and how many
    more, with several anchors only the first target's ("uce cat->dog +9"); the empty anchor is no word ("esd cat")."""
    targets, anchors = list(about["targets"]), list(about["anchors"])
    what = _short(targets[0]) if targets else "?"
    anchor = anchors[0].strip() if anchors else ""
    more = f" +{len(targets) - 1}" if len(targets) > 1 else ""
    return f"{_short(about['method'])} {what}{f'->{_short(anchor)}' if anchor else ''}{more}"


def unique(labels: Sequence[str]) -> list[str]:
    """The same labels, told apart: the second of two equal ones has a 2 behind it, the third a 3."""
    taken, found = set(labels), []
    seen: dict[str, int] = {}
    for name in labels:
        seen[name] = seen.get(name, 0) + 1
        shown = name
        while seen[name] > 1 and (shown := f"{name} {seen[name]}") in taken:
            seen[name] += 1
        taken.add(shown)
        found.append(shown)
    return found


def _short(text: str) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= WORD else words[: WORD - 1].rstrip() + "…"
