"""Subtraction: whoever holds a released edit takes it off the edited model again.

    W' = W + (1 - s) d(W)        s the strength, d(W) what the edit adds to the unedited weight W

An edit that is shipped as a file is reversible by whoever has both: for the linear kinds (low rank, dense, projection)
the change is subtracted, and adapters and guidance, which are code beside the weights, act with the scale 1 - s. At s = 1
nothing of the edit is left and the model is the unedited one bit for bit, so the concept is back by construction: there
the attack measures what the unedited model shows in these cases, which an attack that searches may exceed. Below 1 it
measures how much of the change must be known; above 1 it goes past the unedited model (arXiv 2212.04089, negation).

There is no search. A subtraction in the edited weights' own half precision would leave a rounding error; here it is done
from the unedited weights, which is what the holder of the base model has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from erasekit.attacks._finetune import again, started
from erasekit.attacks.base import Case, Outcome, still_open
from erasekit.methods import check_range
from erasekit.ops import LinearOp

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.edit import Edit
    from erasekit.methods import Progress

NOTHING = "the model carries no edit: nothing was subtracted"


@dataclass(frozen=True)
class SubtractConfig:
    """Parameters; a wrong value raises `UsageError`."""

    strength: float = 1.0
    """How much of the change is subtracted: 0 nothing, 1 all of it, above 1 past the unedited model."""

    def __post_init__(self) -> None:
        check_range("strength", self.strength, high=10)


class Subtract:
    """Draws the cases with the edit's change taken off; at strength 1 they are the unedited model's, bit for bit."""

    name: ClassVar[str] = "subtract"
    title: ClassVar[str] = "Subtraction of the released edit"
    paper: ClassVar[str] = ""
    access: ClassVar[tuple[str, ...]] = ("weights", "original")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[SubtractConfig]] = SubtractConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: SubtractConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; nothing depends on `seed`. A model without an edit stays what it is,
        and its outcomes say so."""
        outcomes = started(victim, cases)
        if victim.edit is None:
            return [replace(one, note=one.note or NOTHING) for one in outcomes]
        if still_open(outcomes):
            with subtracted(victim, config.strength):
                outcomes = again(victim, outcomes, at=config.strength, by=f"the edit subtracted {config.strength:g} times",
                                 note=_note(victim.edit, config.strength))  # fmt: skip
        if progress:
            progress(1, 1, "drawing without the edit")
        return outcomes


@contextmanager
def subtracted(victim: Victim, strength: float) -> Iterator[None]:
    """Inside, the model has 1 - strength times the edit's change; afterwards it is the edited one again, bitwise."""
    with victim.original():
        if victim.edit is None or strength == 1:
            yield
        else:
            # The weights were recognised when the victim was made.
            with victim.edit.applied(victim.pipe, scale=victim.scale * (1 - strength), force=True):
                yield


def _note(edit: Edit, strength: float) -> str:
    coded = sum(not isinstance(op, LinearOp) for op in edit.ops)
    parts = f"{len(edit.ops) - coded} linear ops subtracted" * (coded < len(edit.ops))
    left = f"{coded} coded ops {'left off' if strength == 1 else f'at scale {1 - strength:g}'}" * bool(coded)
    known = "; this is the unedited model by construction" if strength == 1 else ""
    return ", ".join(filter(None, (parts, left))) + known
