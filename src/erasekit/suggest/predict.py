"""What ErasePro (arXiv 2508.04472, bare template, all positions) would do, from features and without the fit.

Notation: column j of X_l (d, n) is what level l reads of the target at position j in the original model, Y_l of the
anchor, H_l of another concept; D = Y - X; X^+ the pseudoinverse; W_kv all cross-attention k and v stacked.

Update norm, equal to the fit's where its constraints can all be met. At text layer 0
    ||W D_0 X_0^+|| / ||W||,
and at the cross-attention the same with X' for X: what it reads of the target *after* the text layers were aligned.
X' needs no fit: q, k, v act on every aligned position as they do for the anchor, so its attention output is the
anchor's u_l, and h' goes its way alone, h'_{l+1} = h' + u_l + MLP_l(h' + u_l), from the target's embedding on. Where
target and anchor have the same token this is the anchor's own state.

Drift of another concept, an estimate. Layer 0 hands it the share of the target's change
    leak = ||W_qkv D_0 X_0^+ H_0|| / ||W_qkv D_0||            (exact; 1 for the target itself)
and this share is taken to reach the end: drift = leak * ||W_kv (Y - X)|| / ||W_kv H||, Y, X, H the text output.

Every norm is a trace of Gram matrices, so all pairs of anchor and concept cost one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone, Site, Tokens
from erasekit.errors import ModelError
from erasekit.methods import Progress

TEMPLATES = ("{}", "a {}", "a photo of a {}")
"""Neutral, and all with the concept at their end: its last token stands just before the end token."""


@dataclass(frozen=True)
class Prediction:
    """`text`, `cross` (a,): relative update norms for each anchor; `drift` (a, c): of each concept under each anchor.
    `width`, `length`: of the text encoder. float64."""

    text: Tensor
    cross: Tensor
    drift: Tensor
    width: int
    length: int


@dataclass(frozen=True)
class _Features:
    """Of each prompt: `first` (n, length, d) what text layer 0 reads, `last` what the cross-attention reads;
    `aligned` (a, window, d) what it reads of the target once the text layers were aligned with each anchor."""

    first: Tensor
    last: Tensor
    aligned: Tensor


@dataclass(frozen=True)
class _Gram:
    """The sum of W^T W over some weights, and the mean of W^T W / ||W||^2; (d, d)."""

    total: Tensor
    mean: Tensor


@torch.no_grad()
def predict(
    backbone: Backbone, target: str, anchors: Sequence[str], others: Sequence[str], *, progress: Progress | None = None
) -> Prediction:
    """The module's formulas for every anchor (a) and every other concept (c). The model is only read.

    Raises `UsageError` for a prompt that is too long, `ModelError` for features that are not finite.
    """
    prompts = list(dict.fromkeys([target, *anchors, *others]))
    rows = [prompts.index(name) for name in anchors]
    cols = [prompts.index(name) for name in others]
    features = _features(backbone, prompts, rows, progress)
    window = features.aligned.shape[1]
    layer0 = _gram(backbone, [site for site in backbone.sites("text.qkv") if site.depth == 0])
    cross = _gram(backbone, backbone.sites("cross.kv"))
    gaps = features.first[rows] - features.first[0]  # D_0 as rows; zero from `window` on
    shared = solvers.inverse(features.first[0].T).rows  # X_0^+ (length, d)
    leaks = _leaks(gaps[:, :window], shared[:window], features.first[cols], layer0.total)
    ends = _squares(features.last[rows] - features.last[0], cross.total)
    drift = (leaks * ends[:, None] / _squares(features.last[cols], cross.total)).sqrt()
    text = torch.stack([_norm(gap.T, shared, layer0.mean) for gap in gaps])
    cut = 64 * torch.finfo(backbone.tower.dtype).eps  # the fit's own: what rounding leaves between equal columns
    found = [_cross(features.last[row], x, cross.mean, cut) for row, x in zip(rows, features.aligned, strict=True)]
    return Prediction(text, torch.stack(found), drift, features.last.shape[2], features.last.shape[1])


@torch.no_grad()
def similarity(backbone: Backbone, target: str, candidates: Sequence[str]) -> Tensor:
    """The cosine (c,) of each candidate to the target: features of the last token and of the end position in every
    template, each less its mean over the candidates (else everything is alike), the cosines averaged."""
    return similarities(backbone, [target], candidates)[0]


@torch.no_grad()
def similarities(backbone: Backbone, targets: Sequence[str], candidates: Sequence[str]) -> Tensor:
    """`similarity` (t, c) of several targets to the same candidates."""
    names, count = [*targets, *candidates], len(targets)
    tokens = backbone.tokenize([template.format(name) for template in TEMPLATES for name in names])
    length = max(tokens.ends) + 1  # attention is causal: what comes behind the end changes nothing
    output = _output(backbone, Tokens(tokens.ids[:, :length], tokens.ends))
    ends, every = torch.tensor(tokens.ends), torch.arange(len(tokens.ends))
    read = torch.stack([output[every, ends - 1], output[every, ends]])  # (2, templates * n, d)
    read = read.reshape(2 * len(TEMPLATES), len(names), -1)
    centred = read - read[:, count:].mean(1, keepdim=True)
    unit = centred / centred.norm(dim=2, keepdim=True).clamp_min(torch.finfo(centred.dtype).tiny)
    return (unit[:, :count] @ unit[:, count:].mT).mean(0)


def _features(backbone: Backbone, prompts: Sequence[str], anchors: list[int], progress: Progress | None) -> _Features:
    """One walk through the text encoder: all prompts (the target is row 0) in the original model, and beside them
    the target's own way under each anchor."""
    tower, tokens = backbone.tower, backbone.tokenize(prompts)
    window = max(tokens.ends[row] for row in [0, *anchors]) + 1
    hidden = tower.embed(tokens)
    first = tower.attention_input(hidden, 0)
    source = hidden[:1, :window].expand(len(anchors), -1, -1)
    for site in backbone.sites("text.out"):
        out = backbone.weight(site).to(hidden.device, tower.dtype)
        attended = tower.context(hidden[anchors], site.depth)[:, :window] @ out.T
        # With its output projection cancelled the layer adds only what each position makes of itself.
        source = tower.layer(source + attended, site.depth, {"out": -out})
        hidden = tower.layer(hidden, site.depth)
        if progress:
            progress(site.depth + 1, tower.depth, "text layers")
    found = [_double(first), _double(tower.output(hidden)), _double(tower.output(source))]
    if not all(bool(part.isfinite().all()) for part in found):
        raise ModelError(f"{backbone.model_id} gives features that are not finite: check the model's weights")
    return _Features(*found)


