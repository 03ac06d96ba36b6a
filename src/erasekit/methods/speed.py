"""SPEED: scalable, precise and efficient concept erasure (arXiv 2503.07392, ICLR 2026).

For one projection W (o, d), text features of k targets C1 (d, n), of their anchors C* (d, n), retained ones C0
(d, N) and invariants C2 (d, 4), only updates that vanish on what is retained are allowed:

    min_D  ||(W + D P) C1 - W C*||^2 / k + alpha ||D P||^2,   (D P) C2 = 0
    P = sum of u u' over the eigenvectors of S = C0 C0' / N with eigenvalues below tau
    D P = W (C* - C1) (Z' T Z + k alpha I)^-1 Z' T,   Z = P C1,   F = P C2,
    T = I - F (F'F + alpha lambda I)^+ F'

which is the paper's D P = W (C* C1' - C1 C1') P Q M with M = (C1 C1' P + alpha I)^-1, Q = I - M C2 (C2' P M C2 +
lambda I)^-1 C2' P and means over the targets in place of sums (as in the released code, whose alphas these are),
but an n x n solve with factors of rank n. lambda = 0 is the hard constraint; lambda > 0 adds ||D P C2||^2 / lambda.

The retain set is refined for each matrix (`speed_retain`): IPF keeps retained concepts with a shift ||D_erase c||
above the mean, D_erase = W (C* - C1) (C1' C1 + k I)^-1 C1'; DPA adds `aug_num` copies of each, moved along the
`rank` weakest directions of W, and keeps those with a shift above the copies' mean; IEC are the invariants C2: BOS
and three k-means centroids of the empty prompt's other rows. Then one symmetric eigendecomposition a matrix.

What differs from the released code: float64; filter and augmentation take their means over the whole set, not over
chunks of 128, so that the order of the names does not matter; noise is drawn in the `rank` directions that are used,
not in all d; `aug_num=0` leaves the filter on; a set that the filter would empty stays unfiltered (with a warning);
directions of C2 that P annihilates are left out, so that lambda = 0 works when C2 is itself retained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone, Site
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, Edit, LowRank
from erasekit.errors import InfeasibleError, UsageError
from erasekit.methods import Preset, Progress, _cross, check_choice, check_family, check_range
from erasekit.methods._features import spread
from erasekit.methods._pairs import begin_alike
from erasekit.methods.speed_retain import Curated, curate, dominant, project, unrelated, weak_directions
from erasekit.methods.speed_text import Problem, gather

GROUPS = {"v": ("cross.v",), "k": ("cross.k",), "kv": ("cross.k", "cross.v")}
FAINT = 0.1
"""A target with a smaller erasable fraction is named in a warning."""
NOTHING = 1e-6
"""Erasable fractions up to this are rounding."""


@dataclass(frozen=True)
class SPEEDConfig:
    """Parameters of SPEED; a wrong value raises `UsageError` naming the choices."""

    edited: str = "v"
    """Which cross-attention matrices: v, k or kv."""
    tokens: str = "last"
    """last (the last subject token of each target) or all (every position but BOS; for unsafe content)."""
    tau: float = 0.1
    """Directions in which the retained set's mean second moment is at least this must not change."""
    threshold: str = "absolute"
    """absolute (tau in squared feature units; CLIP's rows have a squared norm near the width) or relative (tau times
    the mean eigenvalue, for encoders of another scale)."""
    alpha: float = 1.0
    """Weight of the size of the update, against a mean over the targets; above 0."""
    lamb: float = 0.0
    """lambda: 0 holds the invariants exactly, more lets them move."""
    aug_num: int = 10
    """N_A: augmented copies of each kept concept; 0 for none."""
    rank: int = 1
    """r: how many of the weight's weakest directions the copies move along."""
    prior_filter: bool = True
    """IPF: retain only concepts whose prior shift is above the mean."""

    def __post_init__(self) -> None:
        check_choice("edited", self.edited, tuple(GROUPS))
        check_choice("tokens", self.tokens, ("last", "all"))
        check_choice("threshold", self.threshold, ("absolute", "relative"))
        for name in ("tau", "alpha"):
            check_range(name, getattr(self, name), low=1e-12, high=1e12)
        check_range("lamb", self.lamb, high=1e12)
        check_range("aug_num", self.aug_num, high=1000)
        check_range("rank", self.rank, low=1)


