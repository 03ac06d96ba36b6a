"""Cross-attention maps of a U-Net: where in the picture each token of the prompt is read.

They are computed from the layers' own queries and keys beside the fused attention, which stays as it is: no processor is
exchanged, and adapters on the projections take part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import isqrt
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from erasekit.errors import ModelError

CROSS = ".attn2"


def cross_attentions(unet: nn.Module) -> dict[str, Any]:
    """The cross-attention modules by name, in the order of the forward pass; `ModelError` where there is none."""
    found = {name: part for name, part in unet.named_modules() if name.endswith(CROSS)}
    if not found:
        raise ModelError("the unet has no cross-attention (attn2): use a Stable Diffusion 1.x or 2.x model")
    parts = {"down": 0, "mid": 1, "up": 2}  # modules are registered down, up, mid
    return dict(sorted(found.items(), key=lambda item: parts[item[0].split("_")[0]]))


@contextmanager
def maps(unet: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[dict[str, Tensor]]:
    """Inside, each forward pass fills the dict: cross-attention's name -> probabilities (b, heads, positions, tokens).

    Differentiable, float32 at least. The hooks are gone afterwards, whatever happens.
    """
    found: dict[str, Tensor] = {}
    handles: list[Any] = []
    try:
        for name, attention in cross_attentions(unet).items():
            if wanted(name):
                handles += _watch(attention, name, found)
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _watch(attention: Any, name: str, found: dict[str, Tensor]) -> list[Any]:
    queries: list[Tensor] = []

    def asked(module: nn.Module, inputs: Any, output: Tensor) -> None:
        queries[:] = [output]

    def read(module: nn.Module, inputs: Any, output: Tensor) -> None:  # the queries always come first
        # Gradient checkpointing must not count what is saved here: the map is not there when it computes again. Under
        # autocast products would be half precision.
        uncounted = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        with uncounted, torch.autocast(output.device.type, enabled=False):
            found[name] = probabilities(queries.pop(), output, heads=attention.heads, scale=attention.scale)

    return [attention.to_q.register_forward_hook(asked), attention.to_k.register_forward_hook(read)]


def probabilities(
    queries: Float[Tensor, "b positions width"], keys: Float[Tensor, "b tokens width"], *, heads: int, scale: float
) -> Float[Tensor, "b {heads} positions tokens"]:
    """softmax(scale q k^T), head by head; each row sums to one over the tokens."""
    q, k = (t.to(torch.promote_types(t.dtype, torch.float32)).unflatten(-1, (heads, -1)).transpose(1, 2)
            for t in (queries, keys))  # fmt: skip
    return (scale * q @ k.transpose(-1, -2)).softmax(-1)


@lru_cache(maxsize=1024)
def grid(positions: int, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a map of so many positions over latents of `size` (rows first, as the U-Net flattens them)."""
    height = isqrt(round(positions * size[0] / size[1]))
    height = min(range(1, positions + 1), key=lambda h: (positions % h, abs(h - height)))
    return height, positions // height


def resized(mask: Bool[Tensor, "b h w"], size: tuple[int, int]) -> Bool[Tensor, "b h2 w2"]:
    """The mask at another resolution: the nearest pixel's value."""
    return torch.nn.functional.interpolate(mask[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5
