"""The same methods as one would first write them: a second denoiser for the teacher, one sample at a time, guidance in
two passes, prompts encoded again in every step. The arithmetic and the chance are those of erasekit's own runs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.training.latents import Schedule, noised, parts
from erasekit.training.loop import Step


@dataclass
class Run:
    """The loss of every step, and when each was done."""

    losses: list[float] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of a step, without the first one, which is slower on any machine."""
        return (self.stamps[-1] - self.stamps[0]) / (len(self.stamps) - 1)


class Models:
    """Two full denoisers, a text encoder without a memory, and the optimiser of what is trained."""

    def __init__(self, pipe: Any, config: Any, sampling_steps: int, trained: Callable[[str], bool]) -> None:
        self.pipe, self.teacher, self.student = pipe, pipe.unet, copy.deepcopy(pipe.unet)
        self.schedule = Schedule.of(dict(pipe.scheduler.config), sampling_steps)
        self.teacher.requires_grad_(False)
        self.student.requires_grad_(False)
        self.trained = [p.requires_grad_() for name, p in self.student.named_parameters() if trained(name)]
        self.clip = config.clip or float("inf")
        self.adam = torch.optim.AdamW(self.trained, lr=config.rate, weight_decay=config.decay)

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        ids = self.pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
        return self.pipe.text_encoder(ids.to(self.student.device))[0]

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.adam.step()
        self.adam.zero_grad()

    @torch.no_grad()
    def sampled(self, latents: Tensor, text: Tensor, empty: Tensor, k: int, guidance: float) -> Tensor:
        """k guided DDIM steps of the student on one sample."""
        times = self.schedule.timesteps[: k + 1]
        for now, after in pairwise(times):
            without = predict(self.student, latents, now, empty)
            found = without + guidance * (predict(self.student, latents, now, text) - without)
            clean, noise = parts(latents, found, self.schedule.level(now), self.schedule.prediction)
            latents = noised(clean, noise, self.schedule.level(after))
        return latents


def predict(unet: Any, latents: Tensor, timestep: float, text: Tensor) -> Tensor:
    return unet(latents, timestep, encoder_hidden_states=text).sample


def esd(pipe: Any, config: Any, *, target: str, anchor: str, seed: int) -> Run:
    """ESD-x, arXiv 2303.07345."""
    models, run = Models(pipe, config, config.sampling_steps, lambda name: ".attn2." in name), Run()
    unet = models.student
    size = (config.batch, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    for index in range(config.steps):
        level, total = Step(seed, index).generator("level"), 0.0
        torch.randint(1, (), generator=level)  # which of one target
        k = int(torch.randint(config.sampling_steps, (), generator=level))
        noise = torch.randn(size, generator=Step(seed, index).generator("noise")).to(unet.device)
        timestep = models.schedule.timesteps[k]
        for one in noise.split(1):
            asked, other, empty = models.text(target), models.text(anchor), models.text("")
            latents = models.sampled(one, asked, empty, k, config.guidance)
            with torch.no_grad():
                found, away = (predict(models.teacher, latents, timestep, text) for text in (asked, other))
                wanted = away - config.eta * (found - away)
            loss = (predict(unet, latents, timestep, asked) - wanted).square().mean() / config.batch
            loss.backward()
            total += float(loss.detach())
        models.step()
        run.losses.append(total)
        run.stamps.append(time.perf_counter())
    return run


def ac(pipe: Any, config: Any, *, target: str, anchor: str, seed: int) -> Run:
    """Ablating Concepts with a frozen teacher, arXiv 2303.13516; the images and their noise are erasekit's."""
    from erasekit.methods._ac_batch import draw
    from erasekit.methods._ac_run import opened_run
    from erasekit.methods._ac_students import bos_detached

    own = ("attn2.to_k.weight", "attn2.to_v.weight")
    models, run = Models(pipe, config, config.sampling_steps, lambda name: name.endswith(own)), Run()
    request = EraseRequest.build(target, anchor=anchor, seed=seed)
    with opened_run(backbone(pipe), request, config) as tools, bos_detached(models.student):
        ready = tools.with_images(None, lambda *_: None)
        for index in range(config.steps):
            batch, total = draw(ready, Step(seed, index)), 0.0
            for i, (caption, said) in enumerate(zip(batch.captions, batch.targets, strict=True)):
                latents, timestep = batch.latents[i : i + 1], int(batch.timesteps[i])
                with torch.no_grad():
                    wanted = predict(models.teacher, latents, timestep, models.text(caption))
                found = predict(models.student, latents, timestep, models.text(said))
                loss = (found - wanted).square().mean() / config.batch
                loss.backward()
                total += float(loss.detach())
            models.step()
            run.losses.append(total)
            run.stamps.append(time.perf_counter())
    return run