class SPEED:
    """The cross-attention V (by default) that sends every target's last token to its anchor's, along directions in
    which what is retained has no part.

    Text encoder untouched; 16 matrices in SD 1.x and 2.x. Without retained concepts the empty prompt's rows behind
    BOS are retained (the paper's protocol for nudity). The seed draws the augmented copies and the centroids.
    """

    name: ClassVar[str] = "speed"
    title: ClassVar[str] = "SPEED: null-space constrained erasure"
    paper: ClassVar[str] = "arXiv 2503.07392"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        "few": Preset("One or a few objects or characters: the defaults (paper, appendix C.2).", {}, anchor=""),
        "style": Preset("Artists' styles: the defaults with the paper's anchor.", {}, anchor="art"),
        "people": Preset(
            "10 to 100 people, retaining other people (authors' scripts; their README omits tau).",
            {"tau": 1e-4, "alpha": 0.05, "prior_filter": False},
            anchor="person",
        ),
        "explicit": Preset(
            "Nudity, with nothing retained but the empty prompt (authors' scripts).",
            {"tau": 0.1, "alpha": 0.7, "lamb": 0.5, "tokens": "all"},
            anchor="",
        ),
    }
    Config: ClassVar[type[SPEEDConfig]] = SPEEDConfig

    @torch.no_grad()
    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: SPEEDConfig,
        *,
        progress: Progress | None = None,
    ) -> Edit:
        """An edit of every site of `config.edited`; the model is left bitwise as it was. `self_check["erasable"]` is
        for each target ||P c|| / ||c|| of its last subject token, the mean over the sites.

        Raises `UsageError` for a family or request that SPEED does not take, `InfeasibleError` where every target
        lies in the span of what is retained, or for an edit that would change nothing.
        """
        check_family(type(self), backbone)
        progress = progress or _cross.silent
        names = unrelated(request.retain, request.targets)
        if request.retain and not names:
            raise UsageError("every retained concept has a target among its words: retain others, or nothing")
        problem = gather(backbone, request, names, all_rows=config.tokens == "all", progress=progress)
        ops, records, erasable = solve_sites(backbone, problem, request.seed, config, progress=progress)
        fractions = dict(zip(request.targets, erasable.tolist(), strict=True))
        warnings = _warnings(request, names, problem, records, fractions, config)
        warnings += begin_alike(backbone, request) if config.tokens == "all" else []
        edit = _cross.finish(
            backbone, request, method="speed", parameters=asdict(config), ops=ops, records=records, warnings=warnings
        )
        return replace(edit, self_check=edit.self_check | {"erasable": fractions})


@dataclass(frozen=True)
class Solution:
    """One weight's change `up @ right`, (o, n) times (n, d) float64; `top` (d, m) spans what may not change."""

    up: Tensor
    right: Tensor
    top: Tensor
    curated: Curated
    condition: float


def solve(weight: Tensor, problem: Problem, noise: Tensor, config: SPEEDConfig) -> Solution:
    """D P of the module's docstring for `weight` (o, d) float64, with `noise` z (N, aug_num, rank) for the copies."""
    up = weight @ problem.gap
    weak = weak_directions(weight, noise.shape[2]) if noise.shape[1] else weight.new_zeros(weight.shape[1], 0)
    curated = curate(
        problem.retained, weak, noise[..., : weak.shape[1]], pulls=problem.pulls, along=problem.reach @ weak,
        gram=up.T @ up, prior_filter=config.prior_filter,
    )  # fmt: skip
    top = dominant(curated, tau=config.tau, relative=config.threshold == "relative")
    right, condition = constrained(problem, top, alpha=config.alpha, lamb=config.lamb)
    return Solution(up, right, top, curated, condition)


