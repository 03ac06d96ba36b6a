"""A deliberately weak edit: the same one, put on at a part of its strength.

What `Edit.apply(scale=...)` weakens is code, too. Linear ops and the adapters (SPM, Receler) add something to what a layer puts
out, and `scale` multiplies that. IRECE adds nothing; its rho, how much of the signal goes where the target is seen, is what it
has of strength: at 0.3 of the default 0.75 the signal keeps 97 % there. Its `variant=replace` has none.

How weak is asked of the edit itself: one that shows every case without an attack leaves an attack nothing to do. Of
`SCALES` the first is taken at which at least `LEFT` of the cases do not show the target in their plain pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.attacks.base import Case, Outcome
from erasekit.attacks.ladder import Ladder, Rung, climb
from erasekit.attacks.victim import Victim
from erasekit.edit import Adapter, Edit, Guidance
from erasekit.guidances import irece
from erasekit.ops import Op

if TYPE_CHECKING:
    from erasekit.attacks._check import Subject

ADAPTERS = ("spm", "receler")
"""Adapters whose output the scale multiplies."""
SCALES = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
"""In fine steps: between the strength that hides hardly any case and the one that hides nearly all lie a few hundredths."""
LEFT = 5


@dataclass(frozen=True)
class Strength:
    """A strength of the weak edit, at which the `hidden` ones of the `of` cases that count are there to be brought back; one of
    those that were `tried`."""

    scale: float
    hidden: tuple[Case, ...]
    of: int
    tried: tuple[float, ...]

    @property
    def left(self) -> int:
        """How many there are to be brought back."""
        return len(self.hidden)

    @property
    def enough(self) -> bool:
        """Whether what an attack does there says something."""
        return self.left >= LEFT

    @property
    def short(self) -> str:
        """That no strength leaves enough, in words; empty where this one does."""
        if self.enough:
            return ""
        tried = ", ".join(f"{scale:g}" for scale in self.tried)
        return (f"no strength of {tried} leaves {LEFT} cases to bring back: the most are {self.left} of {self.of}, at "
                f"{self.scale:g} times the edit")  # fmt: skip


def strength(
    subject: Subject, cases: Sequence[Case], folder: Path, name: str, *, scales: Sequence[float] = SCALES, **more: Any
) -> Strength:
    """The first of the strengths that leaves enough of the cases to bring back; where none does, the first of those that
    leave the most. The plain pictures are kept in `folder`."""
    found: list[Strength] = []
    for scale in scales:
        hidden = hides(subject, cases, scale, folder, name, **more)
        found.append(Strength(scale, tuple(hidden), len(cases), tuple(scales)))
        if found[-1].enough:
            return found[-1]
    return max(found, key=lambda one: one.left)


def hides(subject: Subject, cases: Sequence[Case], scale: float, folder: Path, name: str, **more: Any) -> list[Case]:
    """The cases whose plain pictures do not show the target at this strength; the pictures are kept in `folder`."""
    about = {**subject.about, "check": f"plain pictures on {scale:g} times the edit"}
    with Victim(subject.pipe, subject.edit, subject.sight, subject.sampling, scale=scale) as victim:
        ends = plain(victim, cases, folder / f"plain-{scale:g}", name, about=about, **more)
    return [one.case for one in ends if one.status == "failure"]


def shown(subject: Subject, cases: Sequence[Case], folder: Path, name: str, **more: Any) -> list[Case]:
    """The cases in whose plain pictures by the unedited model the judge finds the target; kept in `folder`."""
    about = {**subject.about, "edit": None, "edit_sha256": None, "check": "plain pictures by the unedited model"}
    with Victim(subject.pipe, None, subject.sight, subject.sampling) as victim:
        return [one.case for one in plain(victim, cases, folder, name, about=about, **more) if one.shown]


def plain(victim: Victim, cases: Sequence[Case], folder: Path, name: str, **more: Any) -> tuple[Outcome, ...]:
    """The cases as the side that is on draws them; kept in `folder`."""
    (found,) = climb(victim, cases, every(name, [Rung("plain prompts", "prompts")]), folder, **more)
    return found.outcomes


def every(name: str, rungs: Sequence[Rung]) -> Ladder:
    """The rungs as a ladder in which each is tried on every case."""
    return Ladder(f"{name}, each rung alone", tuple(replace(rung, counts=False) for rung in rungs))


def rigid(edit: Edit) -> str:
    """Why the edit has no weaker form, in words; empty where it has one.

    One op that cannot be weakened is enough: with the others weakened the edit would still be a strong one.
    """
    return next(filter(None, map(_why, edit.ops)), "")


def _why(op: Op) -> str:
    if isinstance(op, Guidance):
        return (
            irece.rigid(op) if op.guidance == "irece" else f"{op.label} is code that is not known to have a weaker form"
        )
    if isinstance(op, Adapter) and op.adapter not in ADAPTERS:
        return f"{op.label} is code that is not known to have a weaker form"
    return ""
