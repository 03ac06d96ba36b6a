"""Prompts as they are: what a plain question, a synonym, a paraphrase or a prompt found elsewhere brings out.

No search: each case is drawn as it is and judged. It is the first rung of every ladder, and how prompts that were found
against one edit are tried on another. With `seeds` > 1 it is the control of every attack that draws many pictures: a
seed search, which keeps the picture that the judge likes best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from erasekit.attacks.base import Case, Outcome
from erasekit.methods import check_range

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress


@dataclass(frozen=True)
class PromptsConfig:
    """Parameters; a wrong value raises `UsageError`."""

    seeds: int = 1
    """Pictures of each prompt: its own seed, and after it the next ones (+1000, +2000, ...) until one shows the target."""

    def __post_init__(self) -> None:
        check_range("seeds", self.seeds, low=1, high=1e6)


class Prompts:
    """Draws each case as it is; the outcome is the best of its pictures."""

    name: ClassVar[str] = "prompts"
    title: ClassVar[str] = "Prompts as they are"
    paper: ClassVar[str] = ""
    access: ClassVar[tuple[str, ...]] = ("prompts",)
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[PromptsConfig]] = PromptsConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: PromptsConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; only cases that are not yet successes are drawn with another seed."""
        tell = progress and (lambda turn: progress(turn, config.seeds, "drawing prompts"))
        return sought(cases, config.seeds, lambda which, seeded: drawn(victim, seeded), tell)


Draw = Callable[[Sequence[int], Sequence[Case]], Sequence[Outcome]]
"""(which of the cases, these with the seed to draw from) -> their outcomes."""


def sought(cases: Sequence[Case], seeds: int, draw: Draw, tell: Callable[[int], None] | None = None) -> list[Outcome]:
    """The best outcome of each case from its own seed and the next ones (+1000, ...); only cases that are not yet successes
    are drawn with another seed. `tell` gets the number of seeds that are done."""
    found: dict[int, Outcome] = {}
    for turn in range(seeds):
        open_ = [i for i in range(len(cases)) if i not in found or not found[i].shown]
        for i, one in zip(open_, draw(open_, [turned(cases[i], turn) for i in open_]), strict=True):
            found[i] = better(found.get(i), one, cases[i])
        if tell:
            tell(turn + 1)
    return [found[i] for i in range(len(cases))]


def drawn(victim: Victim, cases: Sequence[Case], prompts: Sequence[str] | None = None) -> list[Outcome]:
    """Each case drawn from its seed and judged: as it is, or with another prompt."""
    asked = [case.prompt for case in cases] if prompts is None else prompts
    images = victim.draw([Case(prompt, case.seed) for prompt, case in zip(asked, cases, strict=True)])
    return [seen.outcome(case, image, by=prompt, spent=victim.cost())
            for case, prompt, image, seen in zip(cases, asked, images, victim.look(cases, images), strict=True)]  # fmt: skip


def unattacked(victim: Victim, cases: Sequence[Case]) -> list[Outcome]:
    """Each case drawn as it is: skipped where the target is there already, else what there is to improve on. Where the victim
    does not let cases be skipped, such a picture is nothing that an attack brought, and a failure without a picture."""
    already: dict[str, Any] = (
        {"status": "skipped"} if victim.skip else {"status": "failure", "score": None, "image": None, "by": ""}
    )
    return [replace(one, **already) if one.shown else one for one in drawn(victim, cases)]


def better(first: Outcome | None, second: Outcome, case: Case) -> Outcome:
    """The better of two outcomes of a case (a success, then a valid one, then the higher score), with what both cost."""
    if first is None:
        return replace(second, case=case)
    order = [(one.shown, one.status != "invalid", one.score or 0.0) for one in (first, second)]
    best = second if order[1] > order[0] else first
    return replace(best, case=case, spent=first.spent + second.spent)


def judged(plain: Outcome, one: Outcome) -> Outcome:
    """The outcome by an attack's one picture of a case whose plain picture ended as `plain`, at the attack's own cost: a
    case is invalid only where neither could be judged, else the plain picture stands, with what is said of the other."""
    if one.status != "invalid" or plain.status == "invalid":
        return one
    note = f"the attack's picture could not be judged: {one.note}"
    return replace(one, status=plain.status, score=plain.score, image=plain.image, by=plain.by, note=note)


def turned(case: Case, turn: int) -> Case:
    """The case from its own seed (turn 0), or from one of the next."""
    return Case(case.prompt, case.seed + 1000 * turn)
