"""Noisy latents: partial denoising, forward noising, and what a prediction says about a latent.

A latent at timestep t is alpha_t x0 + sigma_t eps. Steps are DDIM's (arXiv 2010.02502 eq. 12, no noise added) between
any two timesteps, so a trajectory ends exactly at the level of the timestep that it is evaluated at; for a flow, where
alpha = 1 - sigma, that step is Euler's. All coefficients come from the model's own scheduler configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.errors import ModelError, UsageError

Predict = Callable[[Tensor, float, Tensor], Tensor]
"""(latents (b, c, h, w), timestep, text (b, length, width)) -> prediction (b, c, h, w), float32."""
KINDS = ("epsilon", "v_prediction", "flow_prediction")


@dataclass(frozen=True, eq=False)
class Schedule:
    """The levels (alpha_t, sigma_t) of every trained timestep, cleanest first, and the sampler's `timesteps`, noisiest
    first. A flow's timesteps are n sigma_t, n their number, and need not be whole."""

    alphas: Tensor
    sigmas: Tensor
    timesteps: tuple[float | int, ...]
    prediction: str

    @classmethod
    def of(cls, config: Mapping[str, Any], steps: int, *, flow: bool = False) -> Schedule:
        """The schedule of a diffusers scheduler's configuration, with DDIM's timesteps for so many steps, or, with `flow`,
        those of a flow's Euler steps: for callers that take the trained timesteps from `trained`.

        Raises `ModelError` for what it is not for (a flow without `flow`, one whose levels depend on the picture's size,
        another prediction type), `UsageError` for more steps than the model was trained with.
        """
        from diffusers import DDIMScheduler

        if flow and "shift" in config and "beta_start" not in config:
            return cls._of_flow(config, steps)
        kind = config.get("prediction_type", "epsilon")
        if "beta_start" not in config or kind not in KINDS[:2]:
            raise ModelError(
                f"the model's noise schedule is not supported by methods that train (prediction type {kind}, "
                f"{'' if 'beta_start' in config else 'no '}betas): give one that predicts epsilon or v"
            )
        own = {key: config[key] for key in DDIM_KEYS if key in config}
        scheduler = DDIMScheduler(**own)
        trained = len(scheduler.alphas_cumprod)
        if steps > trained:
            raise UsageError(
                f"the model knows {trained} timesteps: it cannot be sampled in {steps}; lower sampling_steps"
            )
        scheduler.set_timesteps(steps)
        if int(scheduler.timesteps.max()) >= trained:  # a steps_offset with all timesteps used
            raise UsageError(
                f"in {steps} steps the sampler leaves the model's {trained} timesteps; lower sampling_steps"
            )
        levels = scheduler.alphas_cumprod.double()
        return cls(levels.sqrt(), (1 - levels).sqrt(), tuple(scheduler.timesteps.tolist()), kind)

    @classmethod
    def _of_flow(cls, config: Mapping[str, Any], steps: int) -> Schedule:
        from diffusers import FlowMatchEulerDiscreteScheduler

        if odd := [key for key in ("use_dynamic_shifting", "invert_sigmas") if config.get(key)]:
            raise ModelError(f"the model's flow schedule is not supported by methods that train ({odd[0]}): give one whose "
                             "sigmas are the same for every size of picture, and fall")  # fmt: skip
        # The class's own defaults where the configuration is silent; what it does not know, another flow's, is left out.
        names = FlowMatchEulerDiscreteScheduler().config.keys()
        scheduler = FlowMatchEulerDiscreteScheduler(**{key: config[key] for key in names if key in config})
        sigmas = torch.as_tensor(scheduler.sigmas).double().flip(0)
        scheduler.set_timesteps(steps)
        times = torch.as_tensor(scheduler.timesteps).tolist()
        return cls(1 - sigmas, sigmas, tuple(times), "flow_prediction")

    def level(self, timestep: float | int) -> tuple[float, float]:
        """(alpha, sigma) of a timestep; a flow has one for every number."""
        if self.prediction == "flow_prediction":
            sigma = timestep / len(self.sigmas)
            return 1 - sigma, sigma
        return float(self.alphas[int(timestep)]), float(self.sigmas[int(timestep)])

    @property
    def trained(self) -> tuple[float | int, ...]:
        """Every timestep that the model was trained at, cleanest first."""
        if self.prediction == "flow_prediction":
            return tuple((self.sigmas * len(self.sigmas)).tolist())
        return tuple(range(len(self.alphas)))


