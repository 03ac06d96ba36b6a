"""One batch of Ablating Concepts (arXiv 2303.13516): samples drawn from a step alone, their captions, and what
augmentation makes of both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.methods._anchors import CLOSE, FAR, Item
from erasekit.training import images as pictures
from erasekit.training.bench import Bench
from erasekit.training.latents import noised, truth
from erasekit.training.loop import Step, generator

if TYPE_CHECKING:
    from erasekit.methods._ac_run import Run

SMALL = 0.6  # below this size the target's caption says that it is far away


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass reads: `latents` (b, c, h, w) noised to their `timesteps` (b,), what the model should say of
    them by its training (`truth`: eps, v or a flow's velocity), the two captions of each sample, and the valid latents
    (b, 1, h, w)."""

    latents: Float[Tensor, "b c h w"]
    timesteps: Tensor
    truth: Float[Tensor, "b c h w"]
    captions: list[str]
    targets: list[str]
    mask: Float[Tensor, "b 1 h w"] | None = None


class Reader:
    """The frozen model's text features. Each prompt is encoded by itself: what it gives depends on nothing else."""

    def __init__(self, bench: Bench[Any]) -> None:
        def one(prompt: str) -> Tensor:
            return bench.backbone.encode([prompt]).to(bench.denoise.device, bench.denoise.dtype)

        self._one = lru_cache(maxsize=512)(one)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(n, length, width)."""
        return torch.cat([self._one(prompt) for prompt in prompts])


def draw(run: Run, step: Step) -> Batch:
    """A batch: for each sample a target, one of its images with its captions, and a timestep; from the step alone."""
    chance, size, schedule = step.generator("items"), run.config.batch, run.bench.schedule
    found = picked(run, chance)
    captions, targets = [item.caption for item, _ in found], [target for _, target in found]
    assert run.images is not None
    clean, mask = run.images[[run.rows[item.image] for item, _ in found]].to(run.bench.denoise.device), None
    if run.config.augments:
        clean, mask, targets = _augmented(run, clean, targets, step.generator("augmentation"))
    trained = schedule.trained
    timesteps = [trained[i] for i in torch.randint(len(trained), (size,), generator=chance).tolist()]
    noise = run.bench.noise(step.generator("noise"))
    levels = [schedule.level(t) for t in timesteps]
    pairs = [(z[None], eps[None], level) for z, eps, level in zip(clean, noise, levels, strict=True)]
    latents = torch.cat([noised(z, eps, level) for z, eps, level in pairs])
    said = torch.cat([truth(z, eps, level, schedule.prediction) for z, eps, level in pairs])
    return Batch(latents, torch.tensor(timesteps, device=latents.device), said, captions, targets, mask)


def picked(run: Run, chance: torch.Generator) -> list[tuple[Item, str]]:
    """For each sample of a batch one of a target's images, and one of the target's captions for it."""
    items = [_one(_one(run.gallery.items, chance), chance) for _ in range(run.config.batch)]
    return [(item, _one(item.targets, chance)) for item in items]


def augmenting(run: Run) -> float:
    """The seconds that augmenting a batch takes."""
    if not run.config.augments:
        return 0.0
    clean, seconds = torch.zeros(run.config.batch, *run.bench.denoise.shape), 0.0
    for _ in range(2):  # the first is slower on any machine
        began = time.perf_counter()
        _augmented(run, clean, [""] * len(clean), generator("timed"))[0].cpu()
        seconds = time.perf_counter() - began
    return seconds


def _augmented(
    run: Run, clean: Tensor, targets: Sequence[str], chance: torch.Generator
) -> tuple[Tensor, Tensor, list[str]]:
    """The latents of augmented images, their masks, and the targets' captions that say how large they are now."""
    factor, latents, masks, scales = pictures.scale_of(run.vae), [], [], []
    for one in clean:  # in pixels a batch is far larger than what training itself keeps of it
        found = pictures.augmented(pictures.decoded(run.vae, one[None])[0], factor, chance)
        latents.append(pictures.encoded(run.vae, found.image[None]))
        masks.append(found.mask)
        scales.append(found.scale)
    said = [_sized(target, scale, chance) for target, scale in zip(targets, scales, strict=True)]
    return torch.cat(latents).to(clean.device), torch.stack(masks).to(clean.device), said


def _sized(caption: str, scale: float, chance: torch.Generator) -> str:
    """The caption, saying where the image became much smaller or larger."""
    if SMALL <= scale <= 1:
        return caption
    return _one(FAR if scale < SMALL else CLOSE, chance).replace("{}", caption)


def _one(choices: Sequence[Any], chance: torch.Generator) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=chance))]
