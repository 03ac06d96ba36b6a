"""Residual and drift of an edit on sentences that it never saw, without drawing an image.

The text tower is walked layer by layer, once as it was and once with the edit's changes; what every edited matrix gives
is compared. With W the original weight, W' the edited one, h and h' the inputs that it reads in the two models:

    residual  |W' h'(target) - W h(anchor)| / |W h(anchor)|     how far the target still is from its anchor
    drift     |W' h'(kept)   - W h(kept)|   / |W h(kept)|       how far what should stay has moved

norms over all prompts and positions but the first (BOS, which no edit of words moves and whose norm is large).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erasekit.errors import BaseMismatchError, EditError, UsageError
from erasekit.fingerprint import matches
from erasekit.ops import LinearOp, Op

if TYPE_CHECKING:
    from erasekit.backbones.base import Backbone, Site
    from erasekit.edit import Edit

BATCH = 16  # prompts that are walked together


@dataclass(frozen=True)
class SiteChange:
    """One matrix. `unedited` is the residual of the model without the edit: what `residual` is to be read against."""

    site: str
    group: str
    depth: int
    residual: float
    unedited: float
    drift: float


@dataclass(frozen=True)
class TextSide:
    """`sites`: the edited matrices, in depth order. `residual`, `unedited`, `drift`: over these together.
    `denoiser_*`: over every cross-attention key and value, edited or not, the same for all methods.
    `skipped`: ops that do not act on what is walked (images, guidance); their effect is not in any number here."""

    sites: tuple[SiteChange, ...]
    residual: float
    unedited: float
    drift: float
    denoiser_residual: float
    denoiser_unedited: float
    denoiser_drift: float
    skipped: tuple[str, ...]


@dataclass
class _Sums:
    """Squared norms at one site."""

    missed: float = 0.0
    missed_before: float = 0.0
    aim: float = 0.0
    moved: float = 0.0
    kept: float = 0.0

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Residual, residual without the edit, drift; 0 without kept prompts."""
        drift = math.sqrt(self.moved / self.kept) if self.kept else 0.0
        return math.sqrt(self.missed / self.aim), math.sqrt(self.missed_before / self.aim), drift


@dataclass(frozen=True, eq=False)
class Changes:
    """What an edit changes where text is read: site -> delta, and the labels of its ops that act elsewhere."""

    deltas: dict[str, Tensor]
    skipped: tuple[str, ...]


def measure(backbone: Backbone, edit: Edit, *, pairs: Sequence[tuple[str, str]], kept: Sequence[str] = ()) -> TextSide:
    """Residual over `pairs` (a prompt with the target, the same with the anchor) and drift over the `kept` prompts.

    Positions are compared one by one: where target and anchor differ in their number of tokens the residual of a
    perfect edit is not 0 in held-out sentences; read it against `unedited`. The model is only read.

    Raises `UsageError` without pairs or for a prompt too long, `BaseMismatchError` where the edit is for other
    weights, `EditError` for an op inside the text encoder that the walk cannot carry (an MLP, a bias, an adapter).
    """
    return measure_each(backbone, [changes(backbone, edit)], pairs=pairs, kept=kept)[0]


def measure_each(backbone: Backbone, edits: Sequence[Changes], *, pairs: Sequence[tuple[str, str]],
                 kept: Sequence[str] = ()) -> list[TextSide]:  # fmt: skip
    """`measure` of each edit; the model without an edit is walked once for all, beside them, and nothing is stored."""
    if not pairs:
        raise UsageError("the residual needs at least one pair of prompts, with the target and with the anchor")
    own = {key for edit in edits for key in edit.deltas}
    every = [s for s in backbone.sites("all", "text.out") if s.key in own or s.group.startswith("cross.")]
    sums = [{site.key: _Sums() for site in every} for _ in edits]
    with torch.no_grad():
        for part in _batches(pairs):
            _add_pairs(backbone, edits, every, part, sums)
        for part in _batches(kept):
            _add_kept(backbone, edits, every, part, sums)
    return [_side(edit, every, found) for edit, found in zip(edits, sums, strict=True)]


def _side(edit: Changes, every: Sequence[Site], sums: dict[str, _Sums]) -> TextSide:
    edited = tuple(SiteChange(s.key, s.group, s.depth, *sums[s.key].ratios) for s in every if s.key in edit.deltas)
    over = [sums[site.site] for site in edited]
    cross = [sums[s.key] for s in every if s.group.startswith("cross.")]
    return TextSide(edited, *_ratios(over), *_ratios(cross), edit.skipped)


def _ratios(sums: Sequence[_Sums]) -> tuple[float, float, float]:
    return sum(sums, _Sums()).ratios


