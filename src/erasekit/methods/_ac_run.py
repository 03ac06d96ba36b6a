"""One fit of Ablating Concepts: the anchor images with their captions, the batches drawn from them, and what is measured."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import fingerprint
from erasekit.methods import Progress
from erasekit.methods._ac_students import RowsStudent, student
from erasekit.methods._anchors import CLOSE, FAR, Gallery, Item, of_folder, read_captions, to_draw
from erasekit.training import images as pictures
from erasekit.training.bench import Bench, opened
from erasekit.training.latents import noised
from erasekit.training.loop import Step, generator
from erasekit.training.parameters import held

if TYPE_CHECKING:
    from erasekit.methods.ac import ACConfig

PROBES = 8  # at most so many targets, and so many of what is retained, are measured after training
SMALL = 0.6  # below this size the target's caption says that it is far away


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass reads: `latents` (b, c, h, w) noised to their `timesteps` (b,), what the model should say of
    them by its training (`truth`: eps or v), the two captions of each sample, and the valid latents (b, 1, h, w)."""

    latents: Float[Tensor, "b c h w"]
    timesteps: Tensor
    truth: Float[Tensor, "b c h w"]
    captions: list[str]
    targets: list[str]
    mask: Float[Tensor, "b 1 h w"] | None = None


