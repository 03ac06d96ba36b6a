"""MACE's third stage over many concepts (arXiv 2403.06135): their LoRAs gathered one by one, then one solve for all.

What each concept brings is added up or kept as factors, so memory grows by those factors alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone
from erasekit.edit import Dense, LowRank
from erasekit.methods import Progress, _cross
from erasekit.methods._features import spread
from erasekit.methods.mace_refine import Refinement
from erasekit.solvers import FLOOR, Prior

if TYPE_CHECKING:
    from erasekit.methods.mace import MACEConfig

NOISE = 1e-10
"""Singular values below this fraction of the largest are rounding's: far below what float32 factors can say."""


class Fusion:
    """W* - W = W `shared` + sum_i B_i D_i A_i M^-1, from the refinement and every concept's factors (B_i, D_i)."""

    def __init__(self, found: Refinement) -> None:
        self.found = found
        self.second = torch.zeros_like(found.right)
        self.columns: list[Tensor] = []
        self.factors: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.pulls: dict[str, list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def add(
        self, factors: Mapping[str, tuple[Tensor, Tensor]], features: Float[Tensor, "m length d"], lasts: Sequence[int]
    ) -> None:
        """One concept's LoRA (module -> (B (o, r), D (r, d))) and its sentences' features, whose last words stand at
        `lasts`."""
        second = solvers.second_moment(features.flatten(0, 1).T)
        self.second += second
        self.columns.append(features[0, [lasts[0], lasts[0] + 1, -1]].T.double())
        for module, (up, down) in factors.items():
            self.factors[module].append((up.double(), down.double()))
            self.pulls[module].append(down.double() @ second)

    @torch.no_grad()
    def solved(
        self, backbone: Backbone, config: MACEConfig, progress: Progress
    ) -> tuple[list[LowRank | Dense], list[dict[str, Any]], dict[str, float]]:
        """One op and one self-check record for each site, and the weights of what is kept. A record's residual is that
        of W* against each concept's own LoRA, on that concept's rows."""
        prior, metric, weights = self._metric(config)
        shared = self._shared(prior, metric)
        left, right = _split(shared)
        x, owners = self._columns()
        sites, moved = backbone.sites("cross.kv"), self.found.right @ x
        ops, records = [], []
        for k, site in enumerate(sites):
            progress(k, len(sites), "fusing the LoRAs")
            weight = backbone.weight(site)
            up = torch.cat([part for part, _ in self.factors[site.module]], 1)
            pull = torch.cat(self.pulls[site.module])
            over = torch.cholesky_solve(pull.T, metric.lower).T
            if _cross.narrow(weight, left.shape[1] + up.shape[1]):
                ups = torch.cat([weight.double() @ left, up], 1)
                op: LowRank | Dense = LowRank("unet", site.module, ups.float(), torch.cat([right, over]).float())
            else:
                op = Dense("unet", site.module, (weight.double() @ shared + up @ over).float())
            asked = weight.double() @ moved + self._learned(site.module, x, owners)
            found = _cross.measure(site, weight, op, x, asked, self.found.kept.probes.cpu())
            ops.append(op)
            records.append(found | {"condition": self.found.condition})
        progress(len(sites), len(sites), "fusing the LoRAs")
        return ops, records, weights

    def _metric(self, config: MACEConfig) -> tuple[Tensor, Prior, dict[str, float]]:
        """l2 P with its floor for directions that no caption visits, the factor of M, and the weights in force. l2 is
        `preserve_scale` itself, whatever weight the first stage gave the same prior."""
        kept = self.found.kept
        again = config.preserve_scale / config.l1 if config.l1 else 1.0
        prior = kept.matrix * again
        ridge = config.eps * float(prior.diagonal().mean())
        prior = prior + ridge * torch.eye(len(prior), dtype=prior.dtype)
        lamb = max(config.lamb, FLOOR * float((self.second + prior).diagonal().mean()))
        weights = {"caption_weight": config.weights.captions * again, "retained_weight": config.weights.retained * again,
                   "ridge": ridge, "lamb": lamb}  # fmt: skip
        return prior, fusion_metric([self.second], prior, lamb=lamb), weights

    def _shared(self, prior: Tensor, metric: Prior) -> Float[Tensor, "d d"]:
        """What every W is multiplied by: the solve is linear in W, so it is done once, for the identity, without LoRAs."""
        one = torch.eye(len(prior), dtype=prior.dtype)
        return fuse(one, one + self.found.right, [], [], prior=prior, metric=metric) - one

    def _columns(self) -> tuple[Float[Tensor, "d k"], Int[Tensor, " k"]]:
        """Some columns of the concepts, and which concept each is of, ascending."""
        owners = torch.cat([torch.full((part.shape[1],), i) for i, part in enumerate(self.columns)])
        some = spread(len(owners))
        return torch.cat(self.columns, 1)[:, some], owners[some]

    def _learned(self, module: str, x: Float[Tensor, "d k"], owners: Int[Tensor, " k"]) -> Float[Tensor, "o k"]:
        """By how much each concept's own LoRA moves its columns."""
        return torch.cat([up @ (down @ x[:, owners == i]) for i, (up, down) in enumerate(self.factors[module])], 1)


def _split(shared: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r d"]]:
    """The same matrix as two factors of its rank."""
    left, values, right = torch.linalg.svd(shared)
    used = values > max(NOISE * float(values[0]), 1e-300)
    return (left * values)[:, used], right[used]


def fusion_metric(seconds: Sequence[Float[Tensor, "d d"]], prior: Float[Tensor, "d d"], *, lamb: float) -> Prior:
    """The factor of sum_i A_i + prior + lamb I that `fuse` shares between all matrices. Raises
    `torch.linalg.LinAlgError` where that is singular (lamb = 0, no prior and rows that do not span)."""
    return Prior(torch.linalg.cholesky(sum(seconds, prior) + lamb * torch.eye(prior.shape[0]).to(prior)))


def fuse(
    original: Float[Tensor, "o d"],
    refined: Float[Tensor, "o d"],
    loras: Sequence[tuple[Float[Tensor, "o r"], Float[Tensor, "r d"]]],
    seconds: Sequence[Float[Tensor, "d d"]],
    *,
    prior: Float[Tensor, "d d"],
    metric: Prior,
) -> Float[Tensor, "o d"]:
    """W* (o, d), the one matrix that acts like refined + B_i D_i on the rows of every concept i (the third stage):

        min_W*  sum_i sum_j ||W* e_ij - (W' + B_i D_i) e_ij||^2 + tr((W* - W) prior (W* - W)') + lamb ||W* - W'||^2

    `original` W and `refined` W' (o, d), `loras` (B_i (o, r), D_i (r, d)), `seconds` A_i = sum_j e_ij e_ij' (d, d) over
    all rows of the concept's prompts, `prior` l2 P (d, d), `metric` from `fusion_metric`; all float64.
    """
    moved = (original - refined) @ prior
    for (up, down), second in zip(loras, seconds, strict=True):
        moved = moved + up @ (down @ second)
    return refined + torch.cholesky_solve(moved.T, metric.lower).T
