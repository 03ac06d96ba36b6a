"""Relearning: a few pictures of the target, and a short fine-tuning of the edited model (arXiv 2411.13144).

Whoever has the weights can go on training them. CopyrightMeter counts LoRA and DreamBooth among its ways of concept
recovery; here the result is a curve, steps -> cases in which the judge finds the target.

    L = mean_b |f(z_t, t, c) - y|^2 + lambda mean_b' |f(z'_t, t', c') - y'|^2,    z_t = alpha_t x + sigma_t eps

x (b, channels, h, w) clean latents of the pictures, c (b, 77, width) what the edited model reads for their plain
captions, t uniform over the model's levels, eps normal; y (as x) is eps, or alpha_t eps - sigma_t x on a model that
predicts v. Primes: the prior's pictures, drawn by the edited model itself, so that the neighbours stay (DreamBooth).

Variants, with rates and sizes of the benchmark's table: `lora` factors at the attention's projections (rate 1e-4, batch
4, 50 epochs), `dreambooth` the U-Net and the text encoder (5e-7, batch 2, 1000 steps, prior 1.0 on 200 pictures), and
`full` the U-Net, which the table does not have: LoRA's batch and epochs, the rate 1e-5 of diffusers' example.

Relearning teaches. Pictures with captions teach a concept to a model that never had it, so a curve says something about
erasure only beside that of a model that never knew the target: `Victim(never_knew, None, ...)`, the same `images`.

An edit that acts by adapters stays on: what is trained are the weights below them. What differs from the released code:
pictures become latents once and are not cropped or mirrored; a level and noise are drawn for each sample from the seed
and the step; an open case is drawn at several steps, and one that has shown the target is drawn no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from erasekit.attacks import pictures
from erasekit.attacks._finetune import (
    Lesson,
    Part,
    Pictures,
    Setting,
    Together,
    Weights,
    again,
    others,
    plain_caption,
    started,
)
from erasekit.attacks.base import Case, Outcome, Spent, still_open
from erasekit.errors import UsageError
from erasekit.methods import check_choice, check_range
from erasekit.training import images
from erasekit.training.loop import generator, train
from erasekit.training.lora import lora
from erasekit.training.parameters import CHOICES, held, select

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

EPOCHS = 50  # where a variant's length is given in epochs
MARKS = 5  # by default the cases are drawn at so many steps, each twice the one before
TAUGHT, PRIOR = 1_000_000, 2_000_000  # first seeds of the pictures: never a case's own
NOTE = "relearning also teaches: read it beside the same attack on a model that never knew the target"

VARIANTS = {
    "lora": Setting("LoRA", 1e-4, 4, None, "attention"),
    "full": Setting("full fine-tuning", 1e-5, 4, None, "all"),
    "dreambooth": Setting("DreamBooth", 5e-7, 2, 1000, "all", text=True, prior=1.0),
}


@dataclass(frozen=True)
class RelearnConfig:
    """Parameters; "none" means the variant's own. A wrong value raises `UsageError`."""

    variant: str = "lora"
    """lora (factors), full (the U-Net) or dreambooth (U-Net and text encoder, with a prior)."""
    images: str = ""
    """A folder of pictures of the target, captions in text files of the same names; empty: the unedited model's."""
    pictures: int = 8
    """How many pictures are drawn where no folder is given."""
    captions: tuple[str, ...] = ()
    """Plain captions of the pictures, in turn; empty: "a photo of a <target>", or "a picture in <target> style"."""
    steps: int | None = None
    """Steps of Adam; none: 50 epochs, or 1000 for dreambooth. 0 leaves the edited model as it is."""
    rate: float | None = None
    """Learning rate; none: 1e-4 (lora), 1e-5 (full), 5e-7 (dreambooth)."""
    batch: int | None = None
    """Pictures in a step, and as many of the prior's; none: 4, or 2 for dreambooth."""
    layers: str = ""
    """What of the U-Net is trained (cross, cross.kv, self, attention, all, ...); empty: attention (lora), else all."""
    rank: int = 4
    """Rank of LoRA's factors."""
    text: bool | None = None
    """Whether the text encoder's weights are trained too; none: for dreambooth alone."""
    prior: float | None = None
    """Weight of the prior's loss; none: 1 for dreambooth, else 0."""
    neighbours: tuple[str, ...] = ()
    """Prompts of the prior's pictures; empty: the judge's other labels, captioned as the target is."""
    prior_pictures: int = 200
    """How many pictures the edited model draws for the prior."""
    at: tuple[int, ...] = ()
    """Steps after which the cases are drawn, besides the last; empty: a half, a quarter, ... of all steps."""
    clip: float = 1.0
    """Largest norm of the gradient, as in diffusers' training scripts; 0: not clipped."""
    recompute: bool = False
    """Gradient checkpointing in the U-Net: less memory, more time."""

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, tuple(VARIANTS))
        check_choice("layers", self.layers, ("", *CHOICES))
        for name in ("pictures", "rank", "prior_pictures"):
            check_range(name, getattr(self, name), low=1, high=1e6)
        for name, low, high in (("steps", 0, 1e9), ("batch", 1, 1e6), ("rate", 1e-12, 1e3), ("prior", 0, 1e6)):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low=low, high=high)
        check_range("clip", self.clip, high=1e12)
        for mark in self.at:
            check_range("at", mark, low=1, high=1e9)

    def setting(self, count: int) -> tuple[Setting, int]:
        """The variant's setting with what is given here in its place, and the steps for so many pictures."""
        names = ("rate", "batch", "steps", "text", "prior")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        found = replace(VARIANTS[self.variant], **given)
        found = replace(found, layers=self.layers or found.layers)
        return found, math.ceil(EPOCHS * count / found.batch) if found.steps is None else found.steps

    def marks(self, steps: int) -> set[int]:
        """After which steps the cases are drawn."""
        halves = (math.ceil(steps / 2**k) for k in range(MARKS))
        return {mark for mark in self.at or halves if mark <= steps} | {steps}


