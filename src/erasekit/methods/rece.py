"""RECE: reliable and efficient concept erasure (arXiv 2407.12383, ECCV 2024), closed form, text only.

After UCE a target's own embedding no longer gives the target, but other embeddings still do. RECE finds the best of
them in closed form, erases it with UCE's formula, and repeats. For the projections W_k (o_k, d) of the cross-attention
(every to_k and to_v; W_k^o before any edit), the rows c of a target's prompt and c_a of its anchor's (d; all 77,
paired by position) and the rows p of what is preserved, each of T = `epochs` rounds is

    attack   c* = argmin_x sum_k ||W_k x - W_k^o c||^2 + r ||x||^2 = (r I + sum W_k' W_k)^-1 (sum W_k' W_k^o) c
    erase    W_k <- (lamb W_k + a sum (W_k c_a) c*' + b sum W_k p p') S^-1,  S = lamb I + a sum c* c*' + b sum p p'

with r = `reg`, a = `erase_scale`, b = `preserve_scale`. A short c* (large r) moves other directions less.

**All matrices share one map.** Claim: W_k = W_k^o T with the same T (d, d) for every k, at every time. UCE gives
W_k = W_k^o (I + (Y - X) M), M of text alone. If it holds, then with G = sum W_k^o' W_k^o

    sum W_k' W_k = T' G T,   sum W_k' W_k^o = T' G,   c* = (r I + T' G T)^-1 T' G c

depend on T and not on k, and the erase step gives W_k <- W_k^o (lamb T + a sum T c_a c*' + b sum T p p') S^-1: again
W_k^o times one matrix (with `preserve_target="original"` the last term is b sum p p'). So a round costs a few d x d
products whatever the number of matrices, and each matrix is read twice: into G, and to write W_k^o (T - I). With
C* and A as columns, K = (C*' C^-1 C* + I/a)^-1 C*' C^-1 and C = lamb I + b P P', the step is T <- T (I + (A - C*) K): T - I
is kept as factors, which gain 77 columns for each target and round, until they would be wider than d.

Two consequences. Where T is invertible (it is, but for coincidences), x = T^-1 c undoes the edit exactly: for r -> 0 the
attack always succeeds, and what the rounds change is how long it must be. And RECE goes past the anchor: for one row
with lamb, r -> 0, c* = c + (c - c_a) / s with s = c'c_a / c'c, on the far side of c, and erasing it takes the target's
output to that of c_a + (1 + s) (c_a - c) c'c* / c*'c*. More rounds leave the anchor again.

What differs from the released code: the epoch count is fixed. The authors draw validation pictures at every epoch and
keep the one that a detector (NudeNet, Q16) rates lowest; here nothing is drawn. Sums and factors in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import InfeasibleError, UsageError
from erasekit.methods import Preset, Progress, _cross, check_choice, check_family, check_range
from erasekit.methods._check import require_finite, saturated, summary
from erasekit.methods._pairs import begin_alike
from erasekit.methods._rece_attack import attack_embedding, attack_residual, output_gram
from erasekit.methods._rece_map import SharedMap, attack, erase, residual, way, write
from erasekit.methods._rece_text import UCE_SETTINGS, Rows, gather
from erasekit.methods._retained import held_back
from erasekit.methods.uce import solve_right
from erasekit.methods.uce_text import Retained, gather_retained, second_moment

__all__ = ["RECE", "RECEConfig", "attack_embedding", "attack_residual"]


@dataclass(frozen=True)
class RECEConfig:
    """Parameters of RECE; a wrong value raises `UsageError` naming the choices."""

    epochs: int = 1
    """T: rounds of attack and erasing after UCE; 0 is UCE itself (what the authors keep where it already suffices)."""
    reg: float = 0.1
    """r: penalty on the attack embedding, above 0; smaller attacks harder and moves unrelated concepts more."""
    lamb: float = 0.1
    """lambda of every round: weight of the distance to the weights as they are, above 0 (UCE's stage has its own 0.5)."""
    erase_scale: float = 1.0
    """a: weight of the attack embeddings, above 0."""
    preserve_scale: float = 0.1
    """b of every round: weight of the preserved rows."""
    penalty: str = "zero"
    """zero (r |x|^2, as published), standard (r |x - c_old|^2, c_old the rows of `old`) or surrogate (see `surrogate`)."""
    surrogate: str = "outputs"
    """surrogate: outputs (r sum |W_k x - W_k c|^2), input (r |x - c|^2) or both."""
    old: tuple[str, ...] = ()
    """standard: the old target prompts, one for all targets or one each."""
    preserve_target: str = "current"
    """current (preserved rows keep what the last round gave, as published: errors add up) or original."""
    preserve_empty: str = "once"
    """The empty prompt is preserved once, or once for each target (the authors' scripts for unsafe content)."""

    def __post_init__(self) -> None:
        check_choice("penalty", self.penalty, ("zero", "standard", "surrogate"))
        check_choice("surrogate", self.surrogate, ("outputs", "input", "both"))
        check_choice("preserve_target", self.preserve_target, ("current", "original"))
        check_choice("preserve_empty", self.preserve_empty, ("once", "each"))
        check_range("epochs", self.epochs, high=100)
        for name in ("reg", "lamb", "erase_scale"):
            check_range(name, getattr(self, name), low=1e-12, high=1e12)
        check_range("preserve_scale", self.preserve_scale, high=1e12)
        if (self.penalty == "standard") != bool(self.old):
            raise UsageError("rece: penalty=standard and old, the prompts that the attack stays near, go together")
        if self.surrogate != "outputs" and self.penalty != "surrogate":
            raise UsageError(f"rece: surrogate={self.surrogate} needs penalty=surrogate")


def _preset(doc: str, *, anchor: str = "", **values: object) -> Preset:
    return Preset(f"{doc} (the authors' README)", values, anchor)


class RECE:
    """The cross-attention K and V after UCE and `epochs` rounds of closed-form attack and erasing.

    Text encoder untouched; 32 matrices in SD 1.x and 2.x. The epoch count is fixed: no detector picks among epochs.
    Deterministic: the seed changes nothing.
    """

    name: ClassVar[str] = "rece"
    title: ClassVar[str] = "Reliable and Efficient Concept Erasure"
    paper: ClassVar[str] = "arXiv 2407.12383"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        "nudity": _preset("nudity", epochs=3, reg=1e-1, preserve_empty="each"),
        "unsafe": _preset("other unsafe content, the list of I2P", epochs=2, reg=1e-1, preserve_empty="each"),
        "style": _preset("artists' styles; retain the other artists", epochs=1, reg=1e-3, anchor="art"),
        "hard-object": _preset("objects that come back: church, garbage truck", epochs=1, reg=1e-3),
        "easy-object": _preset("objects such as parachute or golf ball", epochs=1, reg=1e-1),
    }
    Config: ClassVar[type[RECEConfig]] = RECEConfig

    @torch.no_grad()
    def fit(
        self, backbone: Backbone, request: EraseRequest, config: RECEConfig, *, progress: Progress | None = None
    ) -> Edit:
        """An edit of every `cross.kv` site; the model is left bitwise as it was.

        The self-check has two more lists, of the attack on the weights after UCE and after each round:
        `attack_residual`, `sum_k |W_k c* - W_k^o c|^2 / sum_k |W_k^o c|^2`, which should rise, and `attack_length`,
        `|c*| / |c|`. Its `residual` is the distance to the anchor's output, on either side (see the module).
        Raises `UsageError` for a request or family that RECE does not take, `InfeasibleError` where target and
        anchor read the same or the attack has no single answer.
        """
        check_family(RECE, backbone)
        progress = progress or _cross.silent
        pairs, rows = gather(backbone, _groups(request, config), progress=progress)
        if (rows.anchor - rows.target).norm() <= 1e-9 * rows.target.norm():
            raise InfeasibleError("the model reads target and anchor as the same: choose another anchor")
        retained = gather_retained(
            backbone, request.retain, UCE_SETTINGS, progress=progress, cache=request.retain_cache
        )
        first = solve_right(pairs, retained, UCE_SETTINGS)
        start = SharedMap.of(pairs.ys[0] - pairs.x, first)
        metric = _metric(backbone, retained, config, targets=len(request.targets))
        gram = output_gram(backbone.weight(site) for site in backbone.sites("cross.kv"))
        shared, curves = _rounds(gram, start, rows, metric, config, progress)
        ops, records = write(backbone, shared, pairs, retained, progress)
        records = [record | {"used": first.rank, "width": len(pairs.x)} for record in records]
        moment, ridge, scale = retained.scale * retained.moment, UCE_SETTINGS.lamb, UCE_SETTINGS.erase_scale
        held = held_back(backbone, request, moment, ridge=ridge, scale=scale, progress=progress)
        alike = begin_alike(backbone, request)  # the attack pairs all rows position by position
        check = (
            summary(records, [*held, *alike, *saturated(records), *_warnings(curves, way(gram, shared, pairs))])
            | curves
        )
        require_finite(check)
        return _cross.make_edit(
            backbone, request, method="rece", parameters=asdict(config), ops=ops, check=check
        )  # fmt: skip


