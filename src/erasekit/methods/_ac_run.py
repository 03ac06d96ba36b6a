"""One fit of Ablating Concepts: the anchor images with their captions, who is asked at them, and what is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import fingerprint
from erasekit.fingerprint import parts_sha256
from erasekit.layers import unedited
from erasekit.methods import Progress
from erasekit.methods._ac_batch import Batch, Reader, picked
from erasekit.methods._ac_images import latents
from erasekit.methods._ac_students import RowsStudent, student
from erasekit.methods._anchors import Gallery, of_folder, read_captions, require_short, to_draw
from erasekit.training import images as pictures
from erasekit.training.bench import Bench, opened
from erasekit.training.loop import Step, generator
from erasekit.training.parameters import held
from erasekit.training.probes import energy, relative_drift, spread

if TYPE_CHECKING:
    from erasekit.methods.ac import ACConfig


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
    def captions(self) -> list[str]:
        """The anchors' captions that are learned from, each once: of the user's file or folder, or built-in ones."""
        return list(dict.fromkeys(item.caption for own in self.gallery.items for item in own))

    @cached_property
    def data(self) -> str:
        """A digest of all captions, of the files of images, and of the autoencoder where images pass it."""
        return self._digest(self.vae)

    @cached_property
    def images_data(self) -> str:
        """`data` of the images alone: only those that are read from files pass the autoencoder before training."""
        return self._digest(self.vae if self.files else None)

    def _digest(self, vae: Any) -> str:
        captions = repr((self.gallery.drawn, self.gallery.items))
        own = "" if vae is None else parts_sha256({"vae": vae})
        return hashlib.sha256(f"{captions}{pictures.digest(self.files)}{own}".encode()).hexdigest()

    @property
    def beside(self) -> list[Any]:
        """The parts of the model besides the U-Net that the run holds."""
        own = self.bench.student
        parts = [self.vae, own.encoder if isinstance(own, RowsStudent) else None]
        return [part for part in parts if part is not None]

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
        used = self.used
        found = latents(self, used, checkpoint, progress)
        return replace(self, images=found, rows={number: row for row, number in enumerate(used)})

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
    def wanted(self, batch: Batch) -> Tensor:
        """What the student should predict for the targets' captions; to be asked while the student is not active."""
        if self.config.loss == "noise":
            return batch.truth
        if self.config.teacher == "frozen":
            return self.predict(batch, batch.captions)
        with self.bench.student.active():
            return self.predict(batch, batch.captions)

    def measure(self) -> tuple[float, float, float | None]:
        """(residual, anchor drift, retained drift) half-way through sampling, on noise that training did not see.

        How far the student's target is from its anchor, and its anchor from the frozen model's, both relative to how far
        target and anchor were apart; and how far it moved on what is retained, relative to its output.
        """
        left = moved = before = drift = size = 0.0
        for i, (caption, target) in enumerate(self.probes):
            (was, should), (found, anchor) = self._probe(caption, [target, caption], i)
            left, moved = left + energy(found - anchor), moved + energy(anchor - should)
            before += energy(was - should)
        for i in spread(len(self.bench.request.retain)):
            prompt = self.bench.request.retain[i]
            (own,), (found,) = self._probe(prompt, [prompt], i)
            drift, size = drift + energy(found - own), size + energy(own)
        gap = max(before, 1e-30)
        return (left / gap) ** 0.5, (moved / gap) ** 0.5, relative_drift(drift, size)

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
    require_short(backbone, gallery, sized=config.augments)
    probes = tuple((gallery.items[i][0].caption, gallery.items[i][0].targets[0]) for i in spread(len(gallery.items)))
    retained = [request.retain[i] for i in spread(len(request.retain))]
    with ExitStack() as stack:
        if config.variant == "embedding":
            encoder = backbone.text_encoder()
            stack.enter_context(unedited(encoder))
            stack.enter_context(held(encoder))
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


def _gallery(request: EraseRequest, config: ACConfig, files: Sequence[Path]) -> Gallery:
    if files:
        return of_folder(request, config.kind, [pictures.beside(path) for path in files])
    captions = read_captions(config.prompts) if config.prompts else ()
    return to_draw(request, config.kind, captions, config.images)
