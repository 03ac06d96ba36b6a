"""MACE: mass concept erasure in diffusion models (arXiv 2403.06135, CVPR 2024); the whole system.

A concept leaks through the other words of a prompt, through its own phrase, and where many edits interfere. Three stages
close the three doors, on the cross-attention's keys and values W (o, d) alone:

1. Refinement, in closed form (`mace_refine`): W' lets the words around a phrase say what they say around its anchor.
2. For each concept i a fresh LoRA B_i D_i (B (o, r), D (r, d), rank 1) on W', which suppresses the attention to the
   phrase inside the concept's mask:

       L = sum over cross-attentions l of || A_l[M_l, S] ||_F^2

   A_l (heads, positions, tokens) attention probabilities at timestep t for a picture of the concept and a sentence with
   it; M_l the mask at the layer's resolution; S the phrase's tokens, and with `use_pooler` the end of text and all
   padding. t is drawn around 300, where the concept's shape is decided: xi(t) ~ sigma(g (t - t1)) - sigma(g (t - t2))
   with t1 = 200, t2 = 400, g = 0.05, sigma the logistic function.
3. Fusion, in closed form (`_mace_fusion.fuse`): one W* that acts on the rows e_ij of each concept's sentences as W' with
   that concept's LoRA does:

       min_W*  sum_i sum_j ||W* e_ij - (W' + B_i D_i) e_ij||^2 + l2 sum_p ||W* e_p - W e_p||^2 + lamb ||W* - W'||^2

A_l does not depend on the values of layer l: their LoRA learns through the layers behind it alone, the last one's never.
A_i = sum_j e_ij e_ij' enters fusion as D_i A_i and as one sum, so memory for a concept is that of its factors. With R the
refinement's right factor, M = sum A_i + l2 P + lamb I: W* - W = W [R - R l2 P M^-1] + sum_i B_i (D_i A_i M^-1), written as
these factors where they are smaller than W.

Pictures: 8 a concept, drawn by the original model with guidance 7.5 in 30 DDIM steps, or the user's. Masks: the paper's
segmenter is not here; in its place stand the model's own cross-attention maps (`training.segments`), or the user's masks.

What differs from the released code (`variant="released"`: the norm without its square):
pictures are normalised to [-1, 1] for the autoencoder; styles have no mask, as its data set in fact gives none; every
sample of a batch counts; the priors, as `mace_refine` says. The start of D is not in the paper: normal, with standard
deviation 1 / rank, B zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import UsageError
from erasekit.methods import LocalPath, Preset, Progress, check_choice, check_family, check_range, recorded
from erasekit.methods._check import largest_drift
from erasekit.methods._cross import silent
from erasekit.methods._mace_concept import Concept, sources
from erasekit.methods._mace_edit import measure, some, warnings
from erasekit.methods._mace_fusion import Fusion
from erasekit.methods._mace_loss import timesteps, trained
from erasekit.methods._mace_plan import planned
from erasekit.methods._templates import fill, has_place, listed, prompt_pairs
from erasekit.methods.mace_refine import MACERefine, MACERefineConfig, Refinement, refine
from erasekit.training.bench import Bench, opened, ready
from erasekit.training.loop import memory_line
from erasekit.training.lora import LoRA, lora
from erasekit.training.plan import Plan
from erasekit.training.result import finish
from erasekit.training.settings import ELSEWHERE, TrainingConfig

OWN: dict[str, dict[str, object]] = {
    "object": {"rate": 1e-5},
    "style": {"picture": "a photo in the style of {}", "mask": "whole"},
    "explicit": {"rate": 1e-5, "steps": 120, "focus": False},
}
"""What the presets set beside the refinement's."""


@dataclass(frozen=True)
class MACEConfig(TrainingConfig, MACERefineConfig):
    """Parameters of MACE, defaults of the paper; a wrong value raises `UsageError` naming the choices."""

    steps: int = 50
    """Optimiser steps of each concept's LoRA."""
    rate: float = 1e-4
    """Learning rate."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0: not clipped."""
    decay: float = 0.01
    """Decoupled weight decay (AdamW); 0: Adam."""
    save_every: int = 10
    """Steps between checkpoints, where one is asked for; changes nothing in the result."""
    variant: str = "paper"
    """paper (squared norms) or released (norms)."""
    rank: int = 1
    """Rank of each LoRA."""
    focus: bool = True
    """Draw timesteps around the middle of t1 and t2; false: all alike."""
    t1: float = 200.0
    """Where the drawn timesteps begin."""
    t2: float = 400.0
    """Where they end."""
    slope: float = 0.05
    """g: how sharply they begin and end."""
    use_pooler: bool = True
    """Suppress the attention to the end of text and the padding too, as the released configurations do."""
    picture: str = "a photo of the {}"
    """The prompt of the pictures; {} is the target, {a} the target with its article."""
    count: int = 8
    """Pictures drawn for each concept."""
    at_once: int = 8
    """How many of them are drawn together: less needs less memory."""
    guidance: float = 7.5
    """Classifier-free guidance of the pictures."""
    sampling_steps: int = 30
    """Sampling steps of the pictures."""
    mask: str = "attention"
    """Where attention is suppressed: attention (where the model attends to the concept) or whole (everywhere)."""
    threshold: float = 0.3
    """What counts as the concept: this far from the coldest to the hottest place of the attention map."""
    images: LocalPath | None = None
    """A folder of your own pictures instead of drawn ones; with several targets one folder for each in it."""
    masks: LocalPath | None = None
    """A folder of black and white PNGs, white the concept, of your pictures' names; none: from the attention."""

    FREE: ClassVar[frozenset[str]] = TrainingConfig.FREE | {"at_once"}

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        MACERefineConfig.__post_init__(self)
        check_choice("variant", self.variant, ("paper", "released"))
        check_choice("mask", self.mask, ("attention", "whole"))
        for name, high in (("rank", 1024), ("count", 1e6), ("at_once", 1e6), ("sampling_steps", 1e6)):
            check_range(name, getattr(self, name), low=1, high=high)
        check_range("guidance", self.guidance, high=1e3)
        check_range("threshold", self.threshold, high=0.999)
        check_range("slope", self.slope, low=1e-6, high=1e3)
        check_range("t1", self.t1, high=1e6)
        check_range("t2", self.t2, low=self.t1 + 1e-3, high=1e6)
        if not has_place(self.picture):
            raise UsageError(f"picture must have {{}} or {{a}} where the target stands, not {self.picture!r}")
        if self.masks and not self.images:
            raise UsageError("masks belong to pictures: give their folder as images")
        if self.masks and self.mask == "whole":
            raise UsageError("mask=whole takes no masks: leave out masks, or set mask=attention")


