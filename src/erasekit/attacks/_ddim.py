"""DDIM (arXiv 2010.02502) step by step, for attacks that reach into sampling: noise put in, a push, a paste, a way back.

With alpha, sigma the level of x_t (alpha^2 is the scheduler's cumulated alpha), alpha', sigma' that of the next latents:

    x0 = (x_t - sigma eps) / alpha                              what the prediction says, whatever the model predicts
    s = eta sqrt(var),  var = (sigma'^2 / sigma^2) (1 - alpha^2 / alpha'^2)                      (eq. 16)
    x' = alpha' x0 + sqrt|sigma'^2 - s^2| eps + v s noise                                        (eq. 12, v = 1)

The absolute value is arXiv 2505.17013's: s^2 may exceed sigma'^2 for eta > 1. The last step ends at clean latents, at the
level (1, 0) (diffusers: `set_alpha_to_one=True`). A stock pipeline does not pass on a factor on the noise, and has no
place for the rest: hence a loop of our own. It asks the U-Net for both halves of the guidance in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.attacks.base import Spent
from erasekit.training.latents import Predict, Schedule, guided, noised, parts

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.guidances.sampler import Announce

Level = tuple[float, float]
Hook = Callable[[Tensor, Level], Tensor]
"""(latents (b, c, h, w), their level) -> (b, c, h, w)."""
CLEAN: Level = (1.0, 0.0)


@dataclass(frozen=True, eq=False)
class Text:
    """What the cross-attention reads: `given` (b or 1, length, width), `empty` (1, length, width), and the guidance
    from the one to the other; 1 is none."""

    given: Tensor
    empty: Tensor
    guidance: float = 1.0
    told: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside, the model knows whether a batch has both branches (`Victim.guided`)."""

    def predicted(self, predict: Predict, latents: Tensor, timestep: float) -> Tensor:
        """The guided prediction, in one pass."""
        with self.told():
            return guided(predict, latents, timestep, self.given, self.empty, guidance=self.guidance)


@dataclass(frozen=True, eq=False)
class Churn:
    """The noise that every step puts in: `eta` and the `factor` v on it, (b, 1, 1, 1); each row's from its generator."""

    eta: Tensor
    factor: Tensor
    generators: Sequence[torch.Generator]
    dtype: torch.dtype = torch.float32
    """In which the noise is drawn: the pipeline's own, else it is another noise."""

    def noise(self, like: Tensor) -> Tensor:
        """The next noise (b, c, h, w) of every row."""
        return _drawn(self.generators, like.shape[1:], self.dtype).to(like)


