"""The walk of progressive alignment: two streams of hidden states, carried from layer to layer, solved on the way.

`source` is what the model edited so far makes of the target prompts, `reference` what the original makes of the
anchor prompts. At each level the columns of both give one factor (`solvers.solve`) for all matrices there.

Anchor prompts that are the same are walked once, and of the original's retained prompts only those whose drift is measured.
Where every position of a layer is aligned exactly, a target attends as its anchor does, and only the positions where the
two differ are computed; the others are the anchor's. Streams are carried in place and read in blocks (`_streams`): what
a fit needs beside them does not grow with the retained prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone, Site, Tokens
from erasekit.edit import LowRank
from erasekit.methods._check import BOUNDS, Kept, measure, probes
from erasekit.methods._pairs import SHOWN, Place, Plan
from erasekit.methods._streams import Stream, carried

if TYPE_CHECKING:
    from erasekit.methods._erasepro_config import EraseProConfig

STRONGEST = 1.0
"""An exact update as large as the weight itself: what is only to be kept gives way before that."""


@dataclass(frozen=True)
class Aligned:
    """One level's inputs X, wanted inputs Y (d, n), the factor that its matrices share, and the kept columns."""

    inputs: Tensor
    wanted: Tensor
    factor: solvers.RightFactor
    kept: Kept | None


