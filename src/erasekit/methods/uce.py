"""UCE: unified concept editing of the cross-attention (arXiv 2308.14761, WACV 2024).

For one projection W_o (o, d), pairs of text features x -> y (columns of X and Y, d x n) and retained features R:

    min_W  a ||W X - V*||^2 + b ||(W - W_o) R||^2 + lamb ||W - W_o||^2
    W = W_o + (V* - W_o X) M,   M = (X' C^-1 X + I/a)^-1 X' C^-1,   C = lamb I + b R R'

a = `erase_scale`, b = `preserve_scale`. M (n, d) depends on text alone, so one factorisation serves every
matrix. The objective sees R only through R R' (d, d) and, where V* = W_o Y, the pairs only through the second
moment of [X; Y], which 2d columns carry exactly: a thousand prompts cost no more memory than ten.

Targets V*: `erase` W_o Y of the anchor; `moderate` the same with the empty anchor; `variant="tensor"` W_o Y less
its projection on the target's own output (one scalar a pair); `debias` see `uce_debias`.

Columns, `tokens="tail"` (the paper's scripts, 2023): the rows of both prompts from the last subject token on,
shifted so that these tokens meet, through EOS and padding; an empty anchor thus pairs its BOS with the target's
last token. Retained prompts count with every row, the empty prompt is always among them. `tokens="last"` (the
authors' rewrite, 2025): the last subject token alone, and only the retained prompts that were given.

What differs from the released code: float64 and a Cholesky in place of a float32 inverse for every layer; a
template goes around the anchor too (an empty anchor stays empty).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone, Site
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, Edit, LowRank
from erasekit.errors import UsageError
from erasekit.methods import Preset, Progress, _cross, check_choice, check_range
from erasekit.methods._features import spread
from erasekit.methods._retained import held_back
from erasekit.methods.uce_text import Pairs, Retained, gather_pairs, gather_retained

TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("{}",),
    "art": ("{}", "painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
    "object": ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
}


@dataclass(frozen=True)
class UCEConfig:
    """Parameters of UCE; a wrong value raises `UsageError` naming the choices."""

    mode: str = "erase"
    """erase (to the anchor), moderate (to the empty prompt), debias (balance attributes; Python only)."""
    variant: str = "replace"
    """replace (the anchor's output) or tensor (the same, less its projection on the target's output)."""
    tokens: str = "tail"
    """tail (the paper's scripts) or last (the authors' 2025 rewrite: one vector a prompt)."""
    erase_scale: float = 1.0
    """a: weight of the pairs, above 0."""
    preserve_scale: float | None = None
    """b: weight of the retained features; None: max(0.1, 1/number of retained prompts) for tail, 1 for last,
    0.1 for debias."""
    lamb: float = 0.5
    """lambda: weight of the distance to the weights as they are, above 0."""
    expand: str = "none"
    """Templates around each target and its anchor: none, art or object."""
    attributes: tuple[str, ...] = ()
    """debias: the attributes to balance, such as ("male person", "female person")."""
    ratios: tuple[float, ...] = ()
    """debias: the share asked for each attribute; empty: equal shares."""
    step: float = 0.1
    """debias: alpha = step x (asked - observed share)."""
    max_diff: float = 0.05
    """debias: a target whose shares are all this near is done."""
    rounds: int = 30
    """debias: most rounds of labelling and editing."""
    labeller: Callable[[Edit], Sequence[Sequence[float]]] | None = None
    """debias: given the edit so far, the observed shares, one row a target (see `uce_debias.image_labeller`)."""

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("erase", "moderate", "debias"))
        check_choice("variant", self.variant, ("replace", "tensor"))
        check_choice("tokens", self.tokens, ("tail", "last"))
        check_choice("expand", self.expand, tuple(TEMPLATES))
        for name in ("erase_scale", "lamb", "step", "max_diff", "rounds"):
            check_range(name, getattr(self, name), low=1e-12, high=1e12)
        if self.preserve_scale is not None:
            check_range("preserve_scale", self.preserve_scale, high=1e12)
        if self.mode == "debias":
            _check_debias(self)

    @property
    def linear(self) -> bool:
        """Whether V* = W_o Y, so that the pairs enter by their second moment alone."""
        return self.mode != "debias" and self.variant == "replace"


class UCE:
    """The cross-attention K and V that best send every target's features to its anchor's outputs.

    Text encoder untouched; 32 matrices in SD 1.x and 2.x. Deterministic: the seed changes nothing (except what a
    debias labeller does with it).
    """

    name: ClassVar[str] = "uce"
    title: ClassVar[str] = "Unified Concept Editing"
    paper: ClassVar[str] = "arXiv 2308.14761"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {}
    Config: ClassVar[type[UCEConfig]] = UCEConfig

    @torch.no_grad()
    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: UCEConfig,
        *,
        progress: Progress | None = None,
    ) -> Edit:
        """An edit of every `cross.kv` site; the model is left bitwise as it was.

        Raises `UsageError` for a request or family that UCE does not take, `InfeasibleError` for an edit that
        would change nothing.
        """
        check_request(backbone, request, config)
        if config.mode == "debias":
            from erasekit.methods.uce_debias import fit_debias

            return fit_debias(backbone, request, config, progress=progress or _cross.silent)
        progress = progress or _cross.silent
        pairs = gather_pairs(backbone, prompt_pairs(request, config), config, progress=progress)
        retained = gather_retained(backbone, request.retain, config, progress=progress, cache=request.retain_cache)
        ops, checks = solve_sites(backbone, pairs, retained, config, progress=progress)
        moment = retained.scale * retained.moment
        held = held_back(backbone, request, moment, ridge=config.lamb, scale=config.erase_scale, progress=progress)
        return finish(backbone, request, config, ops, checks, held)


def prompt_pairs(request: EraseRequest, config: UCEConfig) -> list[tuple[str, str]]:
    """(target prompt, anchor prompt) for every target and template; an empty anchor stays empty."""
    return [
        (template.format(target), template.format(anchor) if anchor else "")
        for target, anchor in zip(request.targets, request.anchors, strict=True)
        for template in TEMPLATES[config.expand]
    ]


def solve_sites(
    backbone: Backbone, pairs: Pairs, retained: Retained, config: UCEConfig, *, progress: Progress
) -> tuple[list[LowRank | Dense], list[dict[str, Any]]]:
    """One op and one self-check entry for each `cross.kv` site, from one factorisation."""
    found = solve_right(pairs, retained, config)
    whole = (pairs.ys[0] - pairs.x) @ found.rows if config.linear else None  # W_o @ whole is the dense update
    sites, ops, checks = backbone.sites("cross.kv"), [], []
    for k, site in enumerate(sites):
        progress(k, len(sites), "solving the cross-attention")
        weight = backbone.weight(site)
        ops.append(_op(site, weight, pairs, found.rows, whole, config))
        checks.append(check_site(site, weight, ops[-1], pairs, retained, config) | _cross.solved(found, weight))
    progress(len(sites), len(sites), "solving the cross-attention")
    return ops, checks


def solve_right(pairs: Pairs, retained: Retained, config: UCEConfig) -> solvers.Inverse:
    """M (n, d) of the module's docstring, shared by all sites."""
    metric = solvers.prior(retained.scale * retained.moment, ridge=config.lamb)
    return solvers.inverse(pairs.x, prior=metric, scale=config.erase_scale)


