"""Trained low-rank factors beside frozen weights (LoRA, arXiv 2106.09685), perhaps on top of a given change of them.

A layer W (out, in) computes with W + base + (alpha / rank) up @ down: up (out, r) starts at zero, down (r, in) with
normal numbers; a convolution's down is (r, in, k, k). Only the factors are trained, in float32 whatever the model's
dtype, and they act on the layer's input, so that no weight is ever multiplied out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasekit.edit import LowRank
from erasekit.errors import ModelError
from erasekit.training.loop import generator
from erasekit.training.parameters import require_trainable, select


def lora(
    choice: str,
    *,
    rank: int = 1,
    alpha: float | None = None,
    base: Mapping[str, Tensor] | None = None,
    draw: torch.Generator | None = None,
    spread: float | None = None,
) -> Callable[[nn.Module], LoRA]:
    """What makes a `LoRA` on the layers whose weights `parameters.select` chooses; the options are `LoRA`'s."""
    return lambda unet: LoRA(unet, layers(unet, choice), rank=rank, alpha=alpha, base=base, draw=draw, spread=spread)


def layers(unet: nn.Module, choice: str) -> list[str]:
    """The linear layers and convolutions with a weight among the chosen parameters; `ModelError` where there is none."""
    names = [name.removesuffix(".weight") for name in select(unet, choice) if name.endswith(".weight")]
    found = [name for name in names if isinstance(unet.get_submodule(name), (nn.Linear, nn.Conv2d))]
    if not found:
        raise ModelError(f"the denoiser has no layer for a LoRA among {choice!r}: choose another variant")
    return found


class LoRA:
    """Trained factors (`trained`, "<module>.down" and "<module>.up") that the layers have while `active`."""

    def __init__(
        self,
        unet: nn.Module,
        modules: Sequence[str],
        *,
        rank: int = 1,
        alpha: float | None = None,
        base: Mapping[str, Tensor] | None = None,
        draw: torch.Generator | None = None,
        spread: float | None = None,
    ) -> None:
        """`alpha`: by default the rank, which scales by one. `base`: module -> change of its weight that is there from
        the start and stays. `draw`: where the start of down is drawn from, with the standard deviation `spread`
        (default 1 / rank). Raises `ModelError` naming a weight that cannot be trained on: quantised, on no device, NaN.
        """
        self.modules = sorted(modules)
        self.scale = 1.0 if alpha is None else alpha / rank
        self.spread = 1 / rank if spread is None else spread
        self._layers: dict[str, Any] = {name: unet.get_submodule(name) for name in self.modules}
        self._weights: dict[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            require_trainable(f"{name}.weight", layer.weight)
            wide = torch.promote_types(layer.weight.dtype, torch.float32)
            shape, options = layer.weight.shape, {"dtype": wide, "device": layer.weight.device}
            self.trained[f"{name}.down"] = torch.zeros(rank, *shape[1:], **options).requires_grad_()
            self.trained[f"{name}.up"] = torch.zeros(shape[0], rank, **options).requires_grad_()
            if base and name in base:
                change = base[name].to(layer.weight.device, wide)
                self._weights[name] = (layer.weight.detach().to(wide) + change).to(layer.weight.dtype)
        self.restart(draw or generator("lora"))

    @torch.no_grad()
    def restart(self, draw: torch.Generator) -> None:
        """Take fresh factors: up zero, down from `draw`, the same on every device."""
        for name, tensor in self.trained.items():
            fresh = torch.zeros(tensor.shape)
            if name.endswith(".down"):
                fresh = torch.randn(tensor.shape, generator=draw) * self.spread
            tensor.copy_(fresh)
            tensor.grad = None

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Copies of (up, down) by module, on the CPU, with the scale in up: the change is up @ down."""
        found = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.trained.items()}
        return {name: (self.scale * found[f"{name}.up"], found[f"{name}.down"]) for name in self.modules}

    def ops(self) -> list[LowRank]:
        """One op a layer with what was trained; the base is not in it."""
        return [LowRank("unet", name, up, down) for name, (up, down) in self.factors().items()]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the layers compute with base and factors; after it, bit for bit as before."""
        frozen = {name: layer._parameters["weight"] for name, layer in self._layers.items()}
        hooks: list[Any] = []
        try:
            for name, layer in self._layers.items():
                # Past nn.Module's registration, which takes parameters only.
                layer._parameters["weight"] = self._weights.get(name, frozen[name])
                # First of the layer's hooks: those that watch its output, such as `maps`, see it whole.
                hooks.append(layer.register_forward_hook(self._beside(name), prepend=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name, layer in self._layers.items():
                layer._parameters["weight"] = frozen[name]

    def _beside(self, name: str) -> Callable[[Any, Any, Tensor], Tensor]:
        down, up = self.trained[f"{name}.down"], self.trained[f"{name}.up"]

        def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            wide = inputs[0].to(down.dtype)
            if isinstance(layer, nn.Linear):
                found = F.linear(F.linear(wide, down), up)
            else:
                inner = F.conv2d(wide, down, None, layer.stride, layer.padding, layer.dilation)
                found = F.conv2d(inner, up[:, :, None, None])
            return output + (self.scale * found).to(output.dtype)

        return add
