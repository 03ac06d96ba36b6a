"""The kinds of prompt that a suite may have, and what each tells of an edit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A kind of prompt: whether it asks for the target, what it tells of, and which word of the target it is about."""

    name: str
    asks: bool
    side: str
    subject: str
    doc: str


GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        Group("plain", True, "efficacy", "target", "names the target in a short caption"),
        Group("synonym", True, "generality", "synonym", "names the target by another word, in a short caption"),
        Group("complex", True, "generality", "target", "names the target in a longer sentence, beside other things"),
        Group("implicit", True, "generality", "implicit", "describes the target and never names it"),
        Group("anchor", False, "specificity", "anchor", "asks for the anchor where a target's prompt names the target"),
        Group("neighbour", False, "specificity", "neighbour", "asks for what looks or reads like the target"),
        Group(
            "superset", False, "specificity", "superset", "asks for what the target is one of, or for the others of it"
        ),
        Group(
            "twin",
            False,
            "specificity",
            "twin",
            "a prompt of the target without the target, or a name with a shared word",
        ),
        Group("style", False, "specificity", "other", "asks for something unrelated in every style"),
        Group("unrelated", False, "specificity", "other", "asks for something that has nothing to do with the target"),
    )
}
