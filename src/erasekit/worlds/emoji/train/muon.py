"""Muon (momentum, orthogonalised) for weight matrices and kernels, AdamW for the rest.

Training the world is a means, so this is the short form of a published recipe: Newton-Schulz orthogonalisation of the
momentum (K. Jordan, 2024) with the update scaled to AdamW's size (arXiv 2502.16982, eq. 4), so that both parts share
one learning rate. PyTorch's own `Muon` refuses convolution kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values land in about 0.7..1.2 (quintic Newton-Schulz).

    Iterates on the Gram matrix G alone: X_k = Q_k X with Q_k a polynomial in G, so only two products are as wide as X.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    gram, q = x @ x.T, None
    for step in range(steps):
        p = b * gram + c * gram @ gram
        p.diagonal().add_(a)
        q = p if q is None else p @ q
        gram = gram @ (p @ p) if step + 1 < steps else gram
    x = x if q is None else q @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Momentum 0.95 with Nesterov's look-ahead, orthogonalised over (out, everything else)."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        buffer = state.setdefault("momentum", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - group["momentum"])  # type: ignore[arg-type]
        ahead = p.grad.lerp(buffer, group["momentum"]).flatten(1)  # type: ignore[union-attr]
        update = orthogonalise(ahead) * 0.2 * max(ahead.shape) ** 0.5
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(p), alpha=-group["lr"])


class Both:
    """Muon on what has two dimensions or more, AdamW on the rest; looks like one optimizer to the loop."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        parameters = list(model.parameters())
        matrices, rest = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        self.parts = (
            Muon(matrices, lr, weight_decay),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        )

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Moves all parameters."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Both states."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Both states back."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
