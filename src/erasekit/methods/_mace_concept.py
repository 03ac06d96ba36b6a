"""What MACE (arXiv 2403.06135) learns one target's LoRA from: its sentences, and pictures of it with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from erasekit.concept import EraseRequest
from erasekit.errors import DivergenceError
from erasekit.methods._cross import silent
from erasekit.methods._templates import fill
from erasekit.training import images
from erasekit.training.bench import Bench
from erasekit.training.checkpoint import Checkpoint
from erasekit.training.loop import generator, memory_line
from erasekit.training.lora import LoRA
from erasekit.training.segments import Heat, found_or_whole, heat_of, mask_files, positions, read_masks, segmented
from erasekit.training.settings import anew

if TYPE_CHECKING:
    from erasekit.methods.mace import MACEConfig


@dataclass(frozen=True)
class Source:
    """The user's files for one target: its pictures (none: the model draws them), and their masks (none: its maps)."""

    images: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()

    @property
    def digest(self) -> str:
        """What the files hold, as one number; empty for none."""
        return images.digest([*self.images, *self.masks]) if self.images else ""


def sources(config: MACEConfig, request: EraseRequest) -> list[Source]:
    """The files of every target, none of them opened; with several targets a folder holds one folder for each, named
    as it. Raises `UsageError` for a folder without pictures, and for a mask that is not there."""
    if not config.images:
        return [Source()] * len(request.targets)
    several = len(request.targets) > 1
    found = []
    for target in request.targets:
        own = target if several else ""
        pictures = images.pictures(Path(config.images) / own)
        found.append(
            Source(tuple(pictures), tuple(mask_files(Path(config.masks) / own, pictures) if config.masks else ()))
        )
    return found


def picture_line(config: MACEConfig) -> AbstractContextManager[None]:
    """Inside, where pictures are drawn or looked at and nothing is trained, a full GPU is one line that names what helps."""
    lower = f"lower at_once (now {config.at_once})" if config.at_once > 1 else anew(config.last_resort())
    return memory_line(lower)


@dataclass(frozen=True)
class Pictures:
    """Clean latents (n, c, h, w) float32, where the concept is in each (n, h, w), and in which it was found nowhere."""

    latents: Float[Tensor, "n c h w"]
    masks: Bool[Tensor, "n h w"]
    missed: Bool[Tensor, " n"]

    @classmethod
    def of(cls, latents: Float[Tensor, "n c h w"], masks: Bool[Tensor, "n h w"]) -> Pictures:
        """With the whole picture in place of a mask that is empty."""
        masks = masks.to(latents.device)
        return cls(latents, found_or_whole(masks), ~masks.flatten(1).any(1))

    @property
    def counts(self) -> dict[str, int]:
        """How many there are, how many have the whole picture as their mask, and how many because nothing was found."""
        whole = int(self.masks.flatten(1).all(1).sum())
        return {"pictures": len(self.masks), "whole": whole, "missed": int(self.missed.sum())}


PARTS = ("latents", "masks", "missed")


