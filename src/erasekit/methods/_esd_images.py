"""A memorised image in place of the latents that ESD would draw (arXiv 2303.07345, section 5.4).

The memorised image is known, so nothing is sampled: its latents are noised to the level of any trained timestep,

    z_t = alpha_t z + sigma_t n,   n ~ N(0, I),   t uniform over all trained timesteps,

with z (b, channels, h, w) what the autoencoder makes of the image. The target is the caption that calls it up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erasekit.errors import UsageError
from erasekit.fingerprint import parts_sha256
from erasekit.methods import Progress
from erasekit.training.bench import Bench
from erasekit.training.images import beside, digest, pictures, read_folder
from erasekit.training.latents import noised
from erasekit.training.loop import generator
from erasekit.training.parameters import Student, held


@dataclass(frozen=True, eq=False)
class Memorised:
    """The images' clean `latents` (n, c, h, w) on the CPU, the `rows` of them that are each target's, and a digest of
    the files, their captions and the autoencoder (`data`)."""

    latents: Tensor
    rows: tuple[tuple[int, ...], ...]
    data: str

    def drawn(self, bench: Bench[Student], i: int, noise: Tensor, draw: torch.Generator) -> tuple[Tensor, float]:
        """Latents (b, c, h, w) of target i for this noise, each an image of its own, and the timestep of exactly their
        level."""
        trained = bench.schedule.trained
        timestep = trained[int(torch.randint(len(trained), (), generator=draw))]
        own = torch.randint(len(self.rows[i]), (len(noise),), generator=draw).tolist()
        return self._noised(bench, [self.rows[i][k] for k in own], noise, timestep), timestep

    def probe(self, bench: Bench[Student], i: int) -> tuple[Tensor, float]:
        """Latents (1, c, h, w) of target i half-way through sampling, on noise that training did not see."""
        noise = bench.noise(generator(bench.request.seed, "probe", i), 1)
        timestep = bench.schedule.timesteps[len(bench.schedule.timesteps) // 2]
        return self._noised(bench, self.rows[i][:1], noise, timestep), timestep

    def _noised(self, bench: Bench[Student], rows: Sequence[int], noise: Tensor, timestep: float) -> Tensor:
        return noised(self.latents[list(rows)].to(noise.device), noise, bench.schedule.level(timestep))


def memorised(bench: Bench[Student], folder: str, progress: Progress) -> Memorised | None:
    """The images of a folder, or None where none is named. The autoencoder is bitwise as it was.

    Raises `UsageError` for a folder without images, one that cannot be read, and captions that do not fit the targets.
    """
    if not folder:
        return None
    files = pictures(folder)
    captions = [beside(path) for path in files]
    rows = owners(bench.request.targets, captions, folder)
    vae, (_, height, width) = bench.backbone.autoencoder(), bench.denoise.shape
    with held(vae):
        latents = read_folder(vae, files, (height, width), progress)
    data = hashlib.sha256(f"{captions}{digest(files)}{parts_sha256({'vae': vae})}".encode()).hexdigest()
    return Memorised(latents, rows, data)


def owners(targets: Sequence[str], captions: Sequence[str | None], folder: str) -> tuple[tuple[int, ...], ...]:
    """For each target the numbers of its images: those whose caption it is (case aside), and those without a caption.

    Raises `UsageError` for a caption that is no target, and for a target without an image.
    """
    said = [None if caption is None else caption.casefold() for caption in captions]
    names = [target.casefold() for target in targets]
    for caption, own in zip(captions, said, strict=True):
        if own is not None and own not in names:
            raise UsageError(
                f"the caption {caption!r} in {folder} is no target: name it as one, or delete its text file"
            )
    rows = tuple(tuple(k for k, own in enumerate(said) if own in (None, name)) for name in names)
    for target, found in zip(targets, rows, strict=True):
        if not found:
            raise UsageError(f"{folder} has no image of {target!r}: write it into a text file with an image's name")
    return rows
