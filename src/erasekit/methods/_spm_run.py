"""One run of SPM (arXiv 2312.16145): its bench, what its steps draw (sizes, random conditions), and their rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import cos, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.training.bench import Bench, opened
from erasekit.training.loop import Step
from erasekit.training.membranes import Membranes
from erasekit.training.probes import spread

if TYPE_CHECKING:
    from erasekit.methods.spm import SPMConfig

SMALLEST = 32  # latents of a side below this are never made smaller


@contextmanager
def opened_run(backbone: Backbone, request: EraseRequest, config: SPMConfig) -> Iterator[Bench[Membranes]]:
    """The bench whose run has `steps` steps for each target."""
    run = replace(config, steps=config.steps * len(request.targets))
    retained = [request.retain[i] for i in spread(len(request.retain))]

    def student(unet: torch.nn.Module) -> Membranes:
        return Membranes(unet, request.targets, rank=config.rank, alpha=config.alpha, seed=request.seed)

    with opened(backbone, request, run, student=student, prompts=[*request.targets, *request.anchors, *retained],
                sampling_steps=config.sampling_steps) as bench:  # fmt: skip
        yield bench


def rate(step: int, config: SPMConfig) -> float:
    """The factor on the learning rate: a linear rise, then cosine descents with hard restarts."""
    warmup = min(config.warmup, config.steps // 6)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / (config.steps - warmup)
    return (1 + cos(pi * (config.cycles * progress % 1))) / 2


def sized(noise: Tensor, config: SPMConfig, draw: torch.Generator) -> Tensor:
    """The noise, cut to this step's height and width."""
    shape = noise.shape[2:]
    if config.resolution == "full" or (config.resolution == "auto" and min(shape) < SMALLEST):
        return noise
    height, width = (sides(side)[int(torch.randint(len(sides(side)), (), generator=draw))] for side in shape)
    return noise[:, :, :height, :width]


def sides(side: int) -> range:
    """The sizes of a latent's side that dynamic resolution draws from: multiples of 8 from half the side up to, and
    without, the whole ({256, ..., 448} pixels of 512)."""
    return range(8 * max(1, side // 16), max(9, side), 8)


def pinned_conditions(bench: Bench[Membranes], config: SPMConfig, target: str, step: Step) -> Tensor:
    """The conditions (m, length, width) on which the student must stay as it was."""
    text = bench.text(target)
    if not config.anchoring:
        return text[:0]
    drawn = conditions(text.cpu().float(), config.conditions, step.generator(f"conditions {target}")).to(text)
    if config.variant == "paper":
        return drawn
    # The released order is "", r1, "", r2, ..., of which the second half is read as the conditional one.
    empty = bench.text("").expand(len(drawn), -1, -1)
    return torch.stack([empty, drawn], 1).flatten(0, 1)[len(drawn) :]


def conditions(target: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Random conditions (count, length, width) for the text features (1, length, width) of a target: Gaussian directions,
    accepted with probability 1 - cos to the target's, at 0.8 to 1.2 times its norm."""
    found: list[Tensor] = []
    while len(found) < count:
        noise = torch.randn(target.shape[1:], generator=draw)
        direction = noise / noise.norm()
        accept, size = torch.rand(2, generator=draw)
        if accept < 1 - (direction * target[0]).sum() / target.norm():
            found.append((0.8 + 0.4 * size) * target.norm() * direction)
    return torch.stack(found)


def each(bench: Bench[Membranes], latents: Tensor, timestep: float, text: Tensor) -> Tensor:
    """The predictions (m * b, c, h, w) for the same latents (b) under each of the texts (m), in one forward pass."""
    return bench.denoise(latents.repeat(len(text), 1, 1, 1), timestep, text.repeat_interleave(len(latents), 0))