def _output(backbone: Backbone, tokens: Tokens) -> Tensor:
    hidden = backbone.tower.embed(tokens)
    for layer in range(backbone.tower.depth):
        hidden = backbone.tower.layer(hidden, layer)
    return _double(backbone.tower.output(hidden))


def _gram(backbone: Backbone, sites: Sequence[Site]) -> _Gram:
    total = mean = torch.zeros((), dtype=torch.float64)
    for site in sites:
        weight = backbone.weight(site).to(backbone.tower.dtype)
        gram = _double(weight.T @ weight)
        total, mean = total + gram, mean + gram / gram.trace() / len(sites)
    return _Gram(total, mean)


def _leaks(gaps: Tensor, shared: Tensor, others: Tensor, gram: Tensor) -> Tensor:
    """leak^2 (a, c): `gaps` (a, w, d) and `shared` (w, d) of the target's columns, `others` (c, length, d)."""
    received = shared @ others.mT  # (c, w, length): how much of each target column every position holds
    held = received @ received.mT
    weights = gaps @ gram @ gaps.mT  # (a, w, w)
    total = weights.diagonal(dim1=1, dim2=2).sum(1)
    return (weights.flatten(1) @ held.flatten(1).T / total[:, None]).clamp_min(0)


def _cross(wanted: Tensor, aligned: Tensor, gram: Tensor, cut: float) -> Tensor:
    """The relative update norm of the cross-attention for one anchor (length, d)."""
    inputs = wanted.clone()
    inputs[: len(aligned)] = aligned
    factor = solvers.solve(inputs.T, wanted.T, cut=cut)
    return _norm(factor.gap, factor.right, gram)


def _norm(gap: Tensor, right: Tensor, gram: Tensor) -> Tensor:
    """||W gap right|| from W^T W, for `gap` (d, r), `right` (r, d)."""
    return ((gram @ gap) * (gap @ (right @ right.T))).sum().clamp_min(0).sqrt()


def _squares(features: Tensor, gram: Tensor) -> Tensor:
    """||W F||^2 of each of (n, length, d)."""
    return ((features @ gram) * features).sum((1, 2))


def _double(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float64)
