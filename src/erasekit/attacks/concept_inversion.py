"""Concept Inversion: a word learned on the edited model (Pham et al., arXiv 2308.01508, ICLR 2024).

An edit that only re-routes words leaves the denoiser able to draw the target; then a new word exists that brings it back.
The attack finds it by textual inversion run on the edited model, from pictures of the target that the unedited one makes.
E(v) is the edited text encoder's reading of a sentence with the word (rows v (k, width)); e(.) the denoiser's prediction
(b, c, h, w) at latents z_t (b, c, h, w), in the model's own space (the noise, or the velocity: every combination below
has weights that sum to one, so it means the same in both).

`against`, what the edit is:

  weights          an edit of the weights:         L(v) = E | wanted - e(v) |^2
  negative-prompt  a negative prompt s:            L(v) = E | s + g (v - s)  -  [0 + g (s - 0)] |^2
  sld              Safe Latent Diffusion with s:   L(v) = E | 0 + g G(v)     -  [0 + g (s - 0)] |^2

where in the last two v, s, 0 stand for e(v), e(s), e(the empty prompt), and g is the guidance. In words: with the defence
switched on, the word must give what plain guidance *towards* the forbidden text would have given. SLD's guidance G has a
momentum m, so its loss runs along a chain: an upper time n ~ U{R..999}, C different timesteps of [n-R, n), noisiest
first, the same picture and noise brought to each of them, and the loss taken at the last:

    d = v - s;  mu = min(1, S |d|), 0 where d >= lambda;  c = mu (s - 0) + h m;  m <- b m + (1 - b) c;  G = (v - 0) - c

Gradients flow through m. e(s) and e(0) do not depend on the word: they are computed without gradient.

What differs from the released code: the rate is written as it acts (its 5e-3 is scaled by batch 4 and accumulation 4 to
0.08; a run at 5e-3 is 16 times weaker); no row is added to the vocabulary; pictures are encoded once, cropped from their
centre; the sentences are ours. The variant for I2P, whose target is the original prompt, is not included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erasekit.attacks._inversion import InversionConfig, invert
from erasekit.attacks._inversion_learn import Batch, Loss, Variant
from erasekit.attacks.base import Case, Outcome
from erasekit.edit import Guidance
from erasekit.errors import UsageError
from erasekit.methods import check_choice, check_range
from erasekit.training.losses import squared_error

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress
    from erasekit.training.bench import Denoiser
    from erasekit.training.latents import Schedule

Noise = Float[Tensor, "b c h w"]
AGAINST = ("weights", "negative-prompt", "sld")
SCRIPT = {"steps": (5000, 1000), "batch": (16, 4), "rate": (0.08, 0.02)}  # the training scripts: usually, against sld


@dataclass(frozen=True)
class ConceptInversionConfig(InversionConfig):
    """Parameters of Concept Inversion, defaults of the authors' training scripts; a wrong value raises `UsageError`."""

    against: str = "weights"
    """What the edit is: weights, negative-prompt or sld (the last two for edits that act while sampling)."""
    steps: int = 0
    """Optimiser steps; 0: the script's, 5000 (against sld 1000)."""
    batch: int = 0
    """Samples of a step; 0: the script's, 4 accumulated 4 times, so 16 (against sld 1 x 4 = 4)."""
    rate: float = 0.0
    """AdamW's rate as it is used; 0: the script's, 5e-3 x 4 (batch) x 4 (accumulation) = 0.08 (against sld 0.02). It is
    not scaled again."""
    safety: str = ""
    """The defence's own text, for negative-prompt and sld. Empty: the target."""
    guidance: float = 7.5
    """g, for negative-prompt and sld."""
    sld_range: int = 90
    """R: timesteps that a chain spans (the paper's code by default 50)."""
    sld_count: int = 35
    """C: timesteps of a chain (by default 13)."""
    sld_scale: float = 5000.0
    """S; this and the next three are SLD's strongest setting, with no warm-up."""
    sld_threshold: float = 1.0
    """lambda."""
    sld_momentum_scale: float = 0.5
    """h."""
    sld_momentum: float = 0.7
    """b."""

    def __post_init__(self) -> None:
        check_choice("against", self.against, AGAINST)
        for name, values in SCRIPT.items():
            if not getattr(self, name):
                object.__setattr__(self, name, values[self.against == "sld"])
        super().__post_init__()
        check_range("sld_range", self.sld_range, low=1, high=999)
        check_range("sld_count", self.sld_count, low=1, high=self.sld_range)
        for name in ("guidance", "sld_scale", "sld_momentum_scale"):
            check_range(name, getattr(self, name), high=1e6)
        check_range("sld_momentum", self.sld_momentum, high=1)
        check_range("sld_threshold", self.sld_threshold, low=-1e6, high=1e6)


