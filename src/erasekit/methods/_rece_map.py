"""RECE's two steps on the one map T that all projections share, W_k = W_k^o T (proof in `rece`); columns, float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone, Site
from erasekit.edit import Dense, LowRank
from erasekit.methods import Progress, _cross
from erasekit.methods._rece_attack import minimiser
from erasekit.methods._rece_text import UCE_SETTINGS, Rows
from erasekit.methods.uce import check_site
from erasekit.methods.uce_text import Pairs, Retained


@dataclass(frozen=True)
class SharedMap:
    """T = I + `left` @ `right`, (d, r) times (r, d) with r <= d; `condition` is that of the last solve."""

    left: Tensor
    right: Tensor
    condition: float

    @classmethod
    def of(cls, left: Tensor, found: solvers.Inverse) -> SharedMap:
        """I + `left` times the rows that were found, with at most d factors."""
        return cls._tidy(left, found.rows, found.condition)

    @classmethod
    def _tidy(cls, left: Tensor, right: Tensor, condition: float) -> SharedMap:
        if right.shape[0] <= right.shape[1]:
            return cls(left, right, condition)
        return cls(left @ right, torch.eye(right.shape[1], dtype=right.dtype), condition)

    def __call__(self, columns: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """T x of every column."""
        return columns + self.left @ (self.right @ columns)

    def matrix(self) -> Float[Tensor, "d d"]:
        """T itself."""
        whole = self.left @ self.right
        whole.diagonal().add_(1)
        return whole

    def pulled(self, gram: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
        """T' G, by the factors: few columns cost less than T itself."""
        return gram + self.right.T @ (self.left.T @ gram)

    def between(self, pulled: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
        """T' G T of `pulled` T' G."""
        return pulled + (pulled @ self.left) @ self.right

    def then(self, left: Tensor, found: solvers.Inverse, *, right: Tensor) -> SharedMap:
        """The map with `right` in place of its own right factors and `left` times the rows found added."""
        return self._tidy(torch.cat([self.left, left], 1), torch.cat([right, found.rows]), found.condition)


def attack(
    gram: Float[Tensor, "d d"], shared: SharedMap, rows: Rows, *, reg: float, near: str = "zero"
) -> Float[Tensor, "d n"]:
    """The columns C* that minimise sum_k ||W_k x - W_k^o c||^2 + reg * penalty, for W_k = W_k^o T and G = `gram`.

    The penalty, by `near`: "zero" |x|^2, "old" |x - c_old|^2, "input" |x - c|^2, "outputs" sum_k |W_k x - W_k c|^2,
    "both" the last two together.
    """
    pulled = shared.pulled(gram)
    normal, aim = shared.between(pulled), pulled @ rows.target
    matrix = normal.clone()
    if near in ("outputs", "both"):
        matrix += reg * normal
        aim += reg * (normal @ rows.target)
    if near != "outputs":
        matrix.diagonal().add_(reg)
    if near in ("input", "both"):
        aim += reg * rows.target
    if near == "old" and rows.old is not None:
        aim += reg * rows.old
    return minimiser(matrix, aim)


def residual(
    gram: Float[Tensor, "d d"], shared: SharedMap, target: Float[Tensor, "d n"], found: Float[Tensor, "d n"]
) -> float:
    """sum_k ||W_k x - W_k^o c||^2 over sum_k ||W_k^o c||^2, all columns together."""
    missed = shared(found) - target
    return float((missed * (gram @ missed)).sum() / (target * (gram @ target)).sum())


def erase(
    shared: SharedMap,
    found: Float[Tensor, "d n"],
    anchor: Float[Tensor, "d n"],
    metric: solvers.Prior,
    *,
    scale: float,
    lamb: float,
    original: bool = False,
) -> SharedMap:
    """The map after UCE's step on the current weights: `found` should give what `anchor` gives now.

    T <- T + T (A - C*) K with K = (C*' C^-1 C* + I/a)^-1 C*' C^-1, a = `scale` and C = lamb I + b P P' = `metric`. With
    `original` preserved rows are held at W_k^o p: T <- I + T (A - C*) K + (T - I) (C* K + lamb C^-1 (I - C* K)).
    """
    solved = solvers.inverse(found, prior=metric, scale=scale)
    right = shared.right
    if original:
        damped = lamb * torch.cholesky_solve(right.T.contiguous(), metric.lower).T
        right = damped + ((right - damped) @ found) @ solved.rows
    return shared.then(shared(anchor - found), solved, right=right)


def way(gram: Float[Tensor, "d d"], shared: SharedMap, pairs: Pairs) -> float:
    """How far the targets' outputs went along the way to their anchors': 0 not at all, 1 there, above 1 past them."""
    asked = pairs.ys[0] - pairs.x
    return float((asked * (gram @ (shared(pairs.x) - pairs.x))).sum() / (asked * (gram @ asked)).sum())


def write(
    backbone: Backbone, shared: SharedMap, pairs: Pairs, retained: Retained, progress: Progress
) -> tuple[list[LowRank | Dense], list[dict[str, Any]]]:
    """One op, W_k^o (T - I), and one self-check entry for each `cross.kv` site."""
    sites, ops, records = backbone.sites("cross.kv"), [], []
    whole = shared.left @ shared.right
    for k, site in enumerate(sites):
        progress(k, len(sites), "writing the cross-attention")
        weight = backbone.weight(site)
        ops.append(_op(site, weight, shared, whole))
        record = check_site(site, weight, ops[-1], pairs, retained, UCE_SETTINGS)
        records.append(record | {"condition": shared.condition})
    progress(len(sites), len(sites), "writing the cross-attention")
    return ops, records


def _op(site: Site, weight: Tensor, shared: SharedMap, whole: Tensor) -> LowRank | Dense:
    """Factors where they are smaller than the matrix."""
    if _cross.narrow(weight, shared.right.shape[0]):
        return LowRank(site.component, site.module, (weight.double() @ shared.left).float(), shared.right.float())
    return Dense(site.component, site.module, (weight.double() @ whole).float())
