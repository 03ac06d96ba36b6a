"""The closed-form attack of RECE (arXiv 2407.12383): which embedding makes edited projections act as the original ones.

For projections W_k (o_k, d), edited, and W_k^o, original, and a row c (d) of a prompt's text features,

    c* = argmin_x sum_k ||W_k x - W_k^o c||^2 + r ||x||^2 = (r I + sum_k W_k' W_k)^-1 (sum_k W_k' W_k^o) c

one d x d map for every row. It draws no image, so it measures any closed-form edit cheaply: what is left of
sum_k ||W_k c* - W_k^o c||^2 is what no embedding can get back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit import solvers
from erasekit.errors import InfeasibleError

ROWS = 2560
"""So many rows of outputs are multiplied at a time: small matrices side by side cost less than one by one."""


def attack_embedding(
    current: Sequence[Float[Tensor, "_ d"]],
    original: Sequence[Float[Tensor, "_ d"]],
    rows: Float[Tensor, "n d"],
    *,
    reg: float = 0.1,
) -> Float[Tensor, "n d"]:
    """The embeddings (n, d), float64, that minimise sum_k ||W_k x - W_k^o c||^2 + reg ||x||^2 for each row c.

    `current` W_k and `original` W_k^o: the same projections (o_k, d), edited by any method and not, in one order;
    `rows`: a prompt's text features. `reg` is in the units of sum_k W_k' W_k.
    Raises `InfeasibleError` where `reg` is 0 and the minimum is not unique. Source: arXiv 2407.12383.
    """
    normal, cross = output_gram(current), _sum_products(zip(current, original, strict=True))
    normal.diagonal().add_(reg)
    return minimiser(normal, cross @ _double(rows).T).T


def attack_residual(
    current: Sequence[Float[Tensor, "_ d"]],
    original: Sequence[Float[Tensor, "_ d"]],
    rows: Float[Tensor, "n d"],
    found: Float[Tensor, "n d"],
) -> float:
    """sum_k ||W_k x - W_k^o c||^2 over sum_k ||W_k^o c||^2, both summed over the rows c and their x in `found`.

    0: the embeddings give back all that the original gives for the rows; 1: as far off as an output of zero.
    Arguments as in `attack_embedding`. `reg` alone leaves a little: compare with the value of the unedited weights.
    """
    wanted, given = _double(rows).T, _double(found).T
    missed = total = 0.0
    for now, before in zip(current, original, strict=True):
        aim = _double(before) @ wanted
        missed += float((_double(now) @ given - aim).square().sum())
        total += float(aim.square().sum())
    return missed / total


def output_gram(weights: Iterable[Float[Tensor, "_ d"]]) -> Float[Tensor, "d d"]:
    """G = sum_k W_k' W_k in float64: the squared norm of all outputs for x together is x' G x."""
    total, waiting = torch.zeros(0), []
    for weight in weights:
        waiting.append(_double(weight))
        if sum(map(len, waiting)) >= ROWS:
            total, waiting = _added(total, waiting), []
    return _added(total, waiting) if waiting else total


def minimiser(matrix: Float[Tensor, "d d"], aim: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
    """The solution of `matrix` x = `aim` for a symmetric matrix, which must be positive definite.

    Raises `InfeasibleError` otherwise: then some direction of x changes no output, and only a penalty decides it.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise InfeasibleError("the edited projections are singular, so the attack has no single answer: raise reg")
    return torch.cholesky_solve(aim, lower)


def _sum_products(matrices: Iterable[tuple[Tensor, Tensor]]) -> Float[Tensor, "d d"]:
    """sum_k A_k' B_k in float64, one pair at a time."""
    total = torch.zeros(0)
    for a, b in matrices:
        total = total.addmm_(_double(a).T, _double(b)) if total.numel() else _double(a).T @ _double(b)
    return total


def _added(total: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """The sum with the Gram matrix of the stacked matrices."""
    more = solvers.gram(torch.cat(list(matrices)))
    return total.add_(more) if total.numel() else more


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)
