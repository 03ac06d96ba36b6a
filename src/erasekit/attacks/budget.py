"""What a rung can cost, worked out from its settings before anything is run: what a ladder's length is chosen by.

The worst case: no case shows the target, so nothing ends early, and the unedited model shows it in every picture that it
is asked for. n cases, each picture of S sampling steps under guidance: D = 2 S passes of one sample. `unattacked` draws
every case once (D), and searches that begin from the unedited model's picture draw that, too (another D). What depends on
edit and pipeline is not known here: the passes of an edit that acts while sampling, a sampler that makes more steps than asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import Any

from erasekit.attacks import get
from erasekit.attacks.base import Spent
from erasekit.attacks.ladder import Ladder, Rung
from erasekit.attacks.victim import Sampling
from erasekit.methods import make_config

BACKWARD = 4  # passes without gradients that take about as long as one with its way back


@dataclass(frozen=True)
class Cost:
    """Samples through the denoiser: `passes` without a way back, `gradients` with one."""

    passes: int = 0
    gradients: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(add, (self.passes, self.gradients), (other.passes, other.gradients)))

    @property
    def weight(self) -> int:
        """All of it in passes without a way back."""
        return self.passes + BACKWARD * self.gradients


@dataclass(frozen=True)
class Work:
    """n cases, and how they are drawn."""

    n: int
    how: Sampling

    @property
    def each(self) -> int:
        """D, the passes of one picture."""
        return self.drawn(self.how.steps)

    def drawn(self, steps: int, guidance: float | None = None) -> int:
        """The passes of one picture of so many steps."""
        return Spent.sampled(steps, self.how.guidance if guidance is None else guidance).passes


def worst(rung: Rung, cases: int, how: Sampling) -> Cost:
    """What the rung costs where no case shows the target. Raises `UsageError` for settings that the attack refuses."""
    return COSTS[rung.attack](make_config(get(rung.attack), rung.settings), Work(cases, how))


def total(ladder: Ladder, cases: int, how: Sampling) -> Cost:
    """What all rungs cost together."""
    return sum((worst(rung, cases, how) for rung in ladder.rungs), Cost())


def _inversion(config: Any, work: Work) -> Cost:
    """Pictures to learn from, the plain ones and the last ones, a few after some steps."""
    checks = len({step for step in config.check if step < config.steps}) * min(config.check_cases, work.n)
    made = 0 if config.images else config.pictures
    return Cost((made + checks + 2 * work.n) * work.each, config.steps * config.batch)


def _unlearndiffatk(config: Any, work: Work) -> Cost:
    search = config.iterations * (config.variant == "search")
    return Cost(work.n * (2 + config.timesteps) * work.each, work.n * config.timesteps * search)


def _p4d(config: Any, work: Work) -> Cost:
    """As above, and the unedited model's prediction in each step."""
    how = config.settled()
    steps = work.n * how.timesteps * how.iterations * (how.variant != "random")
    return Cost(work.n * (2 + how.timesteps) * work.each + steps, steps)


def _latent_inversion(config: Any, work: Work) -> Cost:
    guided = config.prompt == "concept" and (config.guidance or work.how.guidance) > 1
    down = work.drawn(config.steps, (config.guidance or work.how.guidance) if guided else 1.0)
    return Cost(work.n * (2 * work.each + config.steps * (config.rounds + 1) + down))


def _noise(config: Any, work: Work) -> Cost:
    tries = config.draws * len(config.etas) * len(config.factors)
    return Cost(work.n * (work.each + tries * work.drawn(config.steps)))


def _steering(config: Any, work: Work) -> Cost:
    """The classifier's own passes are not the denoiser's."""
    made = config.pictures * (1 if config.images else 2)
    tries = len(config.scales) * len(config.etas)
    return Cost((made + work.n) * work.each + work.n * tries * work.drawn(config.steps))


def _weight_noise(config: Any, work: Work) -> Cost:
    return Cost(work.n * (1 + 2 * config.control + config.draws) * work.each)


def _relearn(config: Any, work: Work) -> Cost:
    setting, steps = config.setting(config.pictures)
    made = (0 if config.images else config.pictures) + (config.prior_pictures if setting.prior else 0)
    drawn = 1 + (len(config.marks(steps)) if steps else 0)
    return Cost((made + work.n * drawn) * work.each, steps * setting.batch * (2 if setting.prior else 1))


COSTS: dict[str, Callable[[Any, Work], Cost]] = {
    "prompts": lambda config, work: Cost(work.n * config.seeds * work.each),
    "synonyms": lambda config, work: Cost(work.n * (1 + config.most) * work.each),
    "ring-a-bell": lambda config, work: Cost((1 + config.seeds) * work.n * work.each),
    "mma": lambda config, work: Cost((1 + config.seeds) * work.n * work.each),
    "concept-inversion": _inversion,
    "textual-inversion": _inversion,
    "unlearndiffatk": _unlearndiffatk,
    "p4d": _p4d,
    "latent-inversion": _latent_inversion,
    "noise": _noise,
    "completion": lambda config, work: Cost(work.n * (work.each + work.drawn(config.steps))),
    "inpainting": lambda config, work: Cost(work.n * (2 * work.each + config.seeds * work.drawn(config.steps))),
    "steering": _steering,
    "subtract": lambda config, work: Cost(2 * work.n * work.each),
    "weight-noise": _weight_noise,
    "relearn": _relearn,
}