def gap(weight: Tensor, pairs: Pairs, config: UCEConfig) -> Tensor:
    """V* - W_o X (o, n) float64 of an erasing edit."""
    weight = weight.double()
    if config.variant == "replace":
        return weight @ (pairs.ys[0] - pairs.x)
    own, anchor = weight @ pairs.x, weight @ pairs.ys[0]
    return anchor - own * (1 + pairs.block_dot(anchor, own) / pairs.block_dot(own, own))


def check_site(
    site: Site, weight: Tensor, op: LowRank | Dense, pairs: Pairs, retained: Retained, config: UCEConfig
) -> dict[str, Any]:
    """What the edit did at one site, measured on at most PROBES columns of the pairs and of the retained."""
    columns = spread(pairs.x.shape[1])
    x = pairs.x[:, columns]
    if config.linear:
        return _cross.measure(site, weight, op, x, None, retained.probes, gap=pairs.ys[0][:, columns] - x)
    return _cross.measure(site, weight, op, x, gap(weight, pairs, config)[:, columns], retained.probes)


def finish(
    backbone: Backbone,
    request: EraseRequest,
    config: UCEConfig,
    ops: Sequence[LowRank | Dense],
    records: Sequence[dict[str, Any]],
    warnings: Sequence[str] = (),
) -> Edit:
    """The edit with its self-check; raises for numbers that are not finite and for an edit that changes nothing."""
    return _cross.finish(
        backbone, request, method="uce", parameters=parameters(config), ops=ops, records=records, warnings=warnings
    )


def parameters(config: UCEConfig) -> dict[str, object]:
    """The configuration as it is written into the file: all but the labeller, which is code."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name != "labeller"}


def check_request(backbone: Backbone, request: EraseRequest, config: UCEConfig) -> None:
    """Refuse what UCE does not do, in one line."""
    if backbone.family not in UCE.families:
        raise UsageError(f"uce does not support family {backbone.family!r}; it works on {', '.join(UCE.families)}")
    if config.mode == "moderate" and any(request.anchors):
        raise UsageError("uce: mode=moderate maps to the empty prompt; drop the anchor, or use mode=erase")
    if config.mode == "debias" and config.labeller is None:
        raise UsageError("uce: mode=debias needs a labeller, a Python function; see docs/uce.md")


def _op(
    site: Site, weight: Tensor, pairs: Pairs, right: Tensor, whole: Tensor | None, config: UCEConfig
) -> LowRank | Dense:
    if _cross.narrow(weight, right.shape[0]):
        return LowRank(site.component, site.module, gap(weight, pairs, config).float(), right.float())
    delta = weight.double() @ whole if whole is not None else gap(weight, pairs, config) @ right
    return Dense(site.component, site.module, delta.float())


def _check_debias(config: UCEConfig) -> None:
    if len(config.attributes) < 2:
        raise UsageError("uce: mode=debias needs at least two attributes")
    if config.ratios and (len(config.ratios) != len(config.attributes) or abs(sum(config.ratios) - 1) > 1e-6):
        raise UsageError("uce: ratios must be one share for each attribute, together 1")