def starts(victim: Victim, seeds: Sequence[int]) -> tuple[Float[Tensor, "n c h w"], list[torch.Generator]]:
    """The noise that the pipeline starts from for each seed, of unit variance; and the generators as it has them then.

    What they give next is the noise that the pipeline puts in at its first step, where its sampler has one.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    noise = _drawn(generators, victim.denoiser().shape, drawn_in(victim))
    return noise.to(victim.pipe.device, torch.promote_types(noise.dtype, torch.float32)), generators


def drawn_in(victim: Victim) -> torch.dtype:
    """The dtype in which the pipeline draws noise."""
    return victim.pipe.text_encoder.dtype


@torch.no_grad()
def texts(victim: Victim, prompts: Sequence[str], guidance: float = 1.0) -> Text:
    """The prompts as the side that is on reads them, each encoded once. Guidance below 1 is none, as in the pipeline."""
    unique, guidance = list(dict.fromkeys(["", *prompts])), max(guidance, 1.0)
    found = victim.condition(victim.ids(unique))
    given = found[[unique.index(prompt) for prompt in prompts]]
    return Text(given, found[:1], guidance, lambda: victim.guided(guidance))


def cost(steps: int, guidance: float, *, pictures: int = 1, acting: int = 0) -> Spent:
    """What so many steps of one picture cost; `pictures` 0 where none comes out of them. `acting`: the passes of what was
    announced (`Victim.acting`)."""
    return Spent.sampled(steps, guidance) + Spent(steps=pictures, passes=acting, pictures=pictures)


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@torch.no_grad()
def sampled(
    predict: Predict, latents: Float[Tensor, "b c h w"], text: Text, *, schedule: Schedule, first: int = 0,
    last: int | None = None, churn: Churn | None = None, push: Hook | None = None, paste: Hook | None = None,
    announce: Announce | None = None,
) -> Float[Tensor, "b c h w"]:  # fmt: skip
    """The latents after the steps first .. last - 1 of the schedule (default: all), exactly at the level reached.

    `churn`: noise put in at every step, else none (eta = 0). `push(x_t, level)` is taken off the predicted noise.
    `paste(x, level)` stands instead of the latents: before the first step and after every step. `announce(x_t, i)` stands
    instead of what step i takes: where the edited model samples, for edits that act while it does (`Victim.announced`).
    """
    levels = [*map(schedule.level, schedule.timesteps), CLEAN]
    latents = paste(latents, levels[first]) if paste else latents
    for i in range(first, len(schedule.timesteps) if last is None else last):
        now, after = levels[i], levels[i + 1]
        latents = announce(latents, i) if announce else latents
        prediction = text.predicted(predict, latents, schedule.timesteps[i])
        clean, eps = parts(latents, prediction, now, schedule.prediction)
        if push:
            clean, eps = pushed(clean, eps, push(latents, now), now)
        latents = noised(clean, eps, after) if churn is None else churned(clean, eps, now, after, churn)
        latents = paste(latents, after) if paste else latents
    return latents


def churned(
    clean: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], now: Level, after: Level, churn: Churn
) -> Float[Tensor, "b c h w"]:
    """The latents at the level `after`, part of their noise exchanged for fresh noise."""
    variance = (after[1] / now[1]) ** 2 * (1 - (now[0] / after[0]) ** 2)
    spread = churn.eta * max(variance, 0.0) ** 0.5
    kept = (after[1] ** 2 - spread.square()).abs().sqrt()
    return after[0] * clean + kept * eps + churn.factor * spread * churn.noise(eps)


def pushed(
    clean: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], push: Float[Tensor, "b c h w"], level: Level
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """(x0, eps) with `push` taken off the noise, of the same x_t. At a level without signal x0 stays as it is."""
    alpha, sigma = level
    return clean + (sigma / alpha if alpha else 0.0) * push, eps - push


@torch.no_grad()
def inverted(
    predict: Predict, clean: Float[Tensor, "b c h w"], text: Text, *, schedule: Schedule, rounds: int
) -> Float[Tensor, "b c h w"]:
    """The noise at the first timestep from which `sampled` (eta = 0, the same text) comes back to `clean`.

    Each step up takes the prediction at the upper timestep: first of the lower latents (plain DDIM inversion), then in
    `rounds` of the latents found so far. Where these settle, the step is the exact inverse of the step down.
    """
    latents, lower = clean, CLEAN
    for timestep in reversed(schedule.timesteps):
        upper, found = schedule.level(timestep), latents
        for _ in range(rounds + 1):
            found = risen(latents, text.predicted(predict, found, timestep), lower, upper, schedule.prediction)
        latents, lower = found, upper
    return latents


def risen(
    latents: Float[Tensor, "b c h w"], prediction: Float[Tensor, "b c h w"], lower: Level, upper: Level, kind: str
) -> Float[Tensor, "b c h w"]:
    """The latents at `upper` whose step down ends in `latents` if this is what the model predicts there.

    Solved in the model's own prediction: for v, eps would depend on the latents that are looked for.
    """
    (a, s), (alpha, sigma) = lower, upper
    if kind == "epsilon":
        return alpha * (latents - s * prediction) / a + sigma * prediction
    return (latents + (a * sigma - s * alpha) * prediction) / (a * alpha + s * sigma)  # v: the step is a rotation


def _drawn(generators: Sequence[torch.Generator], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """One noise of each generator (n, c, h, w); one by one, as the pipeline draws it."""
    return torch.cat([torch.randn((1, *shape), generator=draw, dtype=dtype) for draw in generators])
