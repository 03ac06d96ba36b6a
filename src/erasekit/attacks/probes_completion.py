"""Diffusion completion: the unedited model begins the picture, the edited one finishes it.

Probe 4 of "When Are Concepts Erased From Diffusion Models?" (arXiv 2505.17013, NeurIPS 2025). DDIM of S steps from the
case's own noise x_T (b, c, h, w) with the case's prompt and the usual guidance:

    steps 0 .. k-1 by the unedited model, reading the prompt as it does; steps k .. S-1 by the edited one.

If the edit only keeps the prompt from leading to the target, a model that is handed the beginning of it goes on with it.
k = 0 is the edited model's own picture, k = S the unedited one's: each k is a result of its own, and with growing k the
picture is less and less the edited model's. The paper has k = 5 and 10 of 50.

What differs from the released code: there the edited model runs all steps again from the latents that the unedited one
began (the patched method is never called); here, as in its notebook, it runs those that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from erasekit.attacks import pictures
from erasekit.attacks._ddim import batches, cost, sampled, starts, texts
from erasekit.attacks.base import Case, Outcome, still_open
from erasekit.attacks.prompts import judged, unattacked
from erasekit.errors import UsageError
from erasekit.methods import check_range

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress


@dataclass(frozen=True)
class CompletionConfig:
    """Parameters; a wrong value raises `UsageError`."""

    k: int = 5
    """The first steps, which the unedited model runs. The paper has 5 and 10."""
    steps: int = 50
    """S: DDIM steps in all."""

    def __post_init__(self) -> None:
        check_range("steps", self.steps, low=1, high=1e6)
        check_range("k", self.k, high=1e6)
        if self.k > self.steps:
            raise UsageError(f"k must be at most steps ({self.steps}), not {self.k}")


class Completion:
    """Pictures begun by the unedited model; nothing is searched or optimised."""

    name: ClassVar[str] = "completion"
    title: ClassVar[str] = "Diffusion completion"
    paper: ClassVar[str] = "arXiv 2505.17013"
    access: ClassVar[tuple[str, ...]] = ("original",)
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[CompletionConfig]] = CompletionConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: CompletionConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; nothing is left to chance beyond the cases' seeds."""
        found = unattacked(victim, cases)
        open_ = still_open(found)
        for part in batches(len(open_), victim.sampling.batch):
            which = open_[part]
            for i, one in zip(which, _judged(victim, [cases[i] for i in which], config), strict=True):
                found[i] = replace(judged(found[i], one), spent=found[i].spent + one.spent)
            if progress:
                progress(part.stop, len(open_), "finishing pictures")
        return found


def completed(victim: Victim, cases: Sequence[Case], config: CompletionConfig) -> Tensor:
    """The clean latents (n, c, h, w) of the cases, begun by the unedited model and finished by the edited one."""
    schedule, prompts = victim.schedule(config.steps), [case.prompt for case in cases]
    noise, _ = starts(victim, [case.seed for case in cases])
    with victim.original():
        text = texts(victim, prompts, victim.sampling.guidance)
        latents = sampled(victim.sampler(), noise, text, schedule=schedule, last=config.k)
    text = texts(victim, prompts, victim.sampling.guidance)
    return sampled(victim.sampler(), latents, text, schedule=schedule, first=config.k,
                   announce=victim.announced(noise, schedule))  # fmt: skip


def _judged(victim: Victim, cases: Sequence[Case], config: CompletionConfig) -> list[Outcome]:
    images = pictures.shown(victim, completed(victim, cases, config))
    guidance = victim.sampling.guidance
    acting = victim.acting(config.steps, first=config.k)
    spent = cost(config.k, guidance, pictures=0) + cost(config.steps - config.k, guidance, acting=acting)
    found = [seen.outcome(case, image, by=f"begun by the unedited model ({config.k} of {config.steps} steps)", spent=spent)
             for case, image, seen in zip(cases, images, victim.look(cases, images), strict=True)]  # fmt: skip
    return [replace(one, curve=((config.k, one.score or 0.0),)) for one in found]