@dataclass
class Walk:
    """The state of one fit; `ops` and `records` grow level by level. The model is only read."""

    backbone: Backbone
    plan: Plan
    config: EraseProConfig
    background: tuple[Tokens, ...] = ()
    ops: list[LowRank] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        tower, plan = self.backbone.tower, self.plan
        self.count = len(plan.targets)  # the rows of targets, before those of retained prompts
        self.probed = probes(plan.kept)
        disputed = set(plan.disputed)
        exactly = [place for place in plan.kept if place not in disputed]
        keeping = self.config.retain_mode
        self.hard: list[Place] = [*plan.hard, *(plan.disputed if keeping == "exact" else ())]
        self.keep: list[Place] = exactly if keeping == "exact" else []
        self.soft: list[Place] = list(plan.kept) if keeping == "soft" else []
        self.solved = self.hard  # what the level at hand was solved for
        self.cut = 64 * torch.finfo(tower.dtype).eps  # what rounding alone leaves between equal columns
        self.source = tower.embed(plan.source)
        prompts, like, self.anchors = carried(plan, [*self.probed, *self.hard])
        self.originals, self.like = tower.embed(prompts), like.to(self.source.device)
        self.behind = [tower.embed(tokens) for tokens in self.background]

    @property
    def reference(self) -> Tensor:
        """What the original makes of the anchor prompt that each target's row of `source`, the first `count`, should act
        as. (Of retained prompts it walks only some.)"""
        return self.originals[self.like[: self.count]]

    def text_layer(self, layer: int, sites: Sequence[Site]) -> None:
        """Aligns the q, k, v `sites` of `layer` (perhaps none) and carries every stream through it."""
        tower = self.backbone.tower
        deltas: dict[str, Tensor] = {}
        if sites:
            aligned = self._align(f"text layer {layer}", lambda hidden: tower.attention_input(hidden, layer))
            deltas = {site.group.removeprefix("text."): self._update(site, aligned) for site in sites}
        if self.config.compensate and layer == 0 and sites:
            deltas["out"] = self._compensate(deltas)
        before = self.originals[: self.anchors].clone()
        tower.advance(self.originals, layer)
        if self._all_met(deltas):
            self._follow(layer, deltas, before)
        else:
            tower.advance(self.source, layer, deltas)
        for hidden in self.behind:
            tower.advance(hidden, layer, deltas)

    def _all_met(self, deltas: dict[str, Tensor]) -> bool:
        """Whether q, k and v, just solved, read every position of the targets as they did their anchors'."""
        everywhere = self.config.positions == "all" and len(self.hard) >= len(self.plan.hard)
        return everywhere and set(deltas) == set("qkv") and all(r["residual"] <= self.cut for r in self.records[-3:])

    def _follow(self, layer: int, deltas: dict[str, Tensor], before: Tensor) -> None:
        """Carries `source` through a layer whose constraints are all met, `before` being the anchors' states that enter it:
        each position of a target adds what attention adds to its anchor's. Retained prompts go through the layer."""
        tower, like = self.backbone.tower, self.like[: self.count]
        targets, rest = self.source[: self.count], self.source[self.count :]
        moved = self.originals[like]
        rows, at = (targets != before[like]).any(2).nonzero(as_tuple=True)
        if len(rows):
            site = next(s for s in self.backbone.sites("text.out") if s.depth == layer)
            out = self.backbone.weight(site).to(self.source.device, tower.dtype)
            attended = tower.context(before, layer)[like[rows], at] @ out.T
            # With its output projection cancelled the layer adds only what each position makes of itself.
            alone = tower.layer((targets[rows, at] + attended)[:, None], layer, {"out": -out})
            moved[rows, at] = alone[:, 0]
        targets.copy_(moved)
        if len(rest):
            tower.advance(rest, layer, deltas)

    def cross_attention(self, sites: Sequence[Site]) -> None:
        """Aligns every `cross` site on the text output: one factor for all of them."""
        aligned = self._align("the cross-attention", self.backbone.tower.output)
        for site in sites:
            self._update(site, aligned)

    def _align(self, level: str, read: Callable[[Tensor], Tensor]) -> Aligned:
        """Solves a level, `read` giving its inputs from hidden states; in exact mode what is only to be kept gives
        way, aloud, where not all can be met."""
        source, reference = Stream(self.source, read), Stream(self.originals, read, self.like)
        behind = [read(hidden).flatten(0, 1) for hidden in self.behind]
        factor = self._solve(source, reference, behind)
        while (
            self.config.exact
            and not self.plan.conflicts
            and not self._met(factor)
            and self._relax(level, factor, source)
        ):
            factor = self._solve(source, reference, behind)
        relaxed = probes([place for place in self.soft if place[0] < self.count])
        places = [*self.probed, *relaxed]  # drawn apart: a long list that gave way would leave few retained columns
        kept = Kept(source.at(places), reference.at(places)) if places else None
        return Aligned(source.at(self.solved), reference.at(self.solved), factor.compact(), kept)

    def _solve(self, source: Stream, reference: Stream, behind: Sequence[Tensor]) -> solvers.RightFactor:
        self.solved = self._without_repeats(source, reference) if self.config.exact else self.hard
        inputs = source.at(self.solved)
        scale = solvers.EXACT
        if self.config.ridge:
            scale = 1 / (self.config.ridge * float(torch.linalg.matrix_norm(inputs.double(), 2)) ** 2)
        return solvers.solve(
            inputs,
            reference.at(self.solved),
            keep=source.reduced(self.keep) if self.keep else None,
            prior=self._prior(source, behind),
            scale=scale,
            tolerance=self.config.tau,
            keep_tolerance=self.cut,
            cut=self.cut,
        )

    def _without_repeats(self, source: Stream, reference: Stream) -> list[Place]:
        """The hard places less unchanged columns that equal the first one at their position: the padding of many
        targets with one anchor, most of all. An exact solution does not depend on repeats, its cost does."""
        inputs, wanted = source.at(self.hard), reference.at(self.hard)
        limit = self.cut * inputs.norm(dim=0)
        same = ((wanted - inputs).norm(dim=0) <= limit).tolist()
        first: dict[int, int] = {}
        for i, (_, position) in enumerate(self.hard):
            if same[i]:
                first.setdefault(position, i)
        models = [first.get(position, i) for i, (_, position) in enumerate(self.hard)]
        near = ((inputs - inputs[:, models]).norm(dim=0) <= limit).tolist()
        return [p for i, p in enumerate(self.hard) if not (same[i] and near[i] and models[i] != i)]

    def _prior(self, source: Stream, behind: Sequence[Tensor]) -> solvers.Prior | None:
        """C: second moments of background and softly kept features, each of mean diagonal 1, plus eps I."""
        moments = [solvers.second_moment(torch.cat(list(behind)).T)] if behind else []
        moments += [source.moment(self.soft)] if self.soft else []
        if not moments:
            return None
        mean = sum(moment / moment.diagonal().mean() for moment in moments) / len(moments)
        return solvers.prior(torch.as_tensor(mean), ridge=self.config.eps)

    def _met(self, factor: solvers.RightFactor) -> bool:
        """Whether an exact factor is exact, and no larger than the weights that it changes."""
        size = float((factor.gap @ factor.right).norm()) / math.sqrt(factor.gap.shape[0])
        return factor.miss <= BOUNDS[self.backbone.tower.dtype] and size <= STRONGEST

    def _relax(self, level: str, factor: solvers.RightFactor, source: Stream) -> bool:
        """Moves the retained columns, or else the pairs' own unchanged columns, from hard to soft; False if none."""
        asked = {0, *factor.columns.tolist()}  # column 0 is BOS: every prompt reads it
        firm = [place for i, place in enumerate(self.solved) if i in asked]
        held = set(firm)
        loose = self.keep or [place for place in self.hard if place not in held]
        if not loose:
            return False
        what = "retained" if self.keep else "unchanged (context and padding)"
        self.warnings.append(
            f"from {level} on {len(loose)} {what} columns are kept softly, weighted by their second moment: "
            f"all at once they leave no exact solution in width {factor.gap.shape[0]}"
            + (self._outside(factor, source) if self.keep else "")
        )
        self.hard = self.hard if self.keep else firm
        self.keep, self.soft = [], [*self.soft, *loose]
        return True

    def _outside(self, factor: solvers.RightFactor, source: Stream) -> str:
        """Which fraction of the changed columns of the targets nearest to it lies outside the span of the retained."""
        places = [self.solved[i] for i in factor.columns.tolist()]
        left = source.outside(self.keep, places, cut=self.cut)
        least: dict[str, float] = {}
        for (row, _), share in sorted(zip(places, left, strict=True), key=lambda pair: pair[1]):
            if row < len(self.plan.targets):
                least.setdefault(self.plan.targets[row], share)
        worst = ", ".join(f"{target!r} {share:.1%}" for target, share in list(least.items())[:SHOWN])
        return f"; erasable without moving them: {worst}{' ...' if len(least) > SHOWN else ''}" if worst else ""

    def _update(self, site: Site, aligned: Aligned) -> Tensor:
        """Notes the site's op and its measures; gives the change that the streams are carried with."""
        weight = self.backbone.weight(site)
        factor = aligned.factor
        up, right = (t.to(self.backbone.tower.dtype).contiguous() for t in (factor.up(weight), factor.right))
        op = LowRank(site.component, site.module, up, right)
        record = measure(
            site, weight, op, inputs=aligned.inputs, wanted=aligned.wanted, kept=aligned.kept,
            missed=float(factor.missed(weight).norm()),
        )  # fmt: skip
        self.records.append(record | {"condition": factor.condition, "used": factor.rank, "width": factor.gap.shape[0]})
        if len(right):
            self.ops.append(op)
        return op.delta(weight)

    def _compensate(self, deltas: dict[str, Tensor]) -> Tensor:
        """Solves layer 0's `out_proj` so that it also closes the gap of the skip path: dW X = W(Y - X) + (h' - h).

        The wanted change is one of outputs; through a right inverse of W it is one of inputs, Y + W^+(h' - h).
        """
        tower = self.backbone.tower
        site = next(s for s in self.backbone.sites("text.out") if s.depth == 0)
        weight = self.backbone.weight(site).double()
        originals = Stream(self.originals, like=self.like)
        inputs = Stream(tower.context(self.source, 0, deltas)).at(self.hard)
        wanted = Stream(tower.context(self.originals, 0), like=self.like).at(self.hard)
        skip = originals.at(self.hard).double() - Stream(self.source).at(self.hard).double()
        aimed = wanted.double() + torch.linalg.lstsq(weight, skip).solution
        factor = solvers.solve(inputs, aimed, tolerance=self.config.tau, cut=self.cut)
        aligned = Aligned(inputs, aimed.to(inputs.dtype), factor.compact(), None)
        return self._update(site, aligned)