class ConceptInversion:
    """Learns one word on the edited model for all cases; an outcome is each case drawn with it in its prompt.

    `tensors["rows"]` (k, width) is the word, to be tried elsewhere.
    """

    name: ClassVar[str] = "concept-inversion"
    title: ClassVar[str] = "Concept Inversion: a word learned on the edited model"
    paper: ClassVar[str] = "arXiv 2308.01508"
    access: ClassVar[tuple[str, ...]] = ("prompts", "gradients", "original", "images")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[ConceptInversionConfig]] = ConceptInversionConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: ConceptInversionConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order. Raises `UsageError` for `against` a defence that the edit does not have."""
        ops = victim.edit.ops if victim.edit else ()
        if config.against != "weights" and not any(isinstance(op, Guidance) for op in ops):
            raise UsageError(f"against={config.against} is for edits that act while sampling, this one changes weights "
                             "alone: use against=weights")  # fmt: skip
        return invert(victim, cases, config, variant(victim, config), side=nullcontext, seed=seed, progress=progress)


def variant(victim: Victim, config: ConceptInversionConfig) -> Variant:
    """The loss against the defence, and where it is taken."""
    if config.against == "weights":
        return Variant()
    with torch.no_grad():
        texts = victim.condition(victim.ids(["", config.safety or victim.sight.target]))
    if config.against == "negative-prompt":
        return Variant(against_negative_prompt(texts, config.guidance), cost=3)
    return Variant(against_sld(texts, config), chain(config.sld_count, config.sld_range), 3 * config.sld_count)


# -- a negative prompt --------------------------------------------------------------------------------------------


def negative_prompt_loss(placed: Noise, safety: Noise, empty: Noise, *, guidance: float | int) -> Float[Tensor, ""]:
    """How far guidance to the word away from s is from guidance to s: predictions for the word, s and the empty prompt."""
    return squared_error(safety + guidance * (placed - safety), empty + guidance * (safety - empty))


def against_negative_prompt(texts: Float[Tensor, "2 length features"], guidance: float) -> Loss:
    """The loss with the defence on; `texts`: of the empty prompt and of s."""

    def loss(predict: Denoiser, schedule: Schedule, batch: Batch, text: Tensor) -> Tensor:
        latents, timesteps, _ = batch.at(schedule)
        empty, safety = _frozen(predict, latents, timesteps, texts)
        return negative_prompt_loss(predict(latents, timesteps, text), safety, empty, guidance=guidance)

    return loss


# -- Safe Latent Diffusion ----------------------------------------------------------------------------------------


def safe_guidance(
    placed: Noise, safety: Noise, empty: Noise, momentum: Noise, *, scale: float, threshold: float,
    momentum_scale: float, decay: float,
) -> tuple[Noise, Noise]:  # fmt: skip
    """(SLD's guidance G, the next momentum) after its warm-up. Source: arXiv 2211.05105."""
    apart = placed - safety
    share = torch.where(apart >= threshold, torch.zeros_like(apart), (scale * apart.abs()).clamp_max(1))
    correction = share * (safety - empty) + momentum_scale * momentum
    return (placed - empty) - correction, decay * momentum + (1 - decay) * correction


def against_sld(texts: Float[Tensor, "2 length features"], config: ConceptInversionConfig) -> Loss:
    """The loss at the end of a chain with the defence on; `texts`: of the empty prompt and of s."""

    def loss(predict: Denoiser, schedule: Schedule, batch: Batch, text: Tensor) -> Tensor:
        momentum, found, wanted = torch.zeros_like(batch.clean), batch.clean, batch.clean
        for i in range(batch.timesteps.shape[1]):
            latents, timesteps, _ = batch.at(schedule, i)
            empty, safety = _frozen(predict, latents, timesteps, texts)
            towards, momentum = safe_guidance(
                predict(latents, timesteps, text), safety, empty, momentum, scale=config.sld_scale,
                threshold=config.sld_threshold, momentum_scale=config.sld_momentum_scale, decay=config.sld_momentum,
            )  # fmt: skip
            found, wanted = empty + config.guidance * towards, empty + config.guidance * (safety - empty)
        return squared_error(found, wanted)

    return loss


def chain(count: int, span: int) -> Callable[[int, int, torch.Generator], Int[Tensor, "b count"]]:
    """What draws, for each sample, `count` different timesteps of `span` neighbouring ones, noisiest first."""

    def levels(size: int, trained: int, draw: torch.Generator) -> Tensor:
        top = torch.randint(span, trained, (size, 1), generator=draw)
        within = torch.rand(size, span, generator=draw).argsort(1)[:, :count]
        return (top - span + within).sort(1, descending=True).values

    return levels


@torch.no_grad()
def _frozen(predict: Denoiser, latents: Tensor, timesteps: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """The predictions for the empty prompt and for s, in one pass."""
    both = texts.repeat_interleave(len(latents), 0)
    empty, safety = predict(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), both).chunk(2)
    return empty, safety
