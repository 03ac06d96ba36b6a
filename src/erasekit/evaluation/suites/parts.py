"""What a suite is made of: how it samples, its prompts, its targets, and the blocks that prompts are made from."""

from __future__ import annotations

from dataclasses import dataclass

from erasekit.evaluation.suites.names import key


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