def constrained(problem: Problem, top: Tensor, *, alpha: float, lamb: float) -> tuple[Tensor, float]:
    """(Z' T Z + k alpha I)^-1 Z' T (n, d) and the condition number of what was solved, by the root of T.

    T and its root have the left singular vectors U of F = P C2; T is 1 - s^2 / (s^2 + alpha lambda) along them.
    """
    both = project(top, torch.cat([problem.x, problem.invariants], 1))
    z, f = both.split([problem.x.shape[1], problem.invariants.shape[1]], 1)
    u, s, _ = torch.linalg.svd(f, full_matrices=False)
    used = s > 1e-10 * torch.linalg.matrix_norm(problem.invariants, 2)  # the rest is rounding: nothing to hold
    u, s = u[:, used], s[used]
    less = 1 - (alpha * lamb / (s.square() + alpha * lamb)).sqrt()
    found = solvers.inverse(z - u @ (less[:, None] * (u.T @ z)), scale=1 / (problem.count * alpha))
    return found.rows - ((found.rows @ u) * less) @ u.T, found.condition


def solve_sites(
    backbone: Backbone, problem: Problem, seed: int, config: SPEEDConfig, *, progress: Progress
) -> tuple[list[LowRank | Dense], list[dict[str, Any]], Tensor]:
    """One op and one self-check entry for each site, and each target's erasable fraction (k,)."""
    generator = torch.Generator().manual_seed(seed)
    sites, ops, records = backbone.sites(*GROUPS[config.edited]), [], []
    erasable = torch.zeros(problem.count, dtype=torch.float64)
    for k, site in enumerate(sites):
        progress(k, len(sites), "solving the cross-attention")
        weight = backbone.weight(site)
        if config.rank > min(weight.shape):
            raise UsageError(f"speed: rank {config.rank} is above {min(weight.shape)}, that of {site.key}: lower it")
        shape = (problem.retained.shape[1], config.aug_num, config.rank)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        found = solve(weight.double(), problem, noise, config)
        ops.append(_cross.make_op(site, weight, found.up, found.right))
        records.append(_record(site, weight, ops[-1], problem, found))
        erasable += problem.outside(found.top) / len(sites)
    progress(len(sites), len(sites), "solving the cross-attention")
    return ops, records, erasable


def _record(site: Site, weight: Tensor, op: LowRank | Dense, problem: Problem, found: Solution) -> dict[str, Any]:
    """What the edit did at one site, on at most PROBES columns of the targets and of the retained."""
    columns, kept = spread(problem.x.shape[1]), spread(problem.retained.shape[1])
    measured = _cross.measure(
        site, weight, op, problem.x[:, columns], found.up[:, columns], problem.retained[:, kept]
    )  # fmt: skip
    return measured | {
        "condition": found.condition,
        "retained": found.curated.count,
        "unfiltered": found.curated.emptied,
        "free": weight.shape[1] - found.top.shape[1],
    }


def _warnings(
    request: EraseRequest,
    names: Sequence[str],
    problem: Problem,
    records: Sequence[dict[str, Any]],
    fractions: dict[str, float],
    config: SPEEDConfig,
) -> list[str]:
    """One line for each thing that matters and is no error; raises where nothing can be erased."""
    if max(fractions.values()) <= NOTHING:
        raise InfeasibleError("every target lies in the span of what is retained: retain less, or raise tau")
    found = []
    if dropped := len(request.retain) - len(names):
        found.append(f"{dropped} of {len(request.retain)} retained concepts have a target among their words: dropped")
    if not request.retain and config.tokens == "last":
        found.append("nothing to retain was given: only the empty prompt's rows are retained")
    if faint := sorted((share, name) for name, share in fractions.items() if share < FAINT):
        worst = ", ".join(f"{name} {share:.1%}" for share, name in faint[:3]) + ", ..." * (len(faint) > 3)
        found.append(f"retained concepts leave under {FAINT:.0%} of {len(faint)} targets to erase: {worst}")
    if unfiltered := sum(record["unfiltered"] for record in records):
        found.append(f"every retained concept shifts alike at {unfiltered} sites: nothing filtered there")
    free = min(record["free"] for record in records)
    if free < problem.count:
        found.append(f"{problem.count} targets share {free} directions that retained concepts leave: a compromise")
    return found + problem.conflicts(request)
