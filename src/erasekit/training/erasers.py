"""Erasers beside a U-Net's cross-attentions, trained while the U-Net stays frozen; the learned prompts that attack them;
where they must be silent (arXiv 2311.17717)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log, sqrt
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from erasekit.adapters.receler import PARTS, Residual, conditional, eraser, put
from erasekit.training.loop import generator
from erasekit.training.maps import cross_attentions, grid, resized
from erasekit.training.parameters import require_trainable

BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, as published


class Erasers:
    """One eraser a cross-attention, float32: D and b drawn from the seed as a linear layer's, U and b' zero, so that
    fresh ones change nothing. `training.parameters.Trained`."""

    def __init__(self, unet: Any, *, rank: int, seed: int) -> None:
        """Raises `ModelError`: no cross-attention, or weights there with NaN or quantised."""
        self.attentions = cross_attentions(unet)
        self.trained: dict[str, Tensor] = {}
        self._seen: dict[str, tuple[Tensor, Tensor]] | None = None
        for path, attention in self.attentions.items():
            for name, tensor in attention.named_parameters():
                require_trainable(f"{path}.{name}", tensor)
            weight = attention.to_out[0].weight
            fresh = _fresh(weight.shape[0], rank, generator(seed, "eraser", path))
            wide = torch.promote_types(weight.dtype, torch.float32)
            for part, tensor in zip(PARTS, fresh, strict=True):
                self.trained[f"{path}.{part}"] = tensor.to(weight.device, wide).requires_grad_()

    @property
    def modules(self) -> list[str]:
        """The output projection of each cross-attention, sorted."""
        return sorted(f"{path}.to_out.0" for path in self.attentions)

    @contextmanager
    def active(self, *, learning: bool = True, halved: bool = False) -> Iterator[None]:
        """Inside, the erasers act: with `learning` gradients reach them, with `halved` on the second half of the batch
        alone (where the first is the unconditional one)."""
        removers = []
        try:
            for path, attention in self.attentions.items():
                residual = self._residual(path, learning)
                removers.append(put(attention, conditional(residual) if halved else residual))
            yield
        finally:
            for remove in removers:
                remove()

    @contextmanager
    def watched(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Inside, the first forward pass with active erasers fills the dict: cross-attention's path -> (h, E(h)), both
        (b, positions, d), with gradients."""
        self._seen = {}
        try:
            yield self._seen
        finally:
            self._seen = None

    def _residual(self, path: str, learning: bool) -> Residual:
        own = [self.trained[f"{path}.{part}"] for part in PARTS]
        own = own if learning else [tensor.detach() for tensor in own]

        def residual(hidden: Tensor) -> Tensor:
            added = eraser(hidden, *own)
            if self._seen is not None:
                self._seen.setdefault(path, (hidden, added))  # not those of gradient checkpointing's second pass
            return added

        return residual


class SoftPrompts:
    """One learned matrix (rows, width) for each concept, uniform in [0, 1) at first, each with its own Adam.

    `tensors` is all that moves, for the run's checkpoint.
    """

    def __init__(self, count: int, rows: int, width: int, *, seed: int, device: torch.device) -> None:
        self.tensors: dict[str, Tensor] = {}
        for i in range(count):
            prompt = torch.rand(rows, width, generator=generator(seed, "attack", i)).to(device)
            moments = {f"{i}.first": torch.zeros_like(prompt), f"{i}.second": torch.zeros_like(prompt)}
            self.tensors |= {f"{i}.prompt": prompt, **moments, f"{i}.steps": torch.zeros((), dtype=torch.long)}

    def leaf(self, i: int) -> Float[Tensor, "rows width"]:
        """Concept i's matrix as it is now: a copy that gathers gradients."""
        return self.tensors[f"{i}.prompt"].clone().requires_grad_()

    @torch.no_grad()
    def move(self, i: int, gradient: Float[Tensor, "rows width"], *, rate: float, decay: float) -> None:
        """One step of Adam with L2 weight decay (arXiv 1412.6980 Algorithm 1), in place."""
        prompt, first, second, steps = (self.tensors[f"{i}.{name}"] for name in ("prompt", "first", "second", "steps"))
        gradient = gradient + decay * prompt
        steps += 1
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        one, two = (1 - beta ** int(steps) for beta in BETAS)
        prompt.addcdiv_(first, (second / two).sqrt_().add_(EPS), value=-rate / one)


def inserted(
    text: Float[Tensor, "1 length width"], prompt: Float[Tensor, "rows width"], start: int
) -> Float[Tensor, "1 length width"]:
    """The text features with the rows from `start` on truly replaced by the prompt, which gathers their gradient; in
    the prompt's precision, where that does not underflow."""
    rows = torch.arange(start, start + len(prompt), device=text.device)
    return text.to(prompt.dtype).index_copy(1, rows, prompt.to(text.device)[None])


def attended(found: list[Tensor], tokens: range, size: tuple[int, int], threshold: float) -> Bool[Tensor, "b h w"]:
    """Where the tokens are attended to. `found`: probabilities (b, heads, positions, tokens), one tensor a layer; `size`:
    the latents' (h, w).

    The mean over heads, tokens and the layers at a quarter of the latents' side (where no layer has that many positions:
    those nearest in ratio, the coarser of two as near), at or above `threshold` once scaled to [0, 1] sample by sample.
    That is multiplied out: a constant map, which says nothing of where, has everything inside and no 0/0."""
    counts = {layer.shape[2] for layer in found}
    positions = min(counts, key=lambda count: (abs(log(16 * count / (size[0] * size[1]))), count))
    chosen = [layer[..., tokens.start : tokens.stop].mean((1, 3)) for layer in found if layer.shape[2] == positions]
    mean = torch.stack(chosen).mean(0)
    low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
    return (mean - low >= threshold * (high - low)).unflatten(1, grid(positions, size))


def locality(outputs: Mapping[str, Tensor], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """L_R of the erasers' outputs (b, positions, d): their mean square outside the mask, sample by sample, layer by
    layer. Zero where nothing is outside."""
    found = []
    for added in outputs.values():
        inside = resized(mask, grid(added.shape[1], (mask.shape[1], mask.shape[2]))).flatten(1)
        energy = added.to(torch.promote_types(added.dtype, torch.float32)).square().mean(2)
        outside = (~inside).to(energy.dtype)
        found.append(((outside * energy).sum(1) / (outside.sum(1) + 1e-9)).mean())
    return torch.stack(found).mean()


def _fresh(width: int, rank: int, draw: torch.Generator) -> Sequence[Tensor]:
    """D, b, U, b' before training."""
    down, bias = ((2 * torch.rand(*shape, generator=draw) - 1) / sqrt(width) for shape in ((rank, width), (rank,)))
    return down, bias, torch.zeros(width, rank), torch.zeros(width)
