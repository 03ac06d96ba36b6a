"""RealEra's closed-form part: neighbours of a concept erased, what is just beyond them held (arXiv 2410.09140).

RealEra is this edit of the cross-attention *and then* a LoRA that is trained on the same perturbed embeddings. The
LoRA stage is not in here: nothing that this file gives is the whole system.

For each target, e (d,) is the feature of its last subject token, e_a the anchor's; lengths in units of ||e||.
Neighbours e + eta lie at distance <= D_1 and cosine in [S_1, S_2] from e, outsiders e + zeta at distance in [D_1, D_2]
and cosine in [S_0, S_1]. For every W_o (o, d) of the cross-attention's K and V

    min_W  |W e - W_o e_a|^2 + sum_eta |W (e+eta) - W_o e_a|^2
           + b sum_zeta |(W - W_o)(e+zeta)|^2 + g sum_p |(W - W_o) p|^2 + lamb |W - W_o|^2
    W = W_o + W_o (Y - X)(X' C^-1 X + I)^-1 X' C^-1,   C = lamb I + b sum (e+zeta)(e+zeta)' + g sum p p'

with X the columns e, e + eta of all targets, Y their anchors' e_a, p the rows of the retained prompts. C^-1 knows
nothing of W_o: one factorisation serves every matrix. Columns beyond 2d enter through their second moment.

What is the paper's: the two sets, bounded by distance and cosine, one erased and one held, in a closed form. What is
this project's reconstruction, since neither the values nor any code are public: the formula above, the shells'
bounds, the numbers of points and all weights, b, g and lamb; that the rows behind the concept (end and padding) go
along unperturbed (`rows="tail"`), aligned as in UCE's scripts; and that retained prompts are the p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, Edit, LowRank
from erasekit.errors import UsageError
from erasekit.methods import Preset, Progress, _cross, check_choice, check_family, check_range
from erasekit.methods._features import PROBES, last_subject, spread
from erasekit.methods._retained import held_back
from erasekit.methods._shells import check_bounds, draw
from erasekit.methods.uce import UCEConfig
from erasekit.methods.uce_text import _compressed, gather_pairs, gather_retained


@dataclass(frozen=True)
class RealEraTextConfig:
    """Parameters of RealEra's closed-form part; every default is ours, the paper's are not public."""

    distances: tuple[float, ...] = (0.3, 0.6, 1.0)
    """Least distance, D_1 and D_2 in units of ||e||: neighbours between the first two, outsiders the last two."""
    cosines: tuple[float, ...] = (0.6, 0.85, 0.97)
    """S_0, S_1, S_2: outsiders between the first two, neighbours between the last two."""
    neighbours: int | None = None
    """K: neighbours drawn for each target; none: a twelfth of the text width, 64 in SD 1.x."""
    outsiders: int | None = None
    """K': outsiders drawn for each target; none: a twelfth of the text width, 64 in SD 1.x."""
    beyond_scale: float = 1.0
    """b: weight of each outsider, which should not change."""
    prior_scale: float = 0.1
    """g: weight of each row of the retained prompts."""
    lamb: float = 0.5
    """lambda: weight of the distance to the weights as they are, above 0."""
    rows: str = "tail"
    """tail (the concept's last token, and the end and padding behind it, unperturbed) or last (this token alone)."""

    def __post_init__(self) -> None:
        check_choice("rows", self.rows, ("tail", "last"))
        for name in ("neighbours", "outsiders"):
            check_range(name, getattr(self, name) or 0, high=1e5)
        for name in ("beyond_scale", "prior_scale"):
            check_range(name, getattr(self, name), high=1e12)
        check_range("lamb", self.lamb, low=1e-12, high=1e12)
        check_bounds("distances", self.distances, 10.0)
        check_bounds("cosines", self.cosines, 1.0)
        for who, far, s in (("neighbours", self.distances[1], self.cosines[1]),
                            ("outsiders", self.distances[2], self.cosines[0])):  # fmt: skip
            if far * far < (1 - s) * (1 + s):
                raise UsageError(f"no {who} exist: cosine {s:g} is further away than {far:g}; raise that bound of "
                                 f"distances to at least {((1 - s) * (1 + s)) ** 0.5:.3f}")  # fmt: skip


@dataclass(frozen=True)
class Mined:
    """What is asked, float64: columns `x` -> `y` (d, n) of all targets; `held` (d, d) the outsiders' second moment;
    to measure on, at most PROBES columns each of the targets (`own`) and neighbours (`near`), as pairs, and `far`."""

    x: Tensor
    y: Tensor
    held: Tensor
    own: tuple[Tensor, Tensor]
    near: tuple[Tensor, Tensor]
    far: Tensor


