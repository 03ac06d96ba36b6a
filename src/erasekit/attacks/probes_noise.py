"""Noise-based probing: sampling with more noise than the sampler's own, many times; and how many tries are one outcome.

Probe 5 of "When Are Concepts Erased From Diffusion Models?" (arXiv 2505.17013, NeurIPS 2025). Free of training and of
gradients: DDIM that puts noise in at every step, more of it than DDPM (eta > 1), and a factor v on it besides (`_ddim`
has the formula). Each pair of eta in 1.0 .. 1.85 and v in 1.00 .. 1.04 draws a picture, 24 for each case; the one that
the judge likes best is kept. What an edit only steers around is found again by wandering.

**Best of 24 is itself an attack.** Some of what it finds is luck, which the same number of draws has without any of it:
- `etas=1 factors=1 draws=24` is this probe without its excess of noise;
- `starts=fresh` gives try j the noise of seed + 1000 j (the released code's tries differ in that, too), and the attack
  `prompts` with `seeds=24` draws from exactly these. By default all tries of a case start from its own seed's noise.

The judge that picks is the judge that scores. `score_half` does without that optimism: the cases are two halves, and each
half is scored with the one setting that did best on the other. Every try of every case is then drawn. To pick with one
judge and score with another, try the outcomes' pictures on the other judge.

What differs from the released code: there the factor v goes through a stock pipeline, which does not pass it on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.attacks import pictures
from erasekit.attacks._ddim import Churn, Hook, batches, cost, drawn_in, sampled, starts, texts
from erasekit.attacks.base import Case, Outcome, Spent, still_open
from erasekit.attacks.prompts import better, judged, unattacked
from erasekit.errors import UsageError
from erasekit.methods import check_choice, check_range

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

STARTS = ("case", "fresh")


@dataclass(frozen=True)
class Try:
    """One way to draw a case: DDIM's `eta`, the factor on its noise, the scale of a classifier's push; `turn` says which
    noise."""

    turn: int
    eta: float = 0.0
    factor: float = 1.0
    scale: float = 0.0

    def __str__(self) -> str:
        push = f", classifier scale {self.scale:g}" if self.scale else ""
        return f"eta {self.eta:g}, noise factor {self.factor:g}{push}, try {self.turn + 1}"


Job = tuple[Case, Try]
Draw = Callable[[Sequence[Job]], list["Image"]]


@dataclass(frozen=True)
class NoiseConfig:
    """Parameters; a wrong value raises `UsageError`."""

    etas: tuple[float, ...] = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)
    """How much noise each step puts in: 0 is DDIM, 1 DDPM."""
    factors: tuple[float, ...] = (1.0, 1.02, 1.03, 1.04)
    """v: what that noise is multiplied by."""
    draws: int = 1
    """Pictures for each pair of the two; with one pair and draws=24: the control."""
    steps: int = 50
    """DDIM steps."""
    starts: str = "case"
    """case: every try starts from the noise of the case's seed; fresh: try j from that of seed + 1000 j."""
    score_half: bool = False
    """Choose the setting on one half of the cases and score the other half with it, both ways round."""

    def __post_init__(self) -> None:
        check_each("etas", self.etas, high=100)
        check_each("factors", self.factors, high=100)
        check_range("draws", self.draws, low=1, high=1e6)
        check_range("steps", self.steps, low=1, high=1e6)
        check_choice("starts", self.starts, STARTS)


class Noise:
    """Draws each case under every setting; the outcome is the best of its pictures."""

    name: ClassVar[str] = "noise"
    title: ClassVar[str] = "Noise-based probing"
    paper: ClassVar[str] = "arXiv 2505.17013"
    access: ClassVar[tuple[str, ...]] = ("prompts",)
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[NoiseConfig]] = NoiseConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: NoiseConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; all noise is of the cases' seeds."""
        pairs = [(eta, factor) for _ in range(config.draws) for eta in config.etas for factor in config.factors]
        tries = [Try(turn, eta, factor) for turn, (eta, factor) in enumerate(pairs)]

        def draw(jobs: Sequence[Job]) -> list[Image]:
            return drawn(victim, jobs, config.steps, starts_from=config.starts)

        each = cost(config.steps, victim.sampling.guidance, acting=victim.acting(config.steps))
        return swept(victim, cases, tries, draw, each,
                     score_half=config.score_half, progress=progress)  # fmt: skip


def check_each(name: str, values: Sequence[float], *, high: float) -> None:
    """Raises `UsageError` unless there is a value, and each is in 0 .. high."""
    if not values:
        raise UsageError(f"{name} is empty: name at least one value")
    for value in values:
        check_range(name, value, high=high)


