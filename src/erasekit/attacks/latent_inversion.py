"""Latent inversion: is there a noise from which the edited model makes the erased picture again?

M-ErasureBench's two latent scenarios (arXiv 2512.22877, WACV 2026), written from its abstract: no code and no tables
were read, the mapping of the scenarios and the defaults are ours.

A picture of the target by the unedited model, x_0 = scaled mean of the autoencoder (b, c, h, w), is led up to noise by
DDIM run backwards with the text c (b, length, width), and from there DDIM (eta = 0) with the edited model and the same
prompt makes a picture, which is judged:

    x_{i+1} = alpha_{i+1} x0(e) + sigma_{i+1} e,   e = eps(x_{i+1}, t_{i+1}, c)        found by a fixed point

- `side=edited` (white-box): the edited model inverts, too. `side=original` (black-box): the unedited one inverts.
- `prompt=null`: the empty prompt both ways; `prompt=concept`: the case's prompt both ways.
- Inversion has guidance 1, always. `guidance` is that of the way down; at the usual one the loop does not close, and no
  null-text optimisation (an attack of its own) closes it here. Under the null prompt guidance changes nothing.

An edit that acts while sampling (`guidances`) acts on the way down, as in the pipeline, and never on the way up.

The fixed point is plain: the last round counts. ReNoise averages its rounds, which is not the exact inverse.

**Inversion is almost an auto-encoder**: white-box under the null prompt it returns nearly any picture, known or not. A
success shows something only beside its controls: the same with `images` from outside of what the model knows, and on a
model that never knew the target. Each outcome's note says how far the loop missed the picture, and the mean square of the
noise that was found (1 is what pure noise has). `tensors["latents"]` is that noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from erasekit.attacks import pictures
from erasekit.attacks._ddim import batches, cost, inverted, sampled, texts
from erasekit.attacks.base import Case, Outcome, Spent, still_open
from erasekit.attacks.prompts import judged, unattacked
from erasekit.methods import check_choice, check_range
from erasekit.training.probes import doubled

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

SIDES = ("edited", "original")
PROMPTS = ("null", "concept")


@dataclass(frozen=True)
class LatentInversionConfig:
    """Parameters; a wrong value raises `UsageError`."""

    side: str = "edited"
    """Which model inverts: edited (white-box) or original (black-box). The edited one always makes the picture."""
    prompt: str = "null"
    """null: the empty prompt both ways; concept: the case's own."""
    guidance: float | None = 1.0
    """Of the way down; none: the one that pictures are drawn with."""
    steps: int = 50
    """DDIM steps, each way."""
    rounds: int = 5
    """Fixed-point rounds of a step up; 0 is plain DDIM inversion."""
    images: str = ""
    """A folder of pictures, taken in turn, instead of those that the unedited model makes of the cases."""

    def __post_init__(self) -> None:
        check_choice("side", self.side, SIDES)
        check_choice("prompt", self.prompt, PROMPTS)
        if self.guidance is not None:
            check_range("guidance", self.guidance, low=1, high=1e3)
        check_range("steps", self.steps, low=1, high=1e6)
        check_range("rounds", self.rounds, high=1e3)