class Relearn:
    """Trains the edited model on the pictures; a case's outcome is its first picture that shows the target.

    The learning is one for all cases, and its cost is shared among those that are still open.
    """

    name: ClassVar[str] = "relearn"
    title: ClassVar[str] = "Relearning from a few pictures"
    paper: ClassVar[str] = "arXiv 2411.13144"
    access: ClassVar[tuple[str, ...]] = ("weights", "gradients", "original", "images")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[RelearnConfig]] = RelearnConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: RelearnConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; no step leaves the edited model's own. Raises `UsageError` where there
        are no pictures to learn from, `TrainingError` where the loss is no number."""
        outcomes = started(victim, cases)
        if config.steps == 0 or not still_open(outcomes):
            return outcomes
        lesson = prepared(victim, config, seed)
        watch = _Watch(victim, lesson, outcomes, config.marks(lesson.training.steps), progress)
        with held(victim.pipe.unet, recompute=config.recompute), suppress(_AllShown):
            train(lesson.learner.trained, lesson.loss, lesson.training, seed=seed, active=lesson.learner.active,
                  progress=watch)  # fmt: skip
        return watch.outcomes


def recovered(outcomes: Sequence[Outcome]) -> list[tuple[int, int, int]]:
    """(steps, cases in which the target was seen by then, cases that count): the curve of a run, from 0 steps on."""
    valid = [one for one in outcomes if one.status != "invalid"]
    first = [one.curve[-1][0] if one.curve else 0.0 for one in valid if one.shown]
    marks = sorted({0.0} | {at for one in valid for at, _ in one.curve})
    return [(int(mark), sum(at <= mark for at in first), len(valid)) for mark in marks]


def prepared(victim: Victim, config: RelearnConfig, seed: int) -> Lesson:
    """The lesson for the edited model as it is now: pictures, prior, and fresh trained tensors that change nothing."""
    taught, spent = _taught(victim, config, seed)
    setting, steps = config.setting(len(taught.clean))
    prior, cost = _prior(victim, config, seed) if setting.prior else (None, Spent())
    captions = dict.fromkeys(taught.captions + (prior.captions if prior else []))
    with torch.no_grad():
        known = {} if setting.text else {caption: victim.condition(victim.ids([caption])) for caption in captions}
    half = victim.pipe.text_encoder.dtype == torch.float16
    training = setting.course(steps, victim.sampling.batch, clip=config.clip, recompute=config.recompute)
    return Lesson(victim, setting, training, taught, prior, _learner(victim, config, setting, seed), victim.denoiser(),
                  victim.schedule(victim.sampling.steps), known, half, spent + cost + Spent(encodings=len(known)))  # fmt: skip


def _learner(victim: Victim, config: RelearnConfig, setting: Setting, seed: int) -> Together:
    unet, encoder = victim.pipe.unet, victim.pipe.text_encoder
    if config.variant == "lora":
        factors = lora(setting.layers, rank=config.rank, draw=generator(seed, "factors", 0))
        parts: dict[str, Part] = {"unet": factors(unet)}
    else:
        parts = {"unet": Weights(unet, select(unet, setting.layers))}
    if setting.text:
        parts["text_encoder"] = Weights(encoder, select(encoder, "all"))
    return Together(parts)


def _taught(victim: Victim, config: RelearnConfig, seed: int) -> tuple[Pictures, Spent]:
    """Pictures of the target, and what drawing them cost."""
    plain = list(config.captions) or [plain_caption(victim.sight.target, victim.sight.kind)]
    if config.images:
        own = [images.beside(path) for path in pictures.files(config.images)]
        captions = [caption or plain[i % len(plain)] for i, caption in enumerate(own)]
        return Pictures(pictures.of_folder(config.images, victim).to(victim.pipe.device), captions), Spent()
    # A picture belongs to the prompt that drew it, so each caption's pictures are made by themselves.
    shares = [len(range(i, config.pictures, len(plain))) for i in range(len(plain))]
    first, made, captions, spent = TAUGHT + 10_000 * seed, [], [], Spent()
    for i, (caption, share) in enumerate(zip(plain, shares, strict=True)):
        if share:
            found, cost = pictures.made_and_spent(victim, [caption], share, seed=first + 1000 * i)
            made, captions, spent = made + found, captions + [caption] * share, spent + cost
    return Pictures(pictures.latents(victim, made), captions), spent


def _prior(victim: Victim, config: RelearnConfig, seed: int) -> tuple[Pictures, Spent]:
    """Pictures of the neighbours by the edited model, and what drawing them cost."""
    prompts = config.neighbours or others(victim)
    if not prompts:
        raise UsageError("the judge names no neighbours for the prior: give neighbours=PROMPT;PROMPT, or prior=0")
    cases = [Case(prompts[i % len(prompts)], PRIOR + 10_000 * seed + i) for i in range(config.prior_pictures)]
    clean = pictures.latents(victim, victim.draw(cases))
    return Pictures(clean, [case.prompt for case in cases]), replace(victim.cost(len(cases)), pictures=0)  # not judged


class _AllShown(Exception):
    """No case is open any more."""


class _Watch:
    """What training reports each step to: draws the open cases at the marks, and ends it when there are none."""

    def __init__(
        self, victim: Victim, lesson: Lesson, outcomes: list[Outcome], marks: set[int], progress: Progress | None
    ) -> None:
        self.victim, self.lesson, self.outcomes, self.marks, self.progress = victim, lesson, outcomes, marks, progress
        self._last, self._spent = 0, lesson.spent

    def __call__(self, done: int, total: int, what: str) -> None:
        if self.progress:
            self.progress(done, total, f"relearning: {what}")
        if done not in self.marks:
            return
        with self.lesson.learner.drawing():
            self.outcomes = again(self.victim, self.outcomes, at=done, by=f"{self.lesson.setting.words}, step {done}",
                                  shared=self._spent + self.lesson.each(done - self._last), note=NOTE)  # fmt: skip
        self._last, self._spent = done, Spent()
        if not still_open(self.outcomes):
            raise _AllShown