def drawn(
    victim: Victim, jobs: Sequence[Job], steps: int, *, starts_from: str = "case",
    push: Callable[[Sequence[Job]], Hook] | None = None,
) -> list[Image]:  # fmt: skip
    """A picture for each job; what a row's noise is depends on its case's seed and its turn alone."""
    found: list[Image] = []
    schedule = victim.schedule(steps)
    for part in batches(len(jobs), victim.sampling.batch):
        rows = jobs[part]
        latents, generators = starts(victim, [case.seed + 1000 * how.turn for case, how in rows])
        if starts_from == "case":
            latents, _ = starts(victim, [case.seed for case, _ in rows])
        etas, factors = (
            column(values, latents) for values in ([how.eta for _, how in rows], [how.factor for _, how in rows])
        )
        churn = Churn(etas, factors, generators, drawn_in(victim)) if bool(etas.any()) else None
        text = texts(victim, [case.prompt for case, _ in rows], victim.sampling.guidance)
        clean = sampled(victim.sampler(), latents, text, schedule=schedule, churn=churn,
                        push=push(rows) if push else None, announce=victim.announced(latents, schedule))  # fmt: skip
        found += pictures.shown(victim, clean)
    return found


def column(values: Sequence[float], like: Tensor) -> Float[Tensor, "b 1 1 1"]:
    """One number a row, to be multiplied with latents."""
    return torch.tensor(values).to(like)[:, None, None, None]


# -- many tries, one outcome ----------------------------------------------------------------------------------------


def swept(
    victim: Victim, cases: Sequence[Case], tries: Sequence[Try], draw: Draw, spent: Spent, *, score_half: bool,
    progress: Progress | None,
) -> list[Outcome]:  # fmt: skip
    """Each case's outcome under the tries: the best up to the first success; with `score_half` that of the try which
    did best on the other half of the cases. `spent`: what one try costs."""
    found = unattacked(victim, cases)
    open_ = still_open(found)
    tried = _tried(victim, [cases[i] for i in open_], tries, draw, spent, every=score_half, progress=progress)
    for n, i in enumerate(open_):
        one = crossed(tried, n) if score_half else best(tried[n])
        # A try is compared with the plain picture only where picking the better one is what is asked for.
        both = judged(found[i], one) if score_half else better(found[i], one, cases[i])
        found[i] = replace(both, spent=found[i].spent + one.spent, curve=one.curve)
    return found


def _tried(
    victim: Victim, cases: Sequence[Case], tries: Sequence[Try], draw: Draw, spent: Spent, *, every: bool,
    progress: Progress | None,
) -> list[list[Outcome]]:  # fmt: skip
    """The cases' outcomes, try by try: all of them, or until a case has a success. Batches hold several tries."""
    found: list[list[Outcome]] = [[] for _ in cases]
    done = 0
    while done < len(tries) and (open_ := [i for i, own in enumerate(found) if every or not _won(own)]):
        now = tries[done : done + max(1, victim.sampling.batch // len(open_))]
        jobs = [(i, how) for how in now for i in open_]
        images = draw([(cases[i], how) for i, how in jobs])
        seen = victim.look([cases[i] for i, _ in jobs], images)
        for (i, how), image, word in zip(jobs, images, seen, strict=True):
            found[i].append(word.outcome(cases[i], image, by=str(how), spent=spent))
        done += len(now)
        if progress:
            progress(done, len(tries), "drawing tries")
    return found


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """The first success, or else the best of the outcomes of one case; at the cost of all."""
    found, curve = outcomes[0], []
    for count, one in enumerate(outcomes, 1):
        found = one if count == 1 else better(found, one, one.case)
        curve.append((count, found.score or 0.0))
        if found.shown:  # what was drawn after it in the same batch does not count, whatever the batch is
            break
    return replace(found, spent=_total(outcomes), curve=tuple(curve))


def crossed(tried: Sequence[Sequence[Outcome]], own: int) -> Outcome:
    """The outcome of case `own` under the try with most successes (then the highest mean score) in the half of the
    cases that it is not in: of cases 0, 2, 4, ... for 1, 3, 5, ..., and the other way round."""
    others = tried[1 - own % 2 :: 2]

    def merit(j: int) -> tuple[int, float]:
        return sum(row[j].shown for row in others), sum(row[j].score or 0.0 for row in others)

    chosen = max(range(len(tried[own])), key=merit)  # the first of equals: so it is where there is no other half
    one = tried[own][chosen]
    note = f"the setting was chosen on the other {len(others)} cases"
    return replace(one, spent=_total(tried[own]), curve=((len(tried[own]), one.score or 0.0),),
                   note=f"{one.note}; {note}" if one.note else note)  # fmt: skip


def _won(outcomes: Sequence[Outcome]) -> bool:
    return any(one.shown for one in outcomes)


def _total(outcomes: Sequence[Outcome]) -> Spent:
    return sum((one.spent for one in outcomes), Spent())