DDIM_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "steps_offset",
             "timestep_spacing", "rescale_betas_zero_snr")  # fmt: skip


def noised(
    clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], level: tuple[float, float]
) -> Float[Tensor, "b c h w"]:
    """alpha x0 + sigma eps: clean latents at a level (forward noising)."""
    alpha, sigma = level
    return alpha * clean + sigma * noise


def truth(
    clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], level: tuple[float, float], kind: str
) -> Float[Tensor, "b c h w"]:
    """What a model that knows both predicts for them at this level: what it is trained to say."""
    alpha, sigma = level
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return alpha * noise - sigma * clean
    if kind == "flow_prediction":
        return noise - clean
    raise ValueError(f"unknown kind of prediction {kind!r}: {', '.join(KINDS)}")


def parts(
    latents: Float[Tensor, "b c h w"], prediction: Float[Tensor, "b c h w"], level: tuple[float, float], kind: str
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """(x0, eps) that the prediction says the latents are made of."""
    alpha, sigma = level
    if kind == "epsilon":
        return (latents - sigma * prediction) / alpha, prediction
    if kind == "v_prediction":  # v = alpha eps - sigma x0, alpha^2 + sigma^2 = 1
        return alpha * latents - sigma * prediction, alpha * prediction + sigma * latents
    if kind == "flow_prediction":  # v = eps - x0, alpha + sigma = 1
        return latents - sigma * prediction, latents + alpha * prediction
    raise ValueError(f"unknown kind of prediction {kind!r}: {', '.join(KINDS)}")


def converted(
    latents: Float[Tensor, "b c h w"],
    prediction: Float[Tensor, "b c h w"],
    level: tuple[float, float],
    *,
    kind: str,
    wanted: str,
) -> Float[Tensor, "b c h w"]:
    """The same statement about the latents as another kind of prediction."""
    return truth(*parts(latents, prediction, level, kind), level, wanted)


def guided(
    predict: Predict, latents: Tensor, timestep: float | int, text: Tensor, empty: Tensor, *, guidance: float | int
) -> Tensor:
    """Classifier-free guidance, both branches in one forward pass: u + g (c - u). `text`, `empty`: (1, length, width)."""
    count = len(latents)
    if guidance == 1:
        return predict(latents, timestep, text.expand(count, -1, -1))
    both = torch.cat([empty.expand(count, -1, -1), text.expand(count, -1, -1)])
    unconditional, conditional = predict(latents.repeat(2, 1, 1, 1), timestep, both).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def partly_denoised(
    predict: Predict, noise: Tensor, text: Tensor, empty: Tensor, *, schedule: Schedule, k: int, guidance: float | int
) -> Tensor:
    """The latents after k DDIM (a flow: Euler) steps from `noise` (b, c, h, w): at the level of `schedule.timesteps[k]`.

    k = 0 is the noise itself. k is below the number of timesteps: a latent without noise has no timestep.
    """
    latents = noise
    for now, after in zip(schedule.timesteps[:k], schedule.timesteps[1 : k + 1], strict=True):
        prediction = guided(predict, latents, now, text, empty, guidance=guidance)
        clean, eps = parts(latents, prediction, schedule.level(now), schedule.prediction)
        latents = noised(clean, eps, schedule.level(after))
    return latents
