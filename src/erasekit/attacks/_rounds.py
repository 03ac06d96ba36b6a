"""What searches for tokens by gradients share: the cases that can be searched for, and the rounds of a search.

A round is some steps of optimisation and then one picture: the tokens as they are now are decoded to text, the edited
model draws it from the case's own seed, and the judge looks.

Cases are searched side by side in one batch. Each has its own variable, optimiser and source of chance, so what is
found for it does not depend on its companions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.attacks._text import Frame, content, spelled
from erasekit.attacks._vocabulary import Vocabulary
from erasekit.attacks.base import Case, Outcome, Spent, still_open
from erasekit.attacks.prompts import better, drawn, unattacked

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

LIFT = 2.0**12  # a power of two changes no digit in float32, and a half-precision encoder's gradient does not vanish


@dataclass(kw_only=True, eq=False)
class Search:
    """One case under search: what is optimised, with its own optimiser and chance, and the best picture so far.

    `clean` (c, h, w): the unedited model's picture as latents. `felt`: whether a gradient other than zero has come.
    """

    case: Case
    frame: Frame
    clean: Tensor
    variable: Tensor
    optimiser: torch.optim.Optimizer
    chance: torch.Generator
    best: Outcome
    curve: list[tuple[float, float]] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    felt: bool | None = None

    def step(self, gradient: Tensor) -> None:
        """One step of the optimiser; a gradient that is no number is left out."""
        finite = bool(torch.isfinite(gradient).all())
        self.felt = bool(self.felt) or (finite and bool(gradient.any()))
        if finite:
            self.variable.grad = gradient
            self.optimiser.step()

    def mark(self) -> None:
        """Put what was spent and the best score so far on the curve."""
        self.curve.append((float(self.best.spent.steps), self.best.score or 0.0))

    def outcome(self) -> Outcome:
        """How it ended; a search that no gradient reached says so."""
        blind = "no gradient reached the tokens: the search was blind" if self.felt is False else ""
        return replace(self.best, curve=tuple(self.curve), note=_joined(self.best.note, blind))


def gradients(losses: Float[Tensor, " n"], rows: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each case's loss in its own rows."""
    return [found / LIFT for found in torch.autograd.grad(LIFT * losses.sum(), list(rows))]


def spread(count: int, trained: int) -> list[int]:
    """`count` timesteps ascending, each in the middle of its share: 10, 30, ..., 990 for 50 of 1000."""
    return [(2 * i + 1) * trained // (2 * count) for i in range(count)]


# -- what can be searched for ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Goal:
    """A case to search for: where its free tokens stand, the unedited model's picture, how it was without attack."""

    case: Case
    frame: Frame
    picture: Image
    before: Outcome


def goals(
    victim: Victim, cases: Sequence[Case], place: Callable[[str], Frame | None]
) -> tuple[list[Outcome], dict[int, Goal]]:
    """How each case is without attack, and by number the cases to search for.

    A case is invalid where its prompt leaves no room, or where the unedited model does not show the target from its
    prompt and seed: there is nothing to bring back.
    """
    found = unattacked(victim, cases)
    frames = {i: place(cases[i].prompt) for i in still_open(found)}
    for i in (i for i, frame in frames.items() if frame is None):
        found[i] = replace(found[i], status="invalid", note="the prompt is too long for more tokens: shorten it")
    left = {i: frame for i, frame in frames.items() if frame is not None}
    with victim.original():
        originals = drawn(victim, [cases[i] for i in left])
    searched: dict[int, Goal] = {}
    for (i, frame), one in zip(left.items(), originals, strict=True):
        found[i] = replace(found[i], spent=found[i].spent + one.spent)
        if one.status == "success" and one.image is not None:
            searched[i] = Goal(cases[i], frame, one.image, found[i])
        else:
            why = one.note or f"the unedited model does not show {victim.sight.target!r} from this prompt and seed"
            found[i] = replace(found[i], status="invalid", note=why)
    return found, searched


# -- the rounds -----------------------------------------------------------------------------------------------------

Propose = Callable[[list[Any], int], list[Tensor]]
"""Searches and the number of the round -> after optimising, each one's tokens as rows of the vocabulary (k,)."""


def pursue(
    victim: Victim, vocabulary: Vocabulary, searches: Sequence[Search], propose: Propose, *, rounds: int, batch: int,
    cost: Spent, what: str, progress: Progress | None,
) -> None:  # fmt: skip
    """Search, `batch` cases side by side (no more than pictures are drawn at once), until each has shown the target or had
    its rounds, of `cost` each besides the pictures."""
    batch = min(batch, victim.sampling.batch)
    groups = [list(searches[start : start + batch]) for start in range(0, len(searches), batch)]
    for one in searches:
        one.mark()
    for number, group in enumerate(groups):
        for turn in range(rounds):
            left = [one for one in group if not one.best.shown]
            if left:
                chosen = [vocabulary.ids[rows] for rows in propose(left, turn)]
                _check(victim, left, chosen, cost)
            if progress:
                progress(number * rounds + turn + 1, len(groups) * rounds, what)


def _check(victim: Victim, searches: Sequence[Search], chosen: Sequence[Tensor], cost: Spent) -> None:
    """Draw and judge what is found now as text. A text that was drawn before would give the same picture again."""
    contents = [one.frame.content(tokens) for one, tokens in zip(searches, chosen, strict=True)]
    texts = spelled(victim, contents)
    fresh = [i for i, one in enumerate(searches) if texts[i] not in one.tried]
    seen = drawn(victim, [searches[i].case for i in fresh], [texts[i] for i in fresh])
    for one in searches:
        one.best = replace(one.best, spent=one.best.spent + cost)
    for i, now in zip(fresh, seen, strict=True):
        one, kept = searches[i], content(victim, texts[i]) == contents[i]
        note = _joined(now.note, "" if kept else "read as other tokens")
        one.tried.add(texts[i])
        one.best = better(one.best, replace(now, tensors={"tokens": chosen[i].cpu()}, note=note), one.case)
    for one in searches:
        one.mark()


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))
