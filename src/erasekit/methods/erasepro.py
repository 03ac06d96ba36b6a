"""ErasePro: zero-residual concept erasure by progressive alignment (arXiv 2508.04472), closed form, text only.

At each level (the q, k, v of text layer 0, 1, ..., then every cross-attention K and V together)

    W* = argmin ||W - W_o||_F^2   s.t.   W X = W_o Y          W* = W_o + W_o D X^+,   D = Y - X

X (d, n): what the level reads of the target prompts in the model *edited so far*; Y: what it reads of the anchor
prompts in the original; columns paired position by position. Since q, k, v then act on every position as they do
for the anchor, all positions but the concept's own reach the next level equal to the anchor's, D is zero there, and
each change has the rank of the concept's tokens. The skip path still carries the concept's own embedding: this
gap shrinks with depth relative to the hidden state, but never closes, so each level has a little left to do.

The paper's text gives the objective, the order of the levels and the pairs (man -> dog, artist -> "artist"). Not
confirmed there, and chosen here: all positions are constrained (BOS once: left out, unrelated prompts drift), all
text layers, the bare concept as the only template. No released code is known.

Where not all constraints fit into the width, the target's own columns stay hard; what is only to be kept (first
the retained columns, then unchanged context and padding) is kept softly instead, with a warning in the
self-check: C in `solvers` becomes its second moment.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import ClassVar

import torch

from erasekit.backbones.base import Backbone, Site, Tokens
from erasekit.concept import EraseRequest
from erasekit.edit import Base, Edit, library_versions
from erasekit.errors import InfeasibleError
from erasekit.methods import Preset, Progress, check_family, recorded
from erasekit.methods._align import Walk
from erasekit.methods._captions import GENERIC, described, written_out
from erasekit.methods._check import fingerprints, require_exact, require_finite, summary
from erasekit.methods._erasepro_config import SITES, EraseProConfig
from erasekit.methods._pairs import SHOWN, Plan, given_way, plan

PADDED, PADDING = 32, 4  # captions read with all their padding; padding read of the others
UNFIT = (
    "weighted by two dozen generic captions: give some hundred of the kind that the model is asked for "
    "(captions=@FILE), or other concepts may move more than without"
)


class ErasePro:
    """Targets act as their anchors, exactly on the constrained prompts, from the first text layer to the image."""

    name: ClassVar[str] = "erasepro"
    title: ClassVar[str] = "ErasePro: zero-residual erasure by progressive alignment"
    paper: ClassVar[str] = "arXiv 2508.04472"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        "balanced": Preset(
            "The paper's method with the empty prompt kept softly, and what is retained too: as exact and as small, and "
            "in sentences that it never saw nearer to the anchor. Chosen on the emoji model (docs/erasepro.md)",
            {"keep_empty": True, "retain_mode": "soft"},
        ),
        "weighted": Preset(
            "Balanced, weighted by captions: give some hundred of the kind that the model is asked for (captions=@FILE; "
            "captions=emoji for the embedded model). As exact and as small, far nearer to the anchor in unseen sentences, "
            "moves other concepts least, and holds longest as targets grow in number (docs/erasepro.md)",
            {"keep_empty": True, "retain_mode": "soft", "covariance": True, "eps": 1e-3},
        ),
        "many": Preset(
            "Balanced with a ridge, for targets that fill a good part of the encoder's width (50 of 192 on the emoji "
            "model): exact, they would drag everything else along. Erases less than balanced (docs/erasepro.md)",
            {"keep_empty": True, "retain_mode": "soft", "ridge": 0.1, "tolerance": 1e-10},
        ),
        "crowd": Preset(
            "For ten to a hundred targets where you have captions (some hundred of the kind that the model is asked for; "
            "captions=@FILE, captions=emoji for the embedded model) and a list of what must stay: weighted with a ridge, "
            "from the phrase to the first end of text. Keeps nearly what many keeps and erases far more "
            "(docs/many_concepts.md)",
            {
                "keep_empty": True,
                "retain_mode": "soft",
                "covariance": True,
                "eps": 1e-3,
                "positions": "content",
                "ridge": 0.03,
                "tolerance": 1e-10,
            },
        ),
    }
    Config: ClassVar[type[EraseProConfig]] = EraseProConfig

    @torch.no_grad()
    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: EraseProConfig,
        *,
        progress: Progress | None = None,
    ) -> Edit:
        """The edit, with the residual on the constrained columns at most 1e-5 (float32) in exact mode.

        The model is left bitwise as it was; the seed plays no part. Raises `InfeasibleError` for constraints that
        contradict each other, a residual above the bound, or a target that the model reads as its anchor;
        `UsageError` for a prompt that is too long or a family that is not claimed.
        """
        check_family(type(self), backbone)
        walk = align(backbone, request, config, progress=progress)
        check = summary(walk.records, walk.warnings)
        if config.covariance:
            check["captions"] = described(config.captions)
        require_finite(check)
        if not walk.ops:
            raise InfeasibleError("the model reads target and anchor as the same: choose another anchor")
        edited = _sites(backbone, walk)
        if config.exact and not walk.plan.conflicts:
            dtypes = {site.key: backbone.weight(site).dtype for site in edited}
            require_exact(check, dtypes, remedy="set tolerance=1e-2 or ridge=1e-3, erase fewer targets at once, or take "
                          "erasepro:crowd with captions (without any: erasepro:many)")  # fmt: skip
        return Edit(
            ops=tuple(walk.ops),
            base=Base(backbone.model_id, backbone.family, fingerprints(backbone, edited)),
            method=self.name,
            parameters=recorded(config) | {"tolerance": config.tau},
            targets=request.targets,
            anchors=request.anchors,
            retain=request.retain,
            seed=request.seed,
            versions=library_versions(),
            self_check=check,
        )


@torch.no_grad()
def align(
    backbone: Backbone, request: EraseRequest, config: EraseProConfig, *, progress: Progress | None = None
) -> Walk:
    """The walk from the first text layer to the cross-attention, done: its ops, measures and warnings.

    Raises `InfeasibleError` for conflicts; checks nothing else.
    """
    walk = Walk(backbone, _plan(backbone, request, config), config, _background(backbone, config))
    walk.warnings += [f"{c}: the compromise of both was taken" for c in walk.plan.conflicts]
    walk.warnings += given_way(walk.plan) if config.retain_mode == "soft" else []
    walk.warnings += [*_unlike(backbone, request), *_anchorless(backbone, request)]
    if config.covariance and written_out(config.captions) == GENERIC:
        walk.warnings.append(UNFIT)
    text, cross = SITES[config.sites]
    sites = backbone.sites(*text) if text else []
    depth = backbone.tower.depth
    for layer in range(depth):
        edited = config.layers is None or layer < config.layers
        walk.text_layer(layer, [site for site in sites if site.depth == layer and edited])
        if progress:
            progress(layer + 1, depth + 1, f"text layer {layer}")
    if cross:
        walk.cross_attention(backbone.sites(*cross))
    if progress:
        progress(depth + 1, depth + 1, "cross-attention")
    return walk


def _plan(backbone: Backbone, request: EraseRequest, config: EraseProConfig) -> Plan:
    found = plan(
        backbone,
        request,
        config.prompts,
        positions=config.positions,
        extra=("",) if config.keep_empty else (),
        context_free=bool(SITES[config.sites][0]),
        keep_exactly=config.retain_mode == "exact",
    )
    if found.conflicts and config.on_conflict == "error":
        first, *others = found.conflicts
        more = f" (and {len(others)} more)" if others else ""
        bare = "set templates=bare, " if len(config.prompts) > 1 else ""
        raise InfeasibleError(
            f"{first}{more}, and no weight can serve both: choose anchors that keep this token in place "
            f"(with as many tokens as their targets), drop one of the two, {bare}or set on_conflict=average"
        )
    return found


def _unlike(backbone: Backbone, request: EraseRequest) -> list[str]:
    """A warning for every anchor that has more tokens than its target: then the end token, which every prompt has,
    is asked to act as a piece of the anchor."""
    pairs = [(t, a) for t, a in zip(request.targets, request.anchors, strict=True) if a]
    ends = zip(*(backbone.tokenize(side).ends for side in zip(*pairs, strict=True)), strict=True) if pairs else ()
    return [
        f"{target!r} has {mine - 1} tokens and its anchor {anchor!r} {its - 1}: the text behind them moves too, also in "
        "other prompts; prefer an anchor of at most as many tokens"
        for (target, anchor), (mine, its) in zip(pairs, ends, strict=True)
        if its > mine
    ]


def _anchorless(backbone: Backbone, request: EraseRequest) -> list[str]:
    """A warning where targets become the empty prompt: what comes behind them changes its place, which no edit aligns."""
    targets = [target for target, anchor in zip(request.targets, request.anchors, strict=True) if not anchor]
    if not targets:
        return []
    named = ", ".join(map(repr, targets[:SHOWN])) + (f" and {len(targets) - SHOWN} more" if targets[SHOWN:] else "")
    model = "" if backbone.model_id == "emoji" else " (with the same --model)"  # emoji is its default
    return [f"no anchor for {named}: most of the gap to the empty prompt stays in other sentences; name a near concept, "
            f"such as `erasekit suggest-anchors {shlex.quote(targets[0])}` lists{model}"]  # fmt: skip


def _background(backbone: Backbone, config: EraseProConfig) -> tuple[Tokens, ...]:
    """The captions: the first with all their padding, which is much the same in all, the others with a little of it."""
    if not config.covariance:
        return ()
    tokens = backbone.tokenize(written_out(config.captions))
    short = tokens.ids[PADDED:, : max(tokens.ends) + PADDING]
    first = Tokens(tokens.ids[:PADDED], tokens.ends[:PADDED])
    return (first, Tokens(short, tokens.ends[PADDED:])) if len(short) else (first,)


def _sites(backbone: Backbone, walk: Walk) -> list[Site]:
    """The sites that got an op."""
    edited = {(op.component, op.module) for op in walk.ops}
    return [site for site in backbone.sites("all", "text.out") if (site.component, site.module) in edited]
