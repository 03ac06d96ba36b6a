"""What searches in the text encoder alone share: which encoder, what is told on the way, and what a found prompt comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from erasekit.attacks.base import Outcome, Spent
from erasekit.attacks.prompts import better, drawn, sought

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress


@dataclass(frozen=True, eq=False)
class Found:
    """A prompt that was found for a case, and what is to be said of the search."""

    prompt: str
    spent: Spent
    curve: tuple[tuple[float, float], ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    note: str = ""


def side(victim: Victim, encoder: str) -> AbstractContextManager[None]:
    """Inside, the pipeline's text encoder is the one of that name: original or edited."""
    return victim.original() if encoder == "original" else nullcontext()


def teller(progress: Progress | None, number: int, count: int, each: int) -> Callable[[int], None]:
    """What reports the steps of search `number` of `count` that take `each` steps."""

    def tell(step: int) -> None:
        if progress:
            progress(number * each + step, count * each, f"searching words for prompt {number + 1} of {count}")

    return tell


def settled(victim: Victim, plain: Sequence[Outcome], found: Mapping[int, Found], seeds: int) -> list[Outcome]:
    """The plain outcomes, and where a prompt was found the better of that and of the prompt as the edited model draws it
    from up to `seeds` seeds, the case's own first. Curve, tensors and note are the search's."""
    outcomes = list(plain)
    prompts = [one.prompt for one in found.values()]
    draw = lambda which, seeded: drawn(victim, seeded, [prompts[i] for i in which])  # noqa: E731
    tried = sought([plain[i].case for i in found], seeds, draw)
    for (i, one), new in zip(found.items(), tried, strict=True):
        best = better(plain[i], new, new.case)
        note = "; ".join(filter(None, [one.note, new.note]))
        outcomes[i] = replace(best, spent=best.spent + one.spent, curve=one.curve, tensors=one.tensors, note=note)
    return outcomes
