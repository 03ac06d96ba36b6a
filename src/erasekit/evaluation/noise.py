"""Noise in the place of an edit's pieces: of the same shapes and the same norm, acting at the same places."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

from erasekit.adapters import spm
from erasekit.coded_ops import Adapter
from erasekit.ops import Op


def gaussian(change: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of the shape and the Frobenius norm of `change`, in its dtype, on the CPU."""
    noise = torch.randn(change.shape, generator=generator, dtype=torch.float64)
    wide = change.detach().to(device="cpu", dtype=torch.float64)
    return (noise * (wide.norm() / noise.norm())).to(change.dtype)


def of_spm(op: Adapter, generator: torch.Generator) -> Adapter:
    """For each target and layer u'v' of the norm of its own u v: behind the same gate, so open for the same prompts."""
    found, rank = dict(op.weights), op.config["rank"]
    for module in spm.modules(op):
        downs, ups = op.weights[f"{module}.down"].split(rank, 0), op.weights[f"{module}.up"].split(rank, 1)
        pairs = [_factors(down, up, generator) for down, up in zip(downs, ups, strict=True)]
        found[f"{module}.down"] = torch.cat([down for down, _ in pairs], 0)
        found[f"{module}.up"] = torch.cat([up for _, up in pairs], 1)
    return Adapter(op.component, op.module, op.adapter, found, op.config)


def _factors(down: Tensor, up: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise for down (r, in[, k, k]) and up (out, r) with the norm of their product, down with its own."""
    noise, other = gaussian(down, generator), gaussian(up, generator)
    size = _size(down, up) / max(_size(noise, other), 1e-300)
    return noise, other * size


def _size(down: Tensor, up: Tensor) -> float:
    """The Frobenius norm of up @ down, from r x r products."""
    left, right = up.detach().cpu().double(), down.detach().cpu().double().flatten(1)
    return sqrt(max(float(((left.T @ left) * (right @ right.T)).sum()), 0.0))


def of_receler(op: Adapter, generator: torch.Generator) -> Adapter:
    """Erasers of noise: each of a block's four tensors has its own norm, so a block has the norm of the edit's."""
    found = {name: gaussian(op.weights[name], generator) for name in sorted(op.weights)}
    return Adapter(op.component, op.module, op.adapter, found, op.config)


ADAPTERS: dict[str, Callable[[Adapter, torch.Generator], Adapter]] = {"spm": of_spm, "receler": of_receler}
"""The code for which noise of its norm is defined, by the adapter's name."""


def defined(op: Op) -> bool:
    """Whether there is noise of the op's norm that acts through the op's own code."""
    return isinstance(op, Adapter) and op.adapter in ADAPTERS
