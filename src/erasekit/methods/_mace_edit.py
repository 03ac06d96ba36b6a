"""What a run of MACE (arXiv 2403.06135) leaves: the attention under the fused matrices, and what must be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.methods._mace_loss import attention
from erasekit.methods._templates import fill, unread
from erasekit.training.bench import Bench
from erasekit.training.loop import generator
from erasekit.training.lora import LoRA
from erasekit.training.maps import maps
from erasekit.training.probes import spread
from erasekit.training.segments import positions

if TYPE_CHECKING:
    from erasekit.methods.mace import MACEConfig


@torch.no_grad()
def measure(bench: Bench[LoRA], config: MACEConfig, ops: Sequence[Any]) -> float:
    """How much attention the targets' tokens get under the edit, relative to the refined model that the LoRAs stand on
    (whose factors start anew): half-way through sampling, on noise that training did not see, over the whole picture."""
    bench.student.restart(generator("measure"))
    weights = {op.module: bench.denoise.unet.get_parameter(f"{op.module}.weight") for op in ops}
    edited = LoRA(bench.denoise.unet, list(weights), base={op.module: op.delta(weights[op.module]) for op in ops})
    before, after = 0.0, 0.0
    for target in some(bench.request):
        prompt = fill(config.picture, target)
        noise = bench.noise(generator(bench.request.seed, "probe", target), 1)
        latents, timestep = bench.latents(noise, prompt, config.sampling_steps // 2, guidance=config.guidance)
        read = positions(bench.backbone, prompt, target, ending=config.use_pooler)
        with bench.student.active():
            before += _attended(bench, latents, timestep, prompt, read)
        with edited.active():
            after += _attended(bench, latents, timestep, prompt, read)
    return (after / max(before, 1e-300)) ** 0.5


def _attended(bench: Bench[LoRA], latents: Tensor, timestep: float, prompt: str, tokens: Sequence[int]) -> float:
    with maps(bench.denoise.unet) as found:
        bench.denoise(latents, timestep, bench.text(prompt))
    whole = torch.ones_like(latents[:, 0], dtype=torch.bool)
    return float(attention(found.values(), whole, tokens, squared=True))


def warnings(
    backbone: Backbone, request: EraseRequest, config: MACEConfig, notes: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What does not stop a fit but matters. `notes`: one a target, with how many of its pictures `missed` it."""
    found = unread(backbone, request)
    if request.retain and not config.weights.retained:
        found.append("preserve_scale x preserve_weight is 0: what is retained is measured, not protected")
    missed = [note["target"] for note in notes if note["missed"]]
    if missed:
        found.append(f"nothing was found in some pictures of {', '.join(missed[:3])}{' and others' * (len(missed) > 3)}: "
                     "attention is suppressed there in the whole picture")  # fmt: skip
    return found


def some(request: EraseRequest) -> list[str]:
    """The targets that are measured."""
    return [request.targets[i] for i in spread(len(request.targets))]
