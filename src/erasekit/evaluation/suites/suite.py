"""What a suite is: pinned prompts, seeds, sampling and judges, known by one hash of all of them.

A suite comes from a readable file (`load.py`); its prompts are a function of that file and of the targets
(`prompts.py`), so that the same name, version and digest give the same prompts everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from erasekit.errors import UsageError


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


@dataclass(frozen=True)
class Sampling:
    """How images are drawn. `scheduler` is a diffusers class name, "" the model's own; `size` is in pixels, None the
    model's own; `eta` is None where the scheduler has none or its default is meant."""

    steps: int
    guidance: float
    scheduler: str = ""
    eta: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class Prompt:
    """One text to draw. `target` is "" where it belongs to none; `wanted` are the labels that a faithful image of the
    unedited model shows; `twin` is the same prompt without the concept; `guidance` overrides the suite's."""

    id: str
    group: str
    text: str
    target: str = ""
    wanted: tuple[str, ...] = ()
    style: str | None = None
    background: str | None = None
    seeds: tuple[int, ...] = (0,)
    twin: str | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Target:
    """A concept that a suite can measure, with the words around it. `label` is what a judge calls it."""

    name: str
    label: str
    anchor: str | None = None
    synonyms: tuple[str, ...] = ()
    implicit: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    superset: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()

    def words(self, slot: str) -> tuple[str, ...]:
        """The words that may fill a slot."""
        return {
            "target": (self.name,), "anchor": (self.anchor,) if self.anchor else (), "synonym": self.synonyms,
            "implicit": self.implicit, "neighbour": self.neighbours, "superset": self.superset, "twin": self.twins,
        }[slot]  # fmt: skip

    @property
    def own(self) -> frozenset[str]:
        """All words that mean the target."""
        return frozenset(map(key, (self.name, self.label, *self.synonyms)))


@dataclass(frozen=True)
class Text:
    """A template, and its form without the concept."""

    text: str
    twin: str | None = None


@dataclass(frozen=True)
class Block:
    """One entry of a suite's `groups`: `count` prompts for each target (or for the suite), `seeds` images of each.

    `of` makes them from the prompts of another group, with the same style, background, other words and seeds.
    `without` are the kinds of words that are left out; `wanted` are slots or labels (None: all words of the text).
    """

    group: str
    texts: tuple[Text, ...]
    count: int
    seeds: int
    each: str
    of: str
    optional: bool
    without: tuple[str, ...]
    wanted: tuple[str, ...] | None


@dataclass(frozen=True)
class Suite:
    """A protocol of measuring. `targets` is () where any concept may be measured.

    `kind` says what a target is: object, style, person or unsafe; of a style's prompts, `wanted` names the objects
    and `style` the style. `whole` suites measure all their targets together. `notes` are remarks on the prompt file.
    """

    name: str
    version: int
    title: str
    world: str
    kind: str
    note: str
    sampling: Sampling
    judges: tuple[str, ...]
    digest: str
    concepts: tuple[Target, ...]
    whole: bool
    blocks: tuple[Block, ...]
    others: tuple[str, ...]
    styles: tuple[str, ...]
    backgrounds: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[Prompt, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that it can measure, in the file's order; () for any."""
        return tuple(concept.name for concept in self.concepts)

    def anchor(self, target: str) -> str | None:
        """The anchor that the suite proposes for a target (or a synonym of it); None where it has none."""
        return self._concept(target).anchor

    def canonical(self, target: str) -> str:
        """The suite's own name of a target (or of a synonym of it)."""
        return self._concept(target).name

    def label(self, word: str) -> str:
        """What a judge calls a target, or in the emoji world any concept; a style's label is the bare style.

        Raises `UsageError` for a word that is neither.
        """
        if self.world == "emoji" and not any(key(word) in concept.own for concept in self.concepts):
            return self._known(word) or self._concept(word).label
        return self._concept(word).label

    def prompts(self, targets: Sequence[str] = (), anchors: Sequence[str] = ()) -> tuple[Prompt, ...]:
        """All prompts that measure an edit of `targets`, in a fixed order, with unique ids.

        Synonyms of one concept count as that concept. No targets: all of the suite's. `anchors` is one for all or
        one for each ("" is the empty prompt, which has no prompts of its own); none: the suite's own.
        Raises `UsageError` for a target that the suite does not know.
        """
        from erasekit.evaluation.suites.prompts import expand

        return expand(self, self._asked(targets, anchors))

    def _asked(self, targets: Sequence[str], anchors: Sequence[str]) -> tuple[Target, ...]:
        names = tuple(targets) or self.targets
        if anchors and len(anchors) not in (1, len(names)):
            raise UsageError(f"{len(anchors)} anchors for {len(names)} targets: give one for all, or one for each")
        given = tuple(anchors) * len(names) if len(anchors) == 1 else tuple(anchors) or (None,) * len(names)
        found: dict[str, Target] = {}
        for name, anchor in zip(names, given, strict=True):
            concept = self._concept(name)
            found.setdefault(concept.name, concept if anchor is None else replace(concept, anchor=self._known(anchor)))
        if not found:
            raise UsageError(f"the suite {self.name} measures any target: name at least one")
        missing = [name for name in self.targets if name not in found] if self.whole else []
        if missing:
            raise UsageError(f"the suite {self.name} measures an edit of all its {len(self.targets)} targets, and this "
                             f"one leaves out {listed(missing)}: erase them all, or take another suite")  # fmt: skip
        return tuple(found.values())

    def _known(self, anchor: str) -> str | None:
        """An anchor as prompts can ask for it: an empty one, or one that the emoji world cannot draw, is None."""
        if self.world != "emoji":
            return tidy(anchor) or None
        from erasekit.evaluation.suites.words import canonical

        return canonical(anchor, self.kind)

    def _concept(self, name: str) -> Target:
        if not self.concepts:
            return Target(tidy(name), tidy(name))
        for concept in self.concepts:  # a name before another concept's synonym
            if key(name) == key(concept.name):
                return concept
        for concept in self.concepts:
            if key(name) in concept.own:
                return concept
        raise UsageError(f"the suite {self.name} cannot measure {name!r}: its targets are {listed(self.targets)}")


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
