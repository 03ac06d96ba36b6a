"""What a run of MACE (arXiv 2403.06135) takes besides its steps: pictures, whose attention maps are all held at once, and
sentences to be encoded for the closed forms. `mace` has the symbols."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erasekit.methods._mace_concept import Source, picture_line
from erasekit.methods._mace_loss import attention
from erasekit.methods._prior import read_captions
from erasekit.methods._templates import fill
from erasekit.training.bench import Bench
from erasekit.training.latents import guided
from erasekit.training.loop import generator
from erasekit.training.lora import LoRA
from erasekit.training.maps import maps
from erasekit.training.plan import Learned, Plan, estimate, timed
from erasekit.training.segments import Heat, positions

if TYPE_CHECKING:
    from erasekit.methods.mace import MACEConfig


def planned(bench: Bench[LoRA], config: MACEConfig, source: Source) -> Plan:
    """The plan of the whole run. `source`: the first target's files, which stand for every target's. The solves of the
    closed forms, whose time is that of their matrices and not of the run, are not in it."""
    request, prompt = bench.request, fill(config.picture, bench.request.targets[0])
    tokens, many = positions(bench.backbone, prompt, request.targets[0], ending=config.use_pooler), len(request.targets)

    def learn(latents: Tensor, timestep: float) -> Learned:
        with maps(bench.denoise.unet) as found:
            bench.denoise(latents, timestep, bench.text(prompt).expand(len(latents), -1, -1))
        whole = torch.ones_like(latents[:, 0], dtype=torch.bool)
        return attention(found.values(), whole, tokens, squared=True), list(found.values())

    each = estimate(bench, method="mace", what=f"a LoRA of rank {config.rank} for each of {many} targets", prompt=prompt,
                    sampled=0, teachers=0, learn=learn)  # fmt: skip
    with picture_line(config):
        seconds, held = looking(bench, config, source)
    weights = sum(p.numel() * p.element_size() for p in bench.denoise.unet.parameters()) + 4 * each.numbers
    # Fusion keeps every concept's factors and their products with its features, in float64, on the CPU.
    fused = 2 * 8 * many * each.numbers * (each.device == "cpu")
    return replace(each, numbers=many * each.numbers, share=many * each.share, steps=many * each.steps,
                   seconds=many * (each.seconds + seconds) + encoding(bench, config),
                   memory=max(each.memory, weights + held) + fused)  # fmt: skip


@torch.no_grad()
def looking(bench: Bench[LoRA], config: MACEConfig, source: Source) -> tuple[float, int]:
    """The seconds that one target's pictures and masks take, and the bytes of the maps that are held meanwhile."""
    if source.images and (source.masks or config.mask == "whole"):
        return 0.0, 0  # nothing is asked of the denoiser
    count, branches = len(source.images) or config.count, 1 if source.images or config.guidance == 1 else 2
    some = min(count, config.at_once)
    target, timestep = bench.request.targets[0], bench.schedule.timesteps[0]
    prompt, noise = fill(config.picture, target), bench.noise(generator("plan"), some)
    heat = Heat(bench.denoise, positions(bench.backbone, prompt, target), some)
    predict = bench.denoise if config.mask == "whole" else heat
    text, empty, guidance = bench.text(prompt), bench.text(""), config.guidance if branches == 2 else 1
    once = timed(lambda: guided(predict, noise, timestep, text, empty, guidance=guidance), bench.denoise.device)
    seconds = -(-count // some) * config.sampling_steps * once
    if config.mask == "whole":
        return seconds, 0
    with maps(bench.denoise.unet) as found:
        bench.denoise(noise[:1], timestep, text)
    return seconds, branches * some * sum(layer.numel() * layer.element_size() for layer in found.values())


def encoding(bench: Bench[LoRA], config: MACEConfig) -> float:
    """The seconds that all prompts of the run take: the pairs of the refinement, captions and what is retained, and each
    concept's own sentences."""
    request, templates = bench.request, config.sentences
    sentences = [fill(template, request.targets[0]) for template in templates]
    prompts = len(request.targets) * (3 * len(templates) + 1) + len(request.retain) * len(config.retain_in)
    prompts += len(read_captions(config.prior_file))
    return prompts / len(sentences) * timed(lambda: bench.backbone.encode(sentences), bench.denoise.device)