class RealEraText:
    """Every target's feature and its random neighbours act as the anchor's; what lies just beyond is held.

    Only the closed form: RealEra's LoRA stage is not in it. Text encoder untouched; all cross-attention K and V.
    """

    name: ClassVar[str] = "realera-text"
    title: ClassVar[str] = "RealEra, closed-form part (without its LoRA stage)"
    paper: ClassVar[str] = "arXiv 2410.09140"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {}
    Config: ClassVar[type[RealEraTextConfig]] = RealEraTextConfig

    @torch.no_grad()
    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: RealEraTextConfig,
        *,
        progress: Progress | None = None,
    ) -> Edit:
        """An edit of every `cross.kv` site; the model is left bitwise as it was, the draws follow `request.seed`.

        The self-check also holds `neighbours_left` (the share of the neighbours' gap that stays) and
        `outsiders_moved` (||dW Z|| / ||W_o Z||), largest over the sites. Raises `InfeasibleError` for an edit that
        would change nothing, `UsageError` for a family that is not claimed.
        """
        check_family(type(self), backbone)
        progress = progress or _cross.silent
        mined = mine(backbone, request, config, progress=progress)
        kept = gather_retained(backbone, request.retain, UCEConfig(tokens=config.rows), progress=progress,
                               cache=request.retain_cache)  # fmt: skip
        prior = config.prior_scale * kept.moment
        factor = solve(mined.x, mined.y, config.beyond_scale * mined.held + prior, lamb=config.lamb)
        ops, records = _apply(backbone, factor, mined, kept.probes, progress=progress)
        held = held_back(backbone, request, prior, ridge=config.lamb, scale=1.0, progress=progress)
        edit = _cross.finish(backbone, request, method=self.name, parameters=asdict(config), ops=ops,
                             records=records, warnings=held)  # fmt: skip
        worst = {key: max(record[key] for record in records) for key in ("neighbours_left", "outsiders_moved")}
        return replace(edit, self_check=edit.self_check | worst)


def mine(backbone: Backbone, request: EraseRequest, config: RealEraTextConfig, *, progress: Progress) -> Mined:
    """Draws every target's neighbours and outsiders, in the targets' order, and gathers what is asked."""
    generator = torch.Generator().manual_seed(request.seed)
    (least, d1, d2), (s0, s1, s2) = config.distances, config.cosines
    prompts = list(zip(request.targets, request.anchors, strict=True))
    rows = gather_pairs(backbone, prompts, UCEConfig(tokens=config.rows), progress=progress)
    centres, anchors = (last_subject(backbone, side, progress=progress, what="encoding the targets")
                        for side in (request.targets, request.anchors))  # fmt: skip
    near_count, far_count = (len(centres) // 12 if k is None else k for k in (config.neighbours, config.outsiders))
    each, pieces = max(1, PROBES // len(prompts)), [(rows.x, rows.ys[0])]
    held, near, far = centres.new_zeros(len(centres), len(centres)), [], []
    for centre, anchor in zip(centres.T, anchors.T, strict=True):
        inside = draw(centre, near_count, distance=(least, d1), cosine=(s1, s2), generator=generator)
        outside = draw(centre, far_count, distance=(d1, d2), cosine=(s0, s1), generator=generator)
        held += solvers.second_moment(outside)
        wanted = anchor[:, None].expand_as(inside)
        pieces = _compressed([*pieces, (inside, wanted)], 6)  # now and then: it costs a QR
        near.append((inside[:, :each], wanted[:, :each]))
        far.append(outside[:, :each])
    few = spread(len(prompts))
    return Mined(*_joined(_compressed(pieces, 2)), held, (centres[:, few], anchors[:, few]), _joined(near[:PROBES]),
                 torch.cat(far[:PROBES], 1))  # fmt: skip


def solve(
    x: Float[Tensor, "d n"], y: Float[Tensor, "d n"], moment: Float[Tensor, "d d"], *, lamb: float
) -> solvers.RightFactor:
    """(Y - X) and (X' C^-1 X + I)^-1 X' C^-1 with C = lamb I + `moment`, with at most d factors."""
    return solvers.solve(x, y, prior=solvers.prior(moment, ridge=lamb), scale=1.0).compact()


def _apply(
    backbone: Backbone, factor: solvers.RightFactor, mined: Mined, probes: Tensor, *, progress: Progress
) -> tuple[list[LowRank | Dense], list[dict[str, Any]]]:
    """One op and one self-check entry for each `cross.kv` site, from one factorisation."""
    sites, ops, records = backbone.sites("cross.kv"), [], []
    x, y = mined.own
    for k, site in enumerate(sites):
        progress(k, len(sites), "solving the cross-attention")
        weight = backbone.weight(site)
        op = _cross.make_op(site, weight, factor.up(weight), factor.right)
        record = _cross.measure(site, weight, op, x, None, probes, gap=y - x)
        ops.append(op)
        records.append(
            record | _cross.solved(factor, weight) | _around(weight.double(), op.delta(weight).double(), mined)
        )
    return ops, records


def _around(weight: Tensor, delta: Tensor, mined: Mined) -> dict[str, float]:
    """The share of the neighbours' gap that is left, and how far the outsiders' outputs moved, relative to them."""
    near, wanted = mined.near
    gap = weight @ (wanted - near)
    return {
        "neighbours_left": _ratio(gap - delta @ near, gap),
        "outsiders_moved": _ratio(delta @ mined.far, weight @ mined.far),
    }


def _ratio(part: Tensor, whole: Tensor) -> float:
    """||part|| / ||whole||; 0 where there is nothing to compare."""
    return float(part.norm() / whole.norm()) if whole.numel() and float(whole.norm()) else 0.0


def _joined(pairs: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    x, y = (torch.cat(side, 1) for side in zip(*pairs, strict=True))
    return x, y