class LatentInversion:
    """Pictures of the target, inverted and made again by the edited model; nothing is searched or optimised."""

    name: ClassVar[str] = "latent-inversion"
    title: ClassVar[str] = "DDIM inversion of pictures of the target"
    paper: ClassVar[str] = "arXiv 2512.22877"
    access: ClassVar[tuple[str, ...]] = ("original", "images")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[LatentInversionConfig]] = LatentInversionConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: LatentInversionConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; nothing is left to chance beyond the cases' seeds.

        A case that the unedited model does not show the target in is invalid: there is no picture to invert.
        """
        plain = unattacked(victim, cases)
        found, open_, clean = self._sources(victim, plain, config)
        for part in batches(len(open_), victim.sampling.batch):
            which = open_[part]
            for i, one in zip(which, again(victim, [cases[i] for i in which], clean[part], config), strict=True):
                found[i] = replace(judged(plain[i], one), spent=found[i].spent + one.spent)
            if progress:
                progress(part.stop, len(open_), "inverting pictures")
        return found

    def _sources(
        self, victim: Victim, plain: list[Outcome], config: LatentInversionConfig
    ) -> tuple[list[Outcome], list[int], Tensor]:
        """What is known of each case, the numbers of those to attack, and their clean latents."""
        if not config.images:
            found, open_ = originals(victim, plain)
            images = [image for i in open_ if (image := found[i].image)]
            return found, open_, pictures.latents(victim, images) if images else torch.empty(0)
        open_ = still_open(plain)
        clean = pictures.of_folder(config.images, victim).to(victim.pipe.device)
        return list(plain), open_, clean[[n % len(clean) for n in range(len(open_))]]


def originals(victim: Victim, plain: Sequence[Outcome]) -> tuple[list[Outcome], list[int]]:
    """The outcomes with the unedited model's picture of each case that is still open, and the numbers of those in which it
    shows the target. The others are "invalid", as there is nothing to bring back."""
    found, open_ = list(plain), still_open(plain)
    cases = [plain[i].case for i in open_]
    with victim.original():
        images, each = victim.draw(cases), victim.cost()
    for i, image, seen in zip(open_, images, victim.look(cases, images), strict=True):
        why = "" if seen.hit else seen.reason or f"the unedited model's picture does not show {victim.sight.target!r}"
        found[i] = Outcome(plain[i].case, "invalid" if why else "failure", None, image, note=why,
                           spent=plain[i].spent + each)  # fmt: skip
    return found, [i for i in open_ if found[i].status == "failure"]


def again(victim: Victim, cases: Sequence[Case], clean: Tensor, config: LatentInversionConfig) -> list[Outcome]:
    """The pictures (clean latents, one for each case) inverted, made again by the edited model, and judged."""
    noise, upward = _up(victim, cases, clean, config)
    guidance = victim.sampling.guidance if config.guidance is None else config.guidance
    text = texts(victim, _prompts(cases, config), guidance if config.prompt == "concept" else 1.0)
    schedule = victim.schedule(config.steps)
    back = sampled(victim.sampler(), noise, text, schedule=schedule, announce=victim.announced(noise, schedule))
    images = pictures.shown(victim, back)
    by = (
        f"noise of the picture, inverted by the {config.side} model, {config.prompt} prompt, guidance {text.guidance:g}"
    )
    spent = upward + cost(config.steps, text.guidance, acting=victim.acting(config.steps))
    missed = (back - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
    found: list[Outcome] = []
    for i, seen in enumerate(victim.look(cases, images)):
        note = f"the loop missed the picture by {float(missed[i]):.1%}, mean square of the noise {_power(noise[i]):.2f}"
        one = seen.outcome(cases[i], images[i], by=by, spent=spent, tensors={"latents": noise[i].cpu()})
        curve = ((spent.passes, one.score or 0.0),)
        found.append(replace(one, curve=curve, note=f"{one.note}; {note}" if one.note else note))
    return found


def _up(victim: Victim, cases: Sequence[Case], clean: Tensor, config: LatentInversionConfig) -> tuple[Tensor, Spent]:
    with victim.original() if config.side == "original" else nullcontext():
        text = texts(victim, _prompts(cases, config))
        noise = inverted(victim.sampler(), clean, text, schedule=victim.schedule(config.steps), rounds=config.rounds)
    return noise, cost(config.steps * (config.rounds + 1), 1.0, pictures=0)


def _prompts(cases: Sequence[Case], config: LatentInversionConfig) -> list[str]:
    return [case.prompt if config.prompt == "concept" else "" for case in cases]


def _power(noise: Tensor) -> float:
    return float(doubled(noise).square().mean())
