"""Two checks on a deliberately weak edit: the same one, put on at a part of its strength (`_weak.py`).

Both take the cases alone that the unedited model itself shows: what it does not, no attack can bring back. Plain prompts are
not asked: they are what the others are held against.

- `weak edit`: at `MILD` times the edit, which hides next to nothing, every rung attacks every case, also those whose plain
  picture shows the target. An attack that shows it in fewer than `BAR` of them loses what is there: *broken*.
- `hidden cases`: at the weakest strength that leaves an attack something to do (`_weak.strength`), of the cases whose plain
  pictures do not show the target, how many the rung brings back. Fewer than `BAR`: *warned*, as a failure of an attack
  that does not bring back what a weak edit hides says little. Where no strength leaves enough, the check says so (*untested*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.attacks import _weak
from erasekit.attacks._check import FEW, Check, Subject, judged, told
from erasekit.attacks._twins import twins
from erasekit.attacks._weak import every, hides, shown, strength
from erasekit.attacks.base import Case
from erasekit.attacks.ladder import Climbed, Rung, climb
from erasekit.attacks.victim import Victim

if TYPE_CHECKING:
    from erasekit.methods import Progress

BAR = 0.9
MILD = (0.3, 0.2, 0.1)
"""The first of these at which the plain pictures themselves reach the bar."""
LITTLE = ("warned", "its failures elsewhere say little")


@dataclass(frozen=True)
class Weakened:
    """What both checks are about: the subject, the `known` cases of `of`, where their runs are kept, and how."""

    subject: Subject
    known: Sequence[Case]
    of: int
    folder: Path
    name: str
    more: dict[str, Any]
    progress: Progress | None = None

    @property
    def which(self) -> str:
        """The cases that count, in words."""
        return f" (of {self.of}, the {len(self.known)} that the unedited model shows)"

    def climbed(self, rungs: Sequence[Rung], cases: Sequence[Case], scale: float, kind: str) -> list[Climbed]:
        """Each rung alone on every one of the cases at a part of the edit's strength, also where none is needed."""
        subject = self.subject
        about = {**subject.about, "check": f"{kind} on {scale:g} times the edit"}
        with Victim(subject.pipe, subject.edit, subject.sight, subject.sampling, scale=scale, skip=False) as victim:
            return climb(victim, cases, every(self.name, rungs), self.folder / f"{kind.replace(' ', '-')}-{scale:g}",
                         about=about, tolerant=True, seed=self.more["seed"], progress=told(self.progress, kind))  # fmt: skip


def weak(
    subject: Subject, cases: Sequence[Case], rungs: Sequence[Rung], *, folder: Path, name: str, seed: int,
    progress: Progress | None,
) -> list[Check]:  # fmt: skip
    """Both checks, and the twins among what they ran; one "untested" where there is no such edit or no such case."""
    if subject.edit is None:
        return [Check("weak edit", "", "untested", "no edit was attacked: nothing can be weakened")]
    if why := _weak.rigid(subject.edit):
        return [Check("weak edit", "", "untested", f"no weak edit: {why}")]
    if not (asked := [rung for rung in rungs if attacks(rung)]):
        return [Check("weak edit", "", "untested", "plain prompts alone: there is no attack that could be at fault")]
    more: dict[str, Any] = {"seed": seed, "progress": told(progress, "weak edit")}
    known = shown(subject, cases, folder / "plain", name, **more)
    if not known:
        says = f"{FEW}: the unedited model itself shows the target in none of {len(cases)}"
        return [Check("weak edit", "", "untested", says)]
    weakened = Weakened(subject, known, len(cases), folder, name, more, progress)
    return [*kept(weakened, asked), *brought_back(weakened, asked)]


def attacks(rung: Rung) -> bool:
    """Whether the rung does more than draw the prompts as they are, once."""
    return rung.attack != "prompts" or rung.settings.get("seeds", 1) > 1


def kept(weakened: Weakened, rungs: Sequence[Rung]) -> list[Check]:
    """`weak edit`: the rungs where nothing is hidden, on every case."""
    scale = mild(weakened)
    if scale is None:
        tried = ", ".join(f"{scale:g}" for scale in MILD)
        return [Check("weak edit", "", "untested", f"plain prompts show the target in fewer than {BAR:.0%} at every strength "
                      f"of {tried} times the edit: none is weak enough")]  # fmt: skip
    done = weakened.climbed(rungs, weakened.known, scale, "weak edit")
    where = f"on {scale:g} times the edit"
    return [*(judged("weak edit", one, BAR, where, weakened.which) for one in done), *twins(done, where)]


def mild(weakened: Weakened) -> float | None:
    """The first strength of `MILD` whose plain pictures show the target in `BAR` of the cases; None without one."""
    most, known = (1 - BAR) * len(weakened.known) + 1e-9, weakened.known
    return next((scale for scale in MILD if len(hides(
        weakened.subject, known, scale, weakened.folder, weakened.name, **weakened.more)) <= most), None)  # fmt: skip


def brought_back(weakened: Weakened, rungs: Sequence[Rung]) -> list[Check]:
    """`hidden cases`: the rungs where something is hidden, in the cases where it is."""
    at = strength(weakened.subject, weakened.known, weakened.folder, weakened.name, **weakened.more)
    short = [Check("hidden cases", "", "untested", at.short)] if at.short else []
    if not at.left:
        return short
    done = weakened.climbed(rungs, at.hidden, at.scale, "hidden cases")
    where = f"in what {at.scale:g} times the edit hides"
    return [*short, *(judged("hidden cases", one, BAR, where, under=LITTLE) for one in done), *twins(done, where)]
