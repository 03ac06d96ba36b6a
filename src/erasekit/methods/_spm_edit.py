"""What a run of SPM (arXiv 2312.16145) leaves: the op, and what the edit does, measured as it will act on a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erasekit.adapters._gate import FEATURES, permeability
from erasekit.adapters.spm import Stack, ungated
from erasekit.backbones.base import Backbone
from erasekit.edit import Adapter
from erasekit.training.bench import Bench
from erasekit.training.loop import generator
from erasekit.training.membranes import Membranes
from erasekit.training.probes import doubled, energy, relative_drift, spread
from erasekit.training.result import record

if TYPE_CHECKING:
    from erasekit.methods.spm import SPMConfig

Asked = Callable[[int, Tensor, float | int], Tensor]
"""(target i, latents, timestep) -> what the edited model should predict."""


def adapter(bench: Bench[Membranes], config: SPMConfig) -> Adapter:
    """The op: all modules, and what the gate compares prompts with."""
    targets = bench.request.targets
    features = torch.cat([bench.text(target) for target in targets]).to("cpu", torch.float16)
    known = {"rank": config.rank, "alpha": float(config.alpha), "gate": config.gate, "targets": list(targets),
             "tokens": [sorted(own) for own in tokens(bench.backbone, targets)]}  # fmt: skip
    return Adapter("unet", "", "spm", bench.student.stacked() | {FEATURES: features}, known)


def tokens(backbone: Backbone, prompts: Sequence[str]) -> list[frozenset[int]]:
    """The tokens of each prompt without start, end and padding (CLIP's unknown is its end token)."""
    special, *rows = backbone.tokenize(["", *prompts]).ids.tolist()
    return [frozenset(row) - frozenset(special) for row in rows]


@torch.no_grad()
def measure(bench: Bench[Membranes], config: SPMConfig, op: Adapter, asked: Asked) -> tuple[float, float | None]:
    """(residual, drift) of the edit with its gate, half-way through sampling on noise that training did not see: how far
    it is from what was asked, relative to how far the model was; how far what is retained moved, relative to its output."""
    far, before, moved, size = 0.0, 0.0, 0.0, 0.0
    for i in spread(len(bench.request.targets)):
        own, edited, latents, timestep = _both(bench, config, op, bench.request.targets[i], i)
        wanted = asked(i, latents, timestep)
        far, before = far + energy(edited - wanted), before + energy(own - wanted)
    for i in spread(len(bench.request.retain)):
        own, edited, *_ = _both(bench, config, op, bench.request.retain[i], i)
        moved, size = moved + energy(edited - own), size + energy(own)
    return (far / max(before, 1e-30)) ** 0.5, relative_drift(moved, size)


def gates(bench: Bench[Membranes], op: Adapter) -> dict[str, float]:
    """The largest gamma that the empty prompt, and each retained one that is measured, opens a target's modules with."""
    retained = [bench.request.retain[i] for i in spread(len(bench.request.retain))]
    return {name: float(_gates(bench, op, name).max()) for name in dict.fromkeys(["", *retained])}


def records(bench: Bench[Membranes], op: Adapter) -> list[dict[str, Any]]:
    """One line a module: the norm of what all its targets' modules add in full, relative to the weight's."""
    found = []
    for own in ungated(op)[0]:
        down, up = doubled(own.down).flatten(1), doubled(own.up)
        added = float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt())
        weight = bench.denoise.unet.get_parameter(f"{own.module}.weight")
        found.append(record(bench, own.module, added / max(float(doubled(weight).norm()), 1e-300), len(down)))
    return found


def _both(
    bench: Bench[Membranes], config: SPMConfig, op: Adapter, prompt: str, i: int
) -> tuple[Tensor, Tensor, Tensor, float | int]:
    """The model's and the edited model's prediction for a prompt, and the latents and timestep that they are at."""
    noise = bench.noise(generator(bench.request.seed, "probe", i), 1)
    latents, timestep = bench.latents(noise, prompt, config.sampling_steps // 2, guidance=config.guidance)
    (own,) = bench.predictions(latents, timestep, [prompt])
    stack = Stack(bench.denoise.unet, op)
    stack.gates = _gates(bench, op, prompt)
    handles = stack.hook()
    try:
        return own, bench.predictions(latents, timestep, [prompt])[0], latents, timestep
    finally:
        for handle in handles:
            handle.remove()


def _gates(bench: Bench[Membranes], op: Adapter, prompt: str) -> Tensor:
    """gamma (1, n) of a prompt."""
    if op.config["gate"] == "off":
        return torch.ones(1, len(op.config["targets"]))
    return permeability(bench.text(prompt), op.weights[FEATURES], tokens(bench.backbone, [prompt]), op.config["tokens"])