class Concept:
    """One target. `features` (m, length, width) float32, on the CPU, of its m sentences; `text` the same as the denoiser
    reads it; `tokens` the positions S of each sentence whose attention is suppressed."""

    def __init__(self, bench: Bench[LoRA], config: MACEConfig, target: str, source: Source) -> None:
        self.bench, self.config, self.target, self.source = bench, config, target, source
        backbone = bench.backbone
        self.prompt = fill(config.picture, target)
        sentences = [fill(template, target) for template in config.sentences]
        encoded = backbone.encode([*sentences, self.prompt])
        self.features = encoded[:-1].float().cpu()
        self.lasts = [end - 1 for end in backbone.tokenize(sentences).ends]
        self.text, self._read = encoded.to(bench.denoise.device, bench.denoise.dtype).split([len(sentences), 1])
        self.tokens = [positions(backbone, s, target, ending=config.use_pooler) for s in sentences]
        self.known: Pictures | None = None

    @property
    def seed(self) -> int:
        """What its steps draw from: the request's seed and its name."""
        return generator(self.bench.request.seed, "mace", self.target).initial_seed()

    def pictures(self) -> Pictures:
        """Its pictures, made when they are first asked for. Raises `DivergenceError` where they are not finite,
        `TrainingError` where the GPU is full."""
        if self.known is None:
            with picture_line(self.config):
                found = self._from_files() if self.source.images else self._drawn()
            if not bool(found.latents.isfinite().all()):
                raise DivergenceError(f"the pictures of {self.target!r} are not finite: load the model in float32")
            self.known = found
        return self.known

    def _drawn(self) -> Pictures:
        """Whole sampling runs of the frozen model; both guidance branches of several pictures in one pass."""
        bench, parts = self.bench, []
        for start in range(0, self.config.count, self.config.at_once):
            noise = self._noise("picture", range(start, min(start + self.config.at_once, self.config.count)))
            heat = self._heat(len(noise))
            predict = heat if self.config.mask == "attention" else bench.denoise
            latents = images.denoised(predict, noise, self._read, bench.text(""), schedule=bench.schedule,
                                      guidance=self.config.guidance)  # fmt: skip
            parts.append((latents, heat.total))
        return self._masked(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _from_files(self) -> Pictures:
        vae, size = self.bench.backbone.autoencoder(), (self.bench.denoise.shape[1], self.bench.denoise.shape[2])
        files, device = self.source.images, self.bench.denoise.device
        latents = images.read_folder(vae, files, size, silent).to(device)
        if self.source.masks:
            masks = read_masks(self.source.masks, files, size, images.scale_of(vae))
            return Pictures.of(latents, masks)
        heats = [self._looked_at(part, start) for start, part in self._batches(latents)]
        return self._masked(latents, torch.cat(heats))

    def _looked_at(self, latents: Tensor, start: int) -> Tensor:
        heat = self._heat(len(latents))
        if self.config.mask == "whole":
            return heat.total
        noise = self._noise("look", range(start, start + len(latents)))
        return heat_of(heat, latents, noise, self._read, self.bench.schedule)

    def _batches(self, latents: Tensor) -> list[tuple[int, Tensor]]:
        return [(start, latents[start : start + self.config.at_once])
                for start in range(0, len(latents), self.config.at_once)]  # fmt: skip

    def _heat(self, count: int) -> Heat:
        return Heat(self.bench.denoise, positions(self.bench.backbone, self.prompt, self.target), count)

    def _noise(self, use: str, numbers: Sequence[int]) -> Tensor:
        draws = [generator(self.seed, use, number) for number in numbers]
        return torch.cat([self.bench.noise(draw, 1) for draw in draws])

    def _masked(self, latents: Tensor, heat: Tensor) -> Pictures:
        if self.config.mask == "whole":
            return Pictures.of(latents, torch.ones_like(heat, dtype=torch.bool))
        return Pictures.of(latents, segmented(heat, threshold=self.config.threshold))


@dataclass(frozen=True)
class ConceptCheckpoint(Checkpoint):
    """The state of one LoRA, with the pictures that it learns from: they are not made again."""

    concept: Concept = field(kw_only=True)

    @classmethod
    def of(cls, plain: Checkpoint, number: int, concept: Concept) -> ConceptCheckpoint:
        """That of the concept of this number: the first at the plain one's place, the others beside it."""
        path = plain.path if number == 0 else plain.path.with_name(f"{plain.path.stem}.{number + 1}{plain.path.suffix}")
        return cls(path, plain.about, plain.free, concept=concept)

    def save(self, tensors: Mapping[str, Tensor], losses: Sequence[float]) -> None:
        """As `Checkpoint.save`."""
        pictures = self.concept.pictures()
        own = {f"pictures.{name}": getattr(pictures, name) for name in PARTS}
        super().save({**tensors, **own}, losses)

    def load(self) -> tuple[dict[str, Tensor], list[float]] | None:
        """As `Checkpoint.load`; the concept has its pictures then."""
        found = super().load()
        if found:
            device = self.concept.bench.denoise.device
            self.concept.known = Pictures(*(found[0].pop(f"pictures.{name}").to(device) for name in PARTS))
        return found
