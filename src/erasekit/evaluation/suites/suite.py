"""What a suite is: pinned prompts, seeds, sampling and judges, known by one hash of all of them.

A suite comes from a readable file (`load.py`); its prompts are a function of that file and of the targets
(`prompts.py`), so that the same name, version and digest give the same prompts everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from erasekit.errors import UsageError
from erasekit.evaluation.suites.names import key, listed, tidy
from erasekit.evaluation.suites.parts import Block, Prompt, Sampling, Target


@dataclass(frozen=True)
class Suite:
    """A protocol of measuring. `targets` is () where any concept may be measured.

    `kind` says what a target is: object, style, person or unsafe; of a style's prompts, `wanted` names the objects
    and `style` the style. `whole` suites measure all their targets together. `notes` are remarks on the prompt file.
    `classes` is the text, with {} for the name, by which CLIP judges tell the suite's names apart; "" where they do not.
    `real` is "emoji" where distances are to be to the world's reference pictures too, when a plan says nothing else.
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
    classes: str = ""
    real: str = ""

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
