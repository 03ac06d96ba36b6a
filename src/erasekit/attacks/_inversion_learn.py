"""Learning by inversion: pictures of the target as the autoencoder's posteriors, the loss of a step, AdamW on the rows.

What does not depend on the rows is computed once: the posteriors of the pictures and of their mirror images (mirroring
latents would only be about that), from which each step samples, and in a step each sentence that occurs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from erasekit.attacks import pictures
from erasekit.attacks._inversion_word import Text, read
from erasekit.attacks.base import Spent
from erasekit.concept import with_article
from erasekit.errors import TrainingError
from erasekit.training import images
from erasekit.training.latents import Schedule
from erasekit.training.loop import generator
from erasekit.training.losses import squared_error

if TYPE_CHECKING:
    from erasekit.attacks._inversion import InversionConfig
    from erasekit.attacks.victim import Victim
    from erasekit.training.bench import Denoiser

PICTURE_SEEDS = 1_000_000  # away from the seeds of the cases: no picture to learn from shares a case's noise
HALF_SCALE = 1024.0  # gradients of a float16 model are this much larger on their way back, or they would underflow


def pixels(
    victim: Victim, config: InversionConfig, paths: Sequence[Path], template: str, seed: int
) -> tuple[Float[Tensor, "n 3 H W"], Spent]:
    """The pictures to learn from, in [-1, 1]: those of the files, or made by the unedited model and approved by the judge;
    and what making them cost."""
    if paths:
        factor, (_, height, width) = images.scale_of(victim.pipe.vae), victim.denoiser().shape
        return torch.stack([images.pixels(path, (height * factor, width * factor)) for path in paths]), Spent()
    target = victim.sight.target
    prompt = config.prompt or template.replace(" a {}", f" {with_article(target)}").replace("{}", target)
    drawn, spent = pictures.made_and_spent(victim, [prompt], config.pictures, seed=PICTURE_SEEDS + seed)
    found = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in drawn]))
    return found.permute(0, 3, 1, 2).float() / 127.5 - 1, spent


@torch.no_grad()
def posterior(victim: Victim, clean: Float[Tensor, "n 3 H W"]) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation), each (n, c, h, w), of the pictures' latents as the denoiser reads them."""
    vae = victim.pipe.vae
    parts = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist for part in clean.split(victim.sampling.batch)]
    wide, scale = torch.promote_types(vae.dtype, torch.float32), vae.config.scaling_factor
    return torch.cat([p.mean for p in parts]).to(wide) * scale, torch.cat([p.std for p in parts]).to(wide) * scale


