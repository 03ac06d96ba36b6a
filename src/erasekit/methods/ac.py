"""AC: ablating concepts in text-to-image diffusion models (arXiv 2303.13516, ICCV 2023).

The model's distribution under the target's caption c* is made its own distribution under a broader anchor's caption c
("grumpy cat" -> "cat", "van gogh" -> "painting"). Both are asked at the same noised anchor image, so the KL divergence
of the two reverse processes is a distance of predictions:

    model    L = E ||M (eps_theta(z_t, c*) - sg eps_theta(z_t, c))||^2 / |M|       (section 3.1; the default)
    noise    L = E ||M (eps_theta(z_t, c*) - eps)||^2 / |M|
    + lambda E ||M (eps - eps_theta(z_t, c))||^2 / |M|                              (the regulariser, optional)

z (b, channels, h, w) clean latents of an anchor image; eps their noise; z_t = alpha_t z + sigma_t eps with t uniform over
all trained timesteps, one for each sample; M (b, 1, h, w) of 0 and 1, what augmentation left valid of the latents (|M|:
its sum, times the channels); sg stops the gradient. The teacher is the *current* student: nothing holds the anchor's own
prediction but the regulariser. With `teacher="frozen"` it is the model as it was. On models that predict v the same holds
with v in place of eps.

Anchor captions are built in for each kind of concept, or a user's; the target takes the anchor's word in them, or is added
to them (style, nudity). The model draws the anchor images itself. The keys and values of the first token keep their value
and pass no gradient on, so that what every prompt shares is not trained.

Variants: `cross.kv` the keys and values of the cross-attention (19,169,280 numbers in SD v1.4), `attention` all projections
of both attentions, `full` the whole U-Net (memorised images), `embedding` the rows of the text encoder's token table that
belong to the target alone.

The learning rate is the effective one. The papers' configurations name a base rate, which the code multiplies by the batch
on a GPU and the number of GPUs: 2e-6 x 4 x 2 = 1.6e-5 for the 100 steps of a style or an object. Here the batch is 8.

What differs from the released code: latents of drawn images come straight from the sampler, which is DDIM, and pass the
autoencoder only for augmentation; samples are drawn with replacement, and only the images that some step needs are made;
the built-in captions are ours; `embedding` moves the target's rows alone; the regulariser reads the same images as the
loss, in the same pass. Choosing paraphrases of a memorised caption with a copy detector is left to the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import UsageError
from erasekit.methods import LocalPath, Preset, Progress, check_choice, check_family, check_range, recorded
from erasekit.methods._ac_batch import Batch, augmenting, draw
from erasekit.methods._ac_run import Run, opened_run
from erasekit.methods._ac_students import VARIANTS, written
from erasekit.methods._anchors import KINDS
from erasekit.methods._cross import silent
from erasekit.methods._templates import listed
from erasekit.training import losses
from erasekit.training.plan import Learned, Plan, estimate
from erasekit.training.result import finish
from erasekit.training.settings import TrainingConfig


@dataclass(frozen=True)
class ACConfig(TrainingConfig):
    """Parameters of AC, defaults of the paper for objects and styles; a wrong value raises `UsageError`."""

    steps: int = 100
    """Optimiser steps."""
    batch: int = 8
    """Samples in one forward pass, each with its own caption and timestep (the paper: 4 on each of 2 GPUs)."""
    rate: float = 1.6e-5
    """Effective learning rate: the paper's base rate 2e-6, times 8 samples."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0: not clipped."""
    decay: float = 0.01
    """Decoupled weight decay (AdamW); 0: Adam."""
    kind: str = "object"
    """What the target is: object (captions with the anchor's word, which it replaces), style, nudity, memorised (the
    target is the memorised caption, the anchor a paraphrase)."""
    variant: str = "cross.kv"
    """What is trained: cross.kv, attention, full, embedding."""
    loss: str = "model"
    """model: the anchor's prediction is asked for; noise: the noise itself."""
    teacher: str = "student"
    """Who predicts for the anchor: student (as it is now, the paper) or frozen (the model as it was)."""
    regulariser: float = 0.0
    """Weight of the denoising loss on the anchor's own captions (the released codes: 0.2 or 1, where it is on)."""
    prompts: LocalPath = ""
    """A text file of anchor captions, one a line, with the anchor's word, "{}" or "{a}" (with its article) in the concept's
    place; empty: built-in."""
    images: int = 1000
    """Images of each anchor; of these the model draws the ones that the steps will need."""
    folder: LocalPath = ""
    """A folder of anchor images instead, each with its caption in a text file of the same name; empty: draw them."""
    guidance: float = 6.0
    """Classifier-free guidance of the images' sampling."""
    sampling_steps: int = 25
    """Steps of the images' sampling."""
    augment: bool | None = None
    """Mirror, shrink and enlarge the images and say so in the target's caption; none: for objects, as in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, tuple(KINDS))
        check_choice("variant", self.variant, tuple(VARIANTS))
        check_choice("loss", self.loss, ("model", "noise"))
        check_choice("teacher", self.teacher, ("student", "frozen"))
        check_range("regulariser", self.regulariser, high=1e6)
        check_range("guidance", self.guidance, high=1e3)
        check_range("images", self.images, low=1, high=1e7)
        check_range("sampling_steps", self.sampling_steps, low=1, high=1e6)
        if self.prompts and self.folder:
            raise UsageError("prompts and folder exclude each other, as images bring their captions: leave one away")

    def last_resort(self) -> str:
        """As `TrainingConfig.last_resort`: the variant that trains the fewest weights of the U-Net."""
        return super().last_resort() if self.variant in ("cross.kv", "embedding") else "set variant=cross.kv"

    @property
    def augments(self) -> bool:
        """Whether images are augmented."""
        return self.kind == "object" if self.augment is None else self.augment


class AC:
    """The target is taught what the model says of a broader anchor, on anchor images. Deterministic for the seed.

    Name the anchor: without one an object goes to whatever the model draws for "a photo of", and a warning says so.
    The edit holds full differences (of the token table's rows, two small factors).
    """

    name: ClassVar[str] = "ac"
    title: ClassVar[str] = "Ablating Concepts"
    paper: ClassVar[str] = "arXiv 2303.13516"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        "object": Preset("objects as in the paper, with the regulariser that its code has for grumpy cat",
                         {"regulariser": 0.2}),
        "style": Preset("styles as in the paper", {"kind": "style"}, anchor="painting"),
        "memorised": Preset("a memorised image, named by its caption; its paraphrases are the anchor, or prompts=FILE: "
                            "base rate 5e-7, 2 samples on each of 2 GPUs",
                            {"kind": "memorised", "variant": "full", "steps": 400, "batch": 4, "rate": 2e-6,
                             "regulariser": 0.2}),
        "nudity": Preset("nudity and what is inappropriate, from the authors' repository: base rate 4e-6, 4 samples, and "
                         "twice that with its regulariser; the number of GPUs is not on record, one is assumed",
                         {"kind": "nudity", "variant": "attention", "steps": 400, "batch": 4, "rate": 3.2e-5,
                          "regulariser": 1.0}, anchor="a person"),
    }  # fmt: skip
    Config: ClassVar[type[ACConfig]] = ACConfig

    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: ACConfig,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> Edit:
        """An edit of the variant's modules; the model is left bitwise as it was.

        `checkpoint`: a file or folder for the run's state, from which a run that was ended goes on; images are kept beside
        it as they are drawn. Raises `UsageError` for captions or images of no use, `TrainingError` where a run must stop.
        """
        check_family(AC, backbone)
        with opened_run(backbone, request, config) as run:
            ready = run.with_images(checkpoint, progress or silent)
            bench = run.bench
            curve = bench.train(lambda step: loss(ready, draw(ready, step)), method=self.name, checkpoint=checkpoint,
                                progress=progress or silent, data=run.data)  # fmt: skip
            ops, records = written(bench)
            residual, moved, drift = run.measure()
            return finish(bench, ops, records, curve, method=self.name, parameters=recorded(config), residual=residual,
                          drift=drift, warnings=run.warnings(moved),
                          numbers={"anchor_drift": moved, "captions": listed(run.captions)})  # fmt: skip

    def plan(self, backbone: Backbone, request: EraseRequest, config: ACConfig) -> Plan:
        """What a run would train and need, the drawing of images included; nothing is written, the model stays."""
        check_family(AC, backbone)
        with opened_run(backbone, request, config) as run:
            count, first = len(run.used), "of the folder" if run.files else "that are drawn first"
            drawing = 0 if run.files else count * config.sampling_steps / config.batch
            prompt, batches, regularised = run.probes[0][0], config.steps * config.accumulate, config.regulariser > 0

            def learn(latents: Tensor, timestep: float) -> Learned:
                turns = 1 + regularised  # the regulariser reads the anchors in the same graph
                text = run.text([prompt] * config.batch * turns)
                return run.bench.denoise(latents.repeat(turns, 1, 1, 1), timestep, text).square().mean(), ()

            asked = config.loss == "model" and (config.teacher == "frozen" or not regularised)
            found = estimate(run.bench, method=self.name, what=f"variant {config.variant} on {count} images {first}",
                             prompt=prompt, sampled=drawing / batches, teachers=int(asked), learn=learn,
                             beside=run.beside)  # fmt: skip
            return replace(found, seconds=found.seconds + batches * augmenting(run))


def loss(run: Run, batch: Batch) -> Tensor:
    """The loss of one batch: the objective of the module's page."""
    config = run.config
    # The regulariser's own prediction for the anchor serves as the teacher's where that is the student as it is.
    shared = bool(config.regulariser) and config.loss == "model" and config.teacher == "student"
    wanted = None if shared else run.wanted(batch)
    with run.bench.student.active():
        prompts = batch.targets + batch.captions * bool(config.regulariser)
        found, *anchor = run.predict(batch, prompts).split(len(batch.captions))
        value = losses.anchor_matching(found, anchor[0] if wanted is None else wanted, batch.mask)
        if anchor:
            value = value + config.regulariser * losses.squared_error(anchor[0], batch.truth, batch.mask)
        return value