def _groups(request: EraseRequest, config: RECEConfig) -> list[tuple[str, ...]]:
    """(target, anchor), with the old target prompt behind them where the penalty asks for one."""
    pairs = list(zip(request.targets, request.anchors, strict=True))
    if not config.old:
        return [*pairs]
    old = config.old * len(pairs) if len(config.old) == 1 else config.old
    if len(old) != len(pairs):
        raise UsageError(f"rece: {len(old)} old prompts for {len(pairs)} targets: give one for all, or one for each")
    return [(*pair, prompt) for pair, prompt in zip(pairs, old, strict=True)]


def _metric(backbone: Backbone, retained: Retained, config: RECEConfig, *, targets: int) -> solvers.Prior:
    """C = lamb I + b P P', the same in every round."""
    moment = retained.moment
    if config.preserve_empty == "each" and targets > 1:
        empty = second_moment(backbone, [""], UCE_SETTINGS, progress=_cross.silent)
        moment = moment + (targets - 1) * empty.total
    return solvers.prior(config.preserve_scale * moment, ridge=config.lamb)


def _rounds(
    gram: Tensor, shared: SharedMap, rows: Rows, metric: solvers.Prior, config: RECEConfig, progress: Progress
) -> tuple[SharedMap, dict[str, list[float]]]:
    """The map after the last round, and what the attack reaches before the first and after each."""
    curves: dict[str, list[float]] = {"attack_residual": [], "attack_length": []}
    for epoch in range(config.epochs + 1):
        progress(epoch, config.epochs, "attacking and erasing")
        found = attack(gram, shared, rows, reg=config.reg, near=_near(config))
        curves["attack_residual"].append(residual(gram, shared, rows.target, found))
        curves["attack_length"].append(float(found.norm() / rows.target.norm()))
        if epoch < config.epochs:
            original = config.preserve_target == "original"
            shared = erase(
                shared, found, rows.anchor, metric, scale=config.erase_scale, lamb=config.lamb, original=original
            )
    return shared, curves


def _near(config: RECEConfig) -> str:
    """What the penalty keeps the attack near, in the words of `_rece_map.attack`."""
    return config.surrogate if config.penalty == "surrogate" else {"zero": "zero", "standard": "old"}[config.penalty]


def _warnings(curves: dict[str, list[float]], way: float) -> list[str]:
    """Where RECE's own measure shows no progress, and where the targets are held back."""
    first, last = curves["attack_residual"][0], curves["attack_residual"][-1]
    found = []
    if last < first:
        found.append(f"the attack residual fell from {first:.3g} to {last:.3g}: fewer epochs, or another reg or anchor")
    if way < 0.5:
        found.append(f"the targets go {way:.0%} of the way to their anchors: what is kept outweighs them")
    return found