class Batch(NamedTuple):
    """A step's samples: clean latents, noise, timesteps (b, 1; more for a loss over a chain), numbers of sentences."""

    clean: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    timesteps: Int[Tensor, "b n"]
    sentences: Int[Tensor, " b"]

    def at(self, schedule: Schedule, i: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """The latents at the i-th timestep of each sample, these, and what the model should predict there."""
        t = self.timesteps[:, i]
        alpha, sigma = (x[t].to(self.clean)[:, None, None, None] for x in (schedule.alphas, schedule.sigmas))
        wanted = self.noise if schedule.prediction == "epsilon" else alpha * self.noise - sigma * self.clean
        return alpha * self.clean + sigma * self.noise, t.to(self.clean.device), wanted


Loss = Callable[["Denoiser", Schedule, Batch, Tensor], Tensor]
"""(denoiser, schedule, batch, its text (b, length, features)) -> the mean loss over the batch."""
Slope = Callable[[Tensor, int], tuple[float, Tensor]]
"""(rows, step) -> the step's loss, and its gradient with respect to the rows."""


def uniform(size: int, trained: int, draw: torch.Generator) -> Int[Tensor, "b 1"]:
    """A timestep for each sample."""
    return torch.randint(trained, (size, 1), generator=draw)


def plain(predict: Denoiser, schedule: Schedule, batch: Batch, text: Tensor) -> Float[Tensor, ""]:
    """Textual inversion's loss, in the model's own prediction space."""
    latents, timesteps, wanted = batch.at(schedule)
    return squared_error(predict(latents, timesteps, text), wanted)


class Variant(NamedTuple):
    """What is minimised, at which timesteps, and how many samples the denoiser sees for each of a batch."""

    loss: Loss = plain
    levels: Callable[[int, int, torch.Generator], Tensor] = uniform
    cost: int = 1


class Lesson:
    """The loss of a step and its gradient (a `Slope`), on the side that is on. All chance is of (seed, step)."""

    def __init__(
        self, victim: Victim, config: InversionConfig, variant: Variant, text: Text, moments: tuple[Tensor, Tensor],
        seed: int,
    ) -> None:  # fmt: skip
        """`moments`: the posterior of the pictures, with `config.flip` followed by their mirror images'."""
        self.victim, self.config, self.variant, self.text, self.seed = victim, config, variant, text, seed
        self.mean, self.std = moments
        self.predict = victim.denoiser(config.precision)
        self.schedule = victim.schedule(victim.sampling.steps)
        self.encodings = 0

    def batch(self, step: int) -> Batch:
        """The step's samples, whatever the number of passes."""
        draw, size = generator(self.seed, "inversion", step), self.config.batch
        count = len(self.mean) // (1 + self.config.flip)
        picked = torch.randint(count, (size,), generator=draw)
        mirrored = torch.randint(2, (size,), generator=draw) * self.config.flip
        sentences = torch.randint(len(self.text.ids), (size,), generator=draw)
        timesteps = self.variant.levels(size, len(self.schedule.alphas), draw)
        within, noise = torch.randn(2, size, *self.mean.shape[1:], generator=draw).to(self.mean)
        picked = (picked + count * mirrored).to(self.mean.device)
        return Batch(self.mean[picked] + self.std[picked] * within, noise, timesteps, sentences)

    def __call__(self, rows: Tensor, step: int) -> tuple[float, Tensor]:
        """Each sentence is encoded once, however many samples have it; so is the way back through the encoder."""
        batch = self.batch(step)
        used, place = batch.sentences.unique(return_inverse=True)
        self.encodings += len(used)
        stored = self.victim.table.dtype
        half = stored == torch.float16  # it computes as in inference: under bfloat16 autocast its norms cannot
        scale = HALF_SCALE if torch.float16 in (stored, self.predict.dtype) else 1.0
        with torch.enable_grad():
            with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.predict.autocast and not half):
                text = read(self.victim, Text(*(x[used] for x in self.text)), rows)
            value, slope = self._parts(batch, text.detach().requires_grad_(), place, scale)
            (found,) = torch.autograd.grad(text, rows, slope)
        return value, found / scale

    def _parts(self, batch: Batch, text: Tensor, place: Tensor, scale: float) -> tuple[float, Tensor]:
        """The loss, and `scale` times its gradient with respect to the sentences' text."""
        value, slope, size = 0.0, torch.zeros_like(text), self.config.batch
        try:
            for part in torch.arange(size).split(min(-(-size // self.config.passes), self.victim.sampling.batch)):
                inside = Batch(*(x[part] for x in batch))
                loss = self.variant.loss(self.predict, self.schedule, inside, text[place[part]]) * (len(part) / size)
                slope += torch.autograd.grad(loss * scale, text)[0]
                value += float(loss.detach())
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(f"the GPU's memory is full: raise passes (now {self.config.passes}), or have fewer at once "
                                "(--batch N), or free memory of other programs") from error  # fmt: skip
        return value, slope


class Learner:
    """The rows (float32) on their way: AdamW at a constant rate."""

    def __init__(self, start: Float[Tensor, "k width"], slope: Slope, *, rate: float, decay: float) -> None:
        dtype = torch.promote_types(start.dtype, torch.float32)
        self.rows = start.detach().to(dtype, copy=True).requires_grad_()
        self.losses: list[float] = []
        self.felt = False  # whether a gradient other than zero has come
        self._slope = slope
        self._optimiser = torch.optim.AdamW([self.rows], lr=rate, weight_decay=decay)

    def until(self, step: int, report: Callable[[int, float], None]) -> None:
        """Goes on to that step; `TrainingError` where the loss stops being a number."""
        for index in range(len(self.losses), step):
            value, self.rows.grad = self._slope(self.rows, index)
            if not (math.isfinite(value) and bool(torch.isfinite(self.rows.grad).all())):
                raise TrainingError(f"the loss is not a number at step {index + 1}: lower the rate")
            self.felt = self.felt or bool(self.rows.grad.any())
            self._optimiser.step()
            self.losses.append(value)
            report(index + 1, value)
