"""One-dimensional modules beside the layers of a U-Net's transformers, trained while the U-Net stays frozen
(arXiv 2312.16145): one set of them for each target, of which one acts at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from erasekit.adapters.spm import residual
from erasekit.errors import ModelError
from erasekit.training.loop import generator
from erasekit.training.parameters import require_trainable


def layers(unet: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer and convolution inside a transformer of the U-Net, by name; `ModelError` where there is none."""
    from diffusers import Transformer2DModel

    found = {
        f"{path}.{name}": part
        for path, transformer in unet.named_modules()
        if isinstance(transformer, Transformer2DModel)
        for name, part in transformer.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv2d))
    }
    if not found:
        raise ModelError("the unet has no transformer with cross-attention: use a Stable Diffusion 1.x or 2.x model")
    return dict(sorted(found.items()))


class Membranes:
    """`<module>.<i>.down` (rank, in[, k, k]) and `<module>.<i>.up` (out, rank) for each module and each of the names,
    float32: down drawn from the seed and the name as a linear layer's, up zero, so that fresh ones change nothing.
    `training.parameters.Trained`; which set is trained, and acts inside `active`, is `chosen`."""

    def __init__(self, unet: nn.Module, names: Sequence[str], *, rank: int, alpha: float, seed: int) -> None:
        """Raises `ModelError`: no transformer, or weights there with NaN or quantised."""
        self.layers = layers(unet)
        self.count, self.chosen = len(names), 0
        self.factor = alpha / rank
        self.trained: dict[str, Tensor] = {}
        for module, layer in self.layers.items():
            weight: Any = layer.weight
            require_trainable(f"{module}.weight", weight)
            for i, name in enumerate(names):
                down = _kaiming((rank, *weight.shape[1:]), generator(seed, "membrane", name, module))
                for part, tensor in (("down", down), ("up", torch.zeros(weight.shape[0], rank))):
                    wide = torch.promote_types(weight.dtype, torch.float32)
                    self.trained[f"{module}.{i}.{part}"] = tensor.to(weight.device, wide).requires_grad_()

    @property
    def modules(self) -> list[str]:
        """The layers that the modules stand beside, sorted."""
        return list(self.layers)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the chosen set acts in full (gamma = 1)."""
        handles = [layer.register_forward_hook(partial(self._add, module)) for module, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def stacked(self) -> dict[str, Tensor]:
        """`<module>.down` (n * rank, in[, k, k]) and `<module>.up` (out, n * rank) of all sets, copies on the CPU."""
        found: dict[str, Tensor] = {}
        for module in self.layers:
            for part, dimension in (("down", 0), ("up", 1)):
                parts = [self.trained[f"{module}.{i}.{part}"].detach() for i in range(self.count)]
                found[f"{module}.{part}"] = torch.cat(parts, dimension).cpu()
        return found

    def _add(self, module: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down, up = (self.trained[f"{module}.{self.chosen}.{part}"] for part in ("down", "up"))
        return output + residual(layer, inputs[0], down, up * self.factor).to(output)


def _kaiming(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Uniform with the bound 1 / sqrt(inputs): Kaiming's with a = sqrt(5), as layers start."""
    return (2 * torch.rand(shape, generator=draw) - 1) / sqrt(prod(shape[1:]))