class MACE:
    """The targets are attended to less, as each LoRA learned it. Deterministic for the request's seed.

    What is retained is held by the closed forms' prior. The edit is a change of the cross-attention's keys and values.
    """

    name: ClassVar[str] = "mace"
    title: ClassVar[str] = "MACE: refinement, one LoRA a concept, fusion"
    paper: ClassVar[str] = "arXiv 2403.06135"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        name: replace(preset, values={**preset.values, **OWN.get(name, {})})
        for name, preset in MACERefine.presets.items()
    }
    Config: ClassVar[type[MACEConfig]] = MACEConfig

    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: MACEConfig,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> Edit:
        """An edit of every `cross.kv` site; the model is left bitwise as it was.

        `checkpoint`: a file or folder for the state of the first target's LoRA; those of the others are beside it. A run
        that was ended goes on with the LoRA that it was at. Raises `UsageError` for a family or a file that cannot be
        taken, `TrainingError` where training cannot go on, `InfeasibleError` for an edit that would change nothing.
        """
        check_family(MACE, backbone)
        progress = progress or silent
        ready(backbone)  # before the closed form's minutes
        files = sources(config, request)
        with memory_line(ELSEWHERE):  # of prompts alone
            found = _refined(backbone, request, config, progress)
        fusion = Fusion(found)
        with _bench(backbone, request, config, found) as bench:
            curve: list[float] = []
            notes: list[dict[str, Any]] = []
            for number, (target, source) in enumerate(zip(request.targets, files, strict=True)):
                concept = Concept(bench, config, target, source)
                losses = trained(bench, config, concept, number, found, checkpoint, progress)
                fusion.add(bench.student.factors(), concept.features, concept.lasts)
                curve += losses
                notes.append({"target": target, "loss": [losses[0], losses[-1]]} | concept.pictures().counts)
            ops, records, weights = fusion.solved(backbone, config, progress)
            return finish(bench, ops, records, curve, method=self.name, parameters=recorded(config),
                          residual=measure(bench, config, ops), drift=largest_drift(records),
                          warnings=warnings(backbone, request, config, notes), students=len(request.targets),
                          numbers={"prior": found.kept.record, "fusion": weights, "concepts": notes,
                                   "sentences": listed(config.sentences)})  # fmt: skip

    def plan(self, backbone: Backbone, request: EraseRequest, config: MACEConfig) -> Plan:
        """What a run would train and need, pictures and encoding included, the solves of the closed forms not; nothing is
        written, the model is left as it was."""
        check_family(MACE, backbone)
        source = sources(config, request)[0]
        with _bench(backbone, request, config, None) as bench:
            return planned(bench, config, source)


@torch.no_grad()
def _refined(backbone: Backbone, request: EraseRequest, config: MACEConfig, progress: Progress) -> Refinement:
    """The first stage."""
    pairs = prompt_pairs(request, config.sentences)
    return refine(backbone, pairs, config, retain=request.retain, cache=request.retain_cache, progress=progress)


@contextmanager
def _bench(
    backbone: Backbone, request: EraseRequest, config: MACEConfig, found: Refinement | None
) -> Iterator[Bench[LoRA]]:
    """The bench, its student on the refined weights. Raises `UsageError` where no timestep would be drawn."""
    base = (
        {site.module: found.change(backbone.weight(site)).float() for site in backbone.sites("cross.kv")}
        if found
        else {}
    )
    prompts = [fill(config.picture, target) for target in some(request)]
    with opened(backbone, request, config, student=lora("cross.kv", rank=config.rank, base=base), prompts=prompts,
                sampling_steps=config.sampling_steps) as bench:  # fmt: skip
        timesteps(config, bench.schedule.trained)
        yield bench