class Reader:
    """The frozen model's text features. Each prompt is encoded by itself: what it gives depends on nothing else."""

    def __init__(self, bench: Bench[Any]) -> None:
        def one(prompt: str) -> Tensor:
            return bench.backbone.encode([prompt]).to(bench.denoise.device, bench.denoise.dtype)

        self._one = lru_cache(maxsize=512)(one)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(n, length, width)."""
        return torch.cat([self._one(prompt) for prompt in prompts])


@dataclass(frozen=True, eq=False)
class Run:
    """The tools of one fit. `probes`: (anchor caption, target caption) of the targets that are measured."""

    bench: Bench[Any]
    config: ACConfig
    gallery: Gallery
    files: tuple[Path, ...]
    probes: tuple[tuple[str, str], ...]
    read: Reader
    vae: Any = None
    images: Tensor | None = None
    rows: Mapping[int, int] = field(default_factory=dict)
    """An image's number -> its row in `images`."""

    @property
    def data(self) -> str:
        """A digest of all captions, and of the files of images."""
        captions = repr((self.gallery.drawn, self.gallery.items))
        return hashlib.sha256(f"{captions}{pictures.digest(self.files)}".encode()).hexdigest()

    @property
    def used(self) -> list[int]:
        """The numbers of the images that some step learns from, sorted: the others are not drawn."""
        if self.files:
            return list(range(len(self.files)))
        config, seed = self.config, self.bench.request.seed
        steps = (Step(seed, index, part) for index in range(config.steps) for part in range(config.accumulate))
        return sorted({item.image for step in steps for item, _ in picked(self, step.generator("items"))})

    def with_images(self, checkpoint: Path | None, progress: Progress) -> Run:
        """The run with its images' latents: drawn or read once, and kept beside the checkpoint."""
        names = ("steps", "batch", "accumulate", "guidance", "sampling_steps", "precision")
        about = {name: getattr(self.config, name) for name in names}
        about |= {"data": self.data, "seed": self.bench.request.seed, "base": self.bench.about("ac")["base"]}
        used = self.used
        latents = pictures.kept(lambda: self._images(used, progress), checkpoint, about)
        return replace(self, images=latents, rows={number: row for row, number in enumerate(used)})

    def text(self, prompts: Sequence[str]) -> Tensor:
        """What the cross-attention reads: the student's while it is active, else the frozen model's."""
        own = self.bench.student
        if not isinstance(own, RowsStudent):
            return self.read(prompts)
        return own.encode(prompts).to(self.bench.denoise.device)

    def predict(self, batch: Batch, prompts: Sequence[str]) -> Tensor:
        """The predictions for the batch's latents under these prompts; several for each sample are one pass."""
        turns = len(prompts) // len(batch.latents)
        return self.bench.denoise(
            batch.latents.repeat(turns, 1, 1, 1), batch.timesteps.repeat(turns), self.text(prompts)
        )

    @torch.no_grad()
    def wanted(self, batch: Batch, anchor: Tensor | None = None) -> Tensor:
        """What the student should predict for the targets' captions; `anchor`: its prediction for the anchors', if it
        is at hand."""
        if self.config.loss == "noise":
            return batch.truth
        if self.config.teacher == "frozen":
            return self.predict(batch, batch.captions)
        if anchor is not None:
            return anchor
        with self.bench.student.active():
            return self.predict(batch, batch.captions)

    def measure(self) -> tuple[float, float, float]:
        """(residual, anchor drift, retained drift) half-way through sampling, on noise that training did not see.

        How far the student's target is from its anchor, and its anchor from the frozen model's, both relative to how far
        target and anchor were apart; and how far it moved on what is retained, relative to its output.
        """
        left = moved = before = drift = size = 0.0
        for i, (caption, target) in enumerate(self.probes):
            (was, should), (found, anchor) = self._probe(caption, [target, caption], i)
            left, moved = left + _energy(found - anchor), moved + _energy(anchor - should)
            before += _energy(was - should)
        for i in spread(len(self.bench.request.retain)):
            prompt = self.bench.request.retain[i]
            (own,), (found,) = self._probe(prompt, [prompt], i)
            drift, size = drift + _energy(found - own), size + _energy(own)
        gap = max(before, 1e-30)
        return (left / gap) ** 0.5, (moved / gap) ** 0.5, (drift / max(size, 1e-30)) ** 0.5

    def warnings(self, moved: float) -> list[str]:
        """What the self-check should say; `moved`: the anchor's drift."""
        request, found = self.bench.request, []
        if self.config.kind == "object" and "" in request.anchors:
            found.append("no anchor was named: what the model draws for captions without the concept stands in; name the "
                         "broader concept (cat for grumpy cat)")  # fmt: skip
        if self.gallery.dropped:
            found.append(f"captions without the anchor's word, not used: {self.gallery.dropped}")
        if request.retain:
            found.append("ac does not hold on to what is retained: its drift is measured, nothing keeps it small")
        if moved > 1:
            found.append(f"the anchor itself moved {moved:.2g} times as far as it lay from the target: set regulariser or "
                         "teacher=frozen, or lower the rate")  # fmt: skip
        return found

    def augmenting(self) -> float:
        """The seconds that augmenting a batch takes."""
        if not self.config.augments:
            return 0.0
        clean, seconds = torch.zeros(self.config.batch, *self.bench.denoise.shape), 0.0
        for _ in range(2):  # the first is slower on any machine
            began = time.perf_counter()
            _augmented(self, clean, [""] * len(clean), generator("timed"))[0].cpu()
            seconds = time.perf_counter() - began
        return seconds

    def _images(self, used: Sequence[int], progress: Progress) -> Tensor:
        if self.files:
            _, height, width = self.bench.denoise.shape
            return pictures.read_folder(self.vae, self.files, (height, width), progress)
        wanted = {number: self.gallery.drawn[number] for number in used}
        return pictures.drawn(self.bench, self.read, wanted, guidance=self.config.guidance, progress=progress)

    @torch.no_grad()
    def _probe(self, sampled: str, prompts: Sequence[str], i: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The predictions for the prompts by the frozen model, and by the student, at latents sampled for one."""
        noise = self.bench.noise(generator(self.bench.request.seed, "probe", i), 1)
        latents, timestep = self.bench.latents(noise, sampled, self.config.sampling_steps // 2,
                                               guidance=self.config.guidance)  # fmt: skip
        turns = latents.repeat(len(prompts), 1, 1, 1)
        frozen = self.bench.denoise(turns, timestep, self.text(prompts))
        with self.bench.student.active():
            return frozen.split(1), self.bench.denoise(turns, timestep, self.text(prompts)).split(1)


@contextmanager
def opened_run(backbone: Backbone, request: EraseRequest, config: ACConfig) -> Iterator[Run]:
    """The run without its images; every part of the model is bitwise as it was afterwards."""
    files = tuple(pictures.pictures(config.folder)) if config.folder else ()
    gallery = _gallery(request, config, files)
    _check_lengths(backbone, gallery)
    probes = tuple((gallery.items[i][0].caption, gallery.items[i][0].targets[0]) for i in spread(len(gallery.items)))
    retained = [request.retain[i] for i in spread(len(request.retain))]
    with ExitStack() as stack:
        if config.variant == "embedding":
            stack.enter_context(held(backbone.text_encoder()))
        bench = stack.enter_context(opened(
            backbone, request, config, student=student(backbone, request, config.variant, config.precision),
            prompts=[*(prompt for probe in probes for prompt in probe), *retained], sampling_steps=config.sampling_steps,
        ))  # fmt: skip
        if isinstance(bench.student, RowsStudent):
            bench.prints[bench.student.site] = fingerprint(bench.student.weight)
        vae = backbone.autoencoder() if config.augments or files else None
        if vae is not None:
            stack.enter_context(held(vae))
        yield Run(bench, config, gallery, files, probes, Reader(bench), vae)


def draw(run: Run, step: Step) -> Batch:
    """A batch: for each sample a target, one of its images with its captions, and a timestep; from the step alone."""
    chance, size, schedule = step.generator("items"), run.config.batch, run.bench.schedule
    found = picked(run, chance)
    captions, targets = [item.caption for item, _ in found], [target for _, target in found]
    assert run.images is not None
    clean, mask = run.images[[run.rows[item.image] for item, _ in found]].to(run.bench.denoise.device), None
    if run.config.augments:
        clean, mask, targets = _augmented(run, clean, targets, step.generator("augmentation"))
    timesteps = torch.randint(len(schedule.alphas), (size,), generator=chance).tolist()
    noise = run.bench.noise(step.generator("noise"))
    levels = [schedule.level(t) for t in timesteps]
    pairs = [(z[None], eps[None], level) for z, eps, level in zip(clean, noise, levels, strict=True)]
    latents = torch.cat([noised(z, eps, level) for z, eps, level in pairs])
    velocity = schedule.prediction == "v_prediction"  # v = alpha eps - sigma z
    truth = torch.cat([noised(eps, z, (a, -s)) for z, eps, (a, s) in pairs]) if velocity else noise
    return Batch(latents, torch.tensor(timesteps, device=latents.device), truth, captions, targets, mask)


def picked(run: Run, chance: torch.Generator) -> list[tuple[Item, str]]:
    """For each sample of a batch one of a target's images, and one of the target's captions for it."""
    items = [_one(_one(run.gallery.items, chance), chance) for _ in range(run.config.batch)]
    return [(item, _one(item.targets, chance)) for item in items]


def spread(count: int) -> range:
    """At most `PROBES` indices, evenly spread."""
    return range(0, count, max(1, -(-count // PROBES)))


def _augmented(
    run: Run, clean: Tensor, targets: Sequence[str], chance: torch.Generator
) -> tuple[Tensor, Tensor, list[str]]:
    """The latents of augmented images, their masks, and the targets' captions that say how large they are now."""
    factor = pictures.scale_of(run.vae)
    found = [pictures.augmented(image, factor, chance) for image in pictures.decoded(run.vae, clean)]
    latents = pictures.encoded(run.vae, torch.stack([one.image for one in found])).to(clean.device)
    masks = torch.stack([one.mask for one in found]).to(clean.device)
    said = [_sized(target, one.scale, chance) for target, one in zip(targets, found, strict=True)]
    return latents, masks, said


def _sized(caption: str, scale: float, chance: torch.Generator) -> str:
    """The caption, saying where the image became much smaller or larger."""
    if SMALL <= scale <= 1:
        return caption
    return _one(FAR if scale < SMALL else CLOSE, chance).replace("{}", caption)


def _gallery(request: EraseRequest, config: ACConfig, files: Sequence[Path]) -> Gallery:
    if files:
        return of_folder(request, config.kind, [pictures.beside(path) for path in files])
    captions = read_captions(config.prompts) if config.prompts else ()
    return to_draw(request, config.kind, captions, config.images)


def _check_lengths(backbone: Backbone, gallery: Gallery) -> None:
    """`UsageError`, before any long work, for the longest captions if they do not fit the text encoder."""
    for items in gallery.items:
        longest = max((caption for item in items for caption in item.targets), key=len)
        backbone.tokenize([FAR[0].replace("{}", longest), max((item.caption for item in items), key=len)])


def _one(choices: Sequence[Any], chance: torch.Generator) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=chance))]


def _energy(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
