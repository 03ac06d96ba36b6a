"""What a run will train and need, said beforehand from a few timed passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from erasekit.training.bench import Bench
from erasekit.training.latents import guided

Learned = tuple[Tensor, Sequence[Tensor]]
"""The loss of one pass with gradients, and what it holds besides that hooks on what is saved do not see."""


@dataclass(frozen=True)
class Plan:
    """A run before it is made. `seconds` and `memory` (bytes: weights, what is trained, activations) are estimates."""

    method: str
    what: str
    modules: int
    numbers: int
    share: float
    steps: int
    seconds: float
    memory: int
    device: str


def estimate(
    bench: Bench[Any], *, method: str, what: str, prompt: str, sampled: float, teachers: int, learned: int = 1,
    learn: Callable[[Tensor, float], Learned] | None = None, beside: Sequence[nn.Module] = (),
) -> Plan:  # fmt: skip
    """The plan of a run whose steps take on average `sampled` guided sampling steps, one forward pass of `teachers`
    prompts without gradient, and `learned` with gradient. Two passes of each kind are made and the second is timed.

    `learn`: the method's own pass with gradients for latents and a timestep, where it is more than a prediction for the
    prompt: what it keeps is counted whole. `beside`: the parts of the model besides the U-Net that a run holds.
    """
    config, latents = bench.config, bench.noise(torch.Generator().manual_seed(0))
    timestep, text, empty = bench.schedule.timesteps[0], bench.text(prompt), bench.text("")
    every = list(bench.denoise.unet.parameters())
    held = [*every, *(parameter for part in beside for parameter in part.parameters())]
    kept = _Kept([*held, *bench.student.trained.values()])

    def sampling() -> None:
        with torch.no_grad():
            guided(bench.denoise, latents, timestep, text, empty, guidance=3.0)

    def plain(latents: Tensor, timestep: float) -> Learned:
        return bench.denoise(latents, timestep, text.expand(len(latents), -1, -1)).square().mean(), ()

    def learning() -> None:
        with bench.student.active(), kept.counting():
            kept.found.clear()
            loss, besides = (learn or plain)(latents, timestep)
            for tensor in besides:
                kept.see(tensor)
            torch.autograd.grad(loss, list(bench.student.trained.values()), allow_unused=True)

    def teaching() -> None:
        if teachers:
            bench.predictions(latents, timestep, [prompt] * teachers)

    device = bench.denoise.device
    step = sampled * timed(sampling, device) + timed(teaching, device) + learned * timed(learning, device)
    numbers = sum(tensor.numel() for tensor in bench.student.trained.values())
    copies = 4 + bool(config.ema)  # the master, its gradient, Adam's two moments, the average
    return Plan(
        method=method, what=what, modules=len(bench.student.modules), numbers=numbers,
        share=numbers / sum(p.numel() for p in every), steps=config.steps,
        seconds=config.steps * config.accumulate * step,
        memory=sum(p.numel() * p.element_size() for p in held) + 4 * copies * numbers + kept.bytes,
        device=str(device),
    )  # fmt: skip


def timed(run: Callable[[], object], device: torch.device) -> float:
    """The seconds of the second of two runs."""
    for _ in range(2):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - began


class _Kept:
    """Counts the bytes that a forward pass keeps for its backward pass, weights aside."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.found: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self.found.values())

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self.see, lambda tensor: tensor)

    def see(self, tensor: Tensor) -> Tensor:
        """The tensor itself, which counts from now on, once."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.found[storage.data_ptr()] = storage.nbytes()
        return tensor
