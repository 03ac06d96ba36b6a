"""IRECE: Inference-time Robustness Enhancement for Concept Erasure (from M-ErasureBench, arXiv 2512.22877, WACV 2026).

Nothing is trained and no weight changes. While a pipeline samples, the *unedited* model says where in the latents the target
stands, and the latents are disturbed there; whatever edit is on goes on from these. `guidances/irece.py` has the formulas.

**Our own inference throughout.** Read was the abstract alone (no code is known, no table was seen). Confirmed by it:
plug-and-play, no training; localised by the cross-attention of a standard backbone; the latents there are disturbed
during denoising. The form of map, mask, disturbance and gate is ours, and so is every default: the middle of the ranges that
one would sweep (t* 0.2 .. 0.6 of the way, tau 0.3 .. 0.6, rho 0.5 .. 1), not the paper's values.

What a fit does is calibrate the gate. m(x) is the mean over positions of the attention that x pays to the target's tokens
(b,), for latents x (b, c, h, w) at the chosen point of a guided DDIM trajectory:

    opens where   m(x) > mean m(x_neutral) + margin * deviation m(x_neutral)

x_neutral are latents of the empty prompt and of what is retained. The file holds the target's text features, so that at
inference neither the text encoder nor an edit of it has a say.

**Whom it protects**: who serves a model. It needs the unedited weights beside the edited ones, and whoever holds them can
leave it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from erasekit.algebra import summed
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Base, Edit, Guidance, library_versions
from erasekit.errors import InfeasibleError, UsageError
from erasekit.guidances.irece import FEATURES, THRESHOLDS, VARIANTS
from erasekit.methods import LocalPath, Preset, Progress, check_choice, check_family, check_range, recorded
from erasekit.methods._cross import silent
from erasekit.methods._irece_gate import Bench, calibrated, measured, opened, tokens

GATES = ("calibrated", "off")


@dataclass(frozen=True)
class IRECEConfig:
    """Parameters of IRECE, all defaults our own; a wrong value raises `UsageError` naming the choices."""

    at: tuple[float, ...] = (0.4,)
    """t*: the points of the trajectory, 0 (before the first step) to 1, rising, at which latents are disturbed; each costs
    a pass of the denoiser."""
    tau: float = 0.45
    """From what part of the largest heat on a position counts as the target's."""
    rho: float = 0.75
    """How much of the signal goes: it shrinks by sqrt(1 - rho^2), and noise takes its place."""
    variant: str = "shrink"
    """shrink; or replace: inside the mask the clean latents become their mean, with fresh noise (rho has no say)."""
    sides: tuple[int, ...] = (4,)
    """Which layers are read: those whose map has the latents' side over this (4: 16 x 16 at 512 pixels), or the nearest."""
    dilate: int = 1
    """Latent cells by which the mask is widened."""
    gate: str = "calibrated"
    """calibrated: disturb only where more attention goes to the target than on neutral latents; off: in every picture."""
    margin: float = 3.0
    """How far above the neutral mean the gate opens, in standard deviations of the neutral latents."""
    samples: int = 16
    """Neutral latents at each point; and as many of each target and of what is retained to measure on."""
    template: str = "{}"
    """The sentence that the unedited model is given, {} for the target."""
    guidance: float = 7.5
    """Classifier-free guidance of the latents that are calibrated on."""
    sampling_steps: int = 30
    """DDIM steps of a whole trajectory of these."""
    on: LocalPath = ""
    """An edit's file for the same model: what is written then holds both."""

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        check_choice("gate", self.gate, GATES)
        check_range("the number of points in at", len(self.at), low=1, high=1000)
        check_range("the number of sides", len(self.sides), low=1, high=100)
        for share in self.at:
            check_range("at", share, high=1)
        if list(self.at) != sorted(set(self.at)):
            raise UsageError(
                f"at must rise, each point once: {';'.join(f'{share:g}' for share in sorted(set(self.at)))}"
            )
        for side in self.sides:
            check_range("sides", side, low=1, high=1024)
        check_range("tau", self.tau, high=1)
        check_range("rho", self.rho, low=0.001, high=1)
        check_range("dilate", self.dilate, high=64)
        check_range("margin", self.margin, high=1e6)
        check_range("samples", self.samples, low=2, high=1e6)
        check_range("guidance", self.guidance, low=1, high=1e3)
        check_range("sampling_steps", self.sampling_steps, low=1, high=1e6)


class IRECE:
    """Disturbs the latents where the unedited model attends to a target. Deterministic for the request's seed.

    The edit is one `Guidance` op. It is laid on others: on the pipeline beside them, or in one file by `on` or `+`.
    Anchors have no part in it. What is retained is among the neutral latents.
    """

    name: ClassVar[str] = "irece"
    title: ClassVar[str] = "Inference-time Robustness Enhancement for Concept Erasure"
    paper: ClassVar[str] = "arXiv 2512.22877"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {}
    Config: ClassVar[type[IRECEConfig]] = IRECEConfig

    def fit(
        self, backbone: Backbone, request: EraseRequest, config: IRECEConfig, *, progress: Progress | None = None
    ) -> Edit:
        """An edit of one `Guidance` op, the gate calibrated; the model is left bitwise as it was.

        Raises `UsageError` for a family that is not verified and a target that is too long, `InfeasibleError` where the
        gate stays closed on every target's own latents, and as `Edit.load` for `on`.
        """
        check_family(IRECE, backbone)
        below = Edit.load(config.on) if config.on else None
        summed((*(below.ops if below else ()), Guidance(self.name)))  # what cannot be one file says so before the work
        with opened(backbone, request, config) as bench:
            op = guidance(bench, progress or silent)
            check = measured(bench, op)
            if check["residual"] == 1:
                raise InfeasibleError("the gate stays closed on every target's own latents: lower margin (now "
                                      f"{config.margin:g}), or set gate=off")  # fmt: skip
            base = Base(backbone.model_id, backbone.family, bench.prints)
            edit = Edit(
                (op,), base, self.name, parameters=recorded(config), targets=request.targets, anchors=request.anchors,
                retain=request.retain, seed=request.seed, versions=library_versions(), self_check=check,
            )  # fmt: skip
        return edit if below is None else below + edit


def guidance(bench: Bench, progress: Progress) -> Guidance:
    """The op: the targets' features and tokens, what to do, and the thresholds of the gates."""
    config, targets = bench.config, bench.request.targets
    texts = [bench.sentence(target) for target in targets]
    features = torch.cat([bench.texts[text] for text in texts]).float().cpu()
    known = {
        "targets": list(targets), "tokens": [tokens(bench.backbone, *pair) for pair in zip(texts, targets, strict=True)],
        "at": list(config.at), "sides": list(config.sides), "tau": config.tau, "dilate": config.dilate,
        "variant": config.variant, "rho": config.rho, "gate": config.gate, "seed": bench.request.seed,
    }  # fmt: skip
    shut = torch.full((len(targets), len(config.at)), -1.0)  # a mass is never negative: open everywhere
    op = Guidance("irece", {FEATURES: features, THRESHOLDS: shut}, known)
    if config.gate == "off":
        return op
    return Guidance("irece", {FEATURES: features, THRESHOLDS: calibrated(bench, op, progress)}, known)