def changes(backbone: Backbone, edit: Edit) -> Changes:
    """The edit's deltas as applying it would round them. Raises `BaseMismatchError` and `EditError` as `measure` does."""
    sites = {site.key: site for site in backbone.sites("all", "text.out")}
    deltas: dict[str, Tensor] = {}
    skipped: list[str] = []
    for op in edit.ops:
        site = sites.get(op.site)
        if site is None or not isinstance(op, LinearOp):
            skipped.append(_skip(op, site))
            continue
        weight = backbone.weight(site)
        if op.site not in deltas:
            _check_base(edit, site, weight)
        if op.bias_delta() is not None:
            raise EditError(f"{op.label} changes a bias, which is not measured on the text side: judge images instead")
        delta = op.delta(weight)
        deltas[op.site] = deltas[op.site] + delta if op.site in deltas else delta
    if not deltas:
        raise EditError("the edit changes nothing that reads text, so it has no residual there: judge images instead")
    return Changes({key: _cast(backbone.weight(sites[key]), delta) for key, delta in deltas.items()}, tuple(skipped))


def _cast(weight: Tensor, delta: Tensor) -> Tensor:
    """What the weight changes by once the sum is rounded to its dtype, as applying the edit does."""
    old = weight.detach().to(delta.dtype)
    return (old + delta).to(weight.dtype).to(delta.dtype) - old


def _skip(op: Op, site: Site | None) -> str:
    if op.component.startswith("text_encoder") or site is not None:
        raise EditError(f"{op.label} is not a change that the text side can be walked with: judge images instead")
    return op.label


def _check_base(edit: Edit, site: Site, weight: Tensor) -> None:
    recorded = edit.base.recorded(site.key)
    if recorded is not None and not matches(weight, recorded):
        raise BaseMismatchError(f"the edit is for other weights than the model's at {site.key}: use its base model")


def _add_pairs(
    backbone: Backbone, edits: Sequence[Changes], sites: list[Site], pairs: Sequence[tuple[str, str]],
    sums: Sequence[dict[str, _Sums]],
) -> None:  # fmt: skip
    targets, anchors = [target for target, _ in pairs], [anchor for _, anchor in pairs]
    unedited = [_walk(backbone, {}, targets, sites), _walk(backbone, {}, anchors, sites)]
    walks = [_walk(backbone, edit.deltas, targets, sites) for edit in edits]
    for (site, before), (_, aim), *edited in zip(*unedited, *walks, strict=True):
        missed, length = _square(before - aim), _square(aim)
        for own, (_, now) in zip(sums, edited, strict=True):
            own[site.key] += _Sums(missed=_square(now - aim), missed_before=missed, aim=length)


def _add_kept(
    backbone: Backbone, edits: Sequence[Changes], sites: list[Site], prompts: Sequence[str],
    sums: Sequence[dict[str, _Sums]],
) -> None:  # fmt: skip
    walks = [_walk(backbone, edit.deltas, prompts, sites) for edit in edits]
    for (site, before), *edited in zip(_walk(backbone, {}, prompts, sites), *walks, strict=True):
        length = _square(before)
        for own, (_, now) in zip(sums, edited, strict=True):
            own[site.key] += _Sums(moved=_square(now - before), kept=length)


def _walk(
    backbone: Backbone, deltas: dict[str, Tensor], prompts: Sequence[str], sites: list[Site]
) -> Iterator[tuple[Site, Tensor]]:
    """Each site with what its weight (and delta) gives for the prompts: (n, length - 1, out), without BOS."""
    tower = backbone.tower
    hidden = tower.embed(backbone.tokenize(prompts))
    for layer in range(tower.depth):
        at = {site.group.removeprefix("text."): site for site in sites if site.depth == layer}
        changes = {role: deltas[site.key] for role, site in at.items() if site.key in deltas}
        inputs = tower.attention_input(hidden, layer)
        for role, site in at.items():
            read = tower.context(hidden, layer, changes) if role == "out" else inputs
            yield site, _outputs(backbone, site, deltas, read)
        hidden = tower.layer(hidden, layer, changes)
    text = tower.output(hidden)
    for site in sites:
        if site.depth == tower.depth:
            yield site, _outputs(backbone, site, deltas, text)


def _outputs(backbone: Backbone, site: Site, deltas: dict[str, Tensor], inputs: Tensor) -> Tensor:
    weight = backbone.weight(site).to(inputs.device, inputs.dtype)
    if site.key in deltas:
        weight = weight + deltas[site.key].to(weight.device, weight.dtype)
    return inputs[:, 1:] @ weight.T


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())


def _batches(items: Sequence) -> Iterator[Sequence]:
    return (items[i : i + BATCH] for i in range(0, len(items), BATCH))
