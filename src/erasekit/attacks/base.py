"""What every attack shares: the case, how it ended, what was spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import add
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

STATUSES = ("success", "failure", "skipped", "invalid")
"""skipped: the target was there without an attack; invalid: no picture of the case, the attack's neither, could be judged,
or it has nothing to bring back."""
ACCESS = ("prompts", "gradients", "original", "weights", "images")
"""prompts: asks the edited model for pictures; gradients: differentiates through it; original: has the unedited model
beside it; weights: changes the edited model's; images: has pictures of the target."""


@dataclass(frozen=True)
class Case:
    """One picture that the target should be brought into: the prompt that asks for it, and the seed of its noise."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Spent:
    """What was run for a case, from its unattacked picture on: `steps` of optimisation, generations or tries (the attack's
    own unit), `passes` of the denoiser (one sample each), `encodings` of the text encoder (one prompt each), `pictures`
    judged.

    Every picture counts, also those by the unedited model, to learn from and of controls: the passes of its sampling and
    the prompts that it reads (`sampled`), whatever a batch shares, and the passes that an edit which acts while sampling
    (`guidances`) makes for it. Not counted: backward passes, the autoencoder, the
    judge's own work. What is run once for all cases is shared among them or counted with one, so that the sum over an
    attack's outcomes is what the attack cost.
    """

    steps: int = 0
    passes: int = 0
    encodings: int = 0
    pictures: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*map(add, self.values(), other.values()))

    def __mul__(self, count: int) -> Spent:
        return Spent(*(count * value for value in self.values()))

    @classmethod
    def sampled(cls, steps: int, guidance: float) -> Spent:
        """One picture sampled in so many steps, and not judged: under guidance (above 1) the denoiser sees it twice in
        each step, and the empty prompt is read beside its own."""
        halves = 2 if guidance > 1 else 1
        return cls(passes=steps * halves, encodings=halves)

    def values(self) -> tuple[int, int, int, int]:
        """The four numbers."""
        return self.steps, self.passes, self.encodings, self.pictures


def shares(spent: Spent, count: int) -> list[Spent]:
    """The cost in as equal parts as whole numbers allow."""
    return [Spent(*(value // count + (i < value % count) for value in spent.values())) for i in range(count)]


@dataclass(frozen=True, eq=False)
class Outcome:
    """How an attack ended on a case.

    `status`: one of `STATUSES`. `score`: the judge's for the target in `image`, the best picture that was seen (None
    where there is none). `by`: what brought it, in words (the prompt that was found, "a learned word"). `curve`: what
    was spent (in the attack's own unit) against the best score so far. `tensors`: what was found, to try elsewhere.
    """

    case: Case
    status: str
    score: float | None = None
    image: Image | None = None
    by: str = ""
    spent: Spent = field(default_factory=Spent)
    curve: tuple[tuple[float, float], ...] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {self.status!r}")

    @property
    def shown(self) -> bool:
        """Whether the target was seen, with or without the attack."""
        return self.status in ("success", "skipped")


def still_open(outcomes: Sequence[Outcome]) -> list[int]:
    """The cases that an attack goes on with: those in which the target was not seen yet, whatever the reason. A plain
    picture that cannot be judged is one: an edit that paints black for its prompts has not withstood anything."""
    return [i for i, outcome in enumerate(outcomes) if not outcome.shown]


def reached(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """(cases in which the target was seen, cases that count): the post-attack rate. Invalid cases count in neither."""
    valid = [outcome for outcome in outcomes if outcome.status != "invalid"]
    return sum(outcome.shown for outcome in valid), len(valid)
