"""Clean images to learn from, as latents: drawn by the frozen model, or read from a folder; and their augmentation.

Each drawn image has its own noise, from the seed and its number, and both guidance branches of a batch are one forward
pass. `kept` keeps the latents beside a checkpoint, so that a resumed run learns from the very same numbers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.errors import UsageError
from erasekit.methods import Progress
from erasekit.training.bench import Bench
from erasekit.training.kept import Keep, nowhere
from erasekit.training.latents import Predict, Schedule, guided, partly_denoised, parts
from erasekit.training.loop import generator, memory_line
from erasekit.training.settings import ELSEWHERE

Read = Callable[[Sequence[str]], Tensor]
"""Prompts -> what the cross-attention reads for them (n, length, width)."""
DRAWING = "drawing anchor images"
"""What progress calls it, up to a colon."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@torch.no_grad()
def denoised(
    predict: Predict, noise: Tensor, text: Tensor, negative: Tensor, *, schedule: Schedule, guidance: float | int
) -> Tensor:
    """The clean latents (b, c, h, w) after all DDIM steps from `noise`: what the last prediction says they are.

    `text`, `negative`: (1 or b, length, width).
    """
    last = len(schedule.timesteps) - 1
    latents = partly_denoised(predict, noise, text, negative, schedule=schedule, k=last, guidance=guidance)
    now = schedule.timesteps[last]
    prediction = guided(predict, latents, now, text, negative, guidance=guidance)
    return parts(latents, prediction, schedule.level(now), schedule.prediction)[0]


def drawn(
    bench: Bench[Any], read: Read, wanted: Mapping[int, tuple[str, str]], *, guidance: float, progress: Progress,
    known: Tensor | None = None, keep: Keep = nowhere,
) -> Float[Tensor, "n c h w"]:  # fmt: skip
    """One image for each number -> (caption, negative prompt), drawn a batch at a time by the frozen model; on the CPU.

    An image's noise depends on the seed and its number alone. `known`: the first of them, whole batches that `keep` was
    given before; with them the others are bit for bit what they would have been.
    """
    found, size, numbers = [] if known is None else [known], bench.config.batch, list(wanted)
    first, began = sum(map(len, found)), time.perf_counter()
    for start in range(first, len(wanted), size):
        part = numbers[start : start + size]
        captions, negatives = zip(*(wanted[number] for number in part), strict=True)
        noise = torch.cat([bench.noise(generator(bench.request.seed, "image", number), 1) for number in part])
        found.append(denoised(bench.denoise, noise, read(captions), read(negatives), schedule=bench.schedule,
                              guidance=guidance).cpu())  # fmt: skip
        done = start + len(part)
        if done < len(wanted):
            keep(found)
        left = (time.perf_counter() - began) / (done - first) * (len(wanted) - done)
        progress(done, len(wanted), f"{DRAWING}: {left:.0f} s left")
    return torch.cat(found)


# -- a folder of images -------------------------------------------------------------------------------------------


def pictures(folder: str | Path) -> list[Path]:
    """The image files of a folder by name; `UsageError` where it has none, or is none."""
    place = Path(folder).expanduser()
    try:
        found = sorted(path for path in place.iterdir() if path.suffix.lower() in ENDINGS)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"the images folder {folder} cannot be read ({reason}): give a folder of images") from error
    if not found:
        raise UsageError(f"the images folder {folder} holds no image ({', '.join(ENDINGS)}): give one that does")
    return found


def beside(picture: Path) -> str | None:
    """The caption in the text file of the same name, or None where there is none."""
    path = picture.with_suffix(".txt")
    try:
        return " ".join(path.read_text(encoding="utf-8").split()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise UsageError(f"the caption {path} cannot be read: write it as UTF-8 text, or delete it") from error


def digest(paths: Sequence[Path]) -> str:
    """The sha256 of what the files hold, in their order."""
    found = hashlib.sha256()
    for path in paths:
        found.update(hashlib.sha256(_bytes(path)).digest())
    return found.hexdigest()


def pixels(picture: Path, size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """The picture, upright, in [-1, 1], cropped from its centre and resized; `UsageError` naming one that cannot be read."""
    from io import BytesIO

    import numpy
    from PIL import Image, ImageOps

    try:
        # Upright, as pictures are shown: cameras write how they were held.
        image = ImageOps.exif_transpose(Image.open(BytesIO(_bytes(picture)))).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"the image {picture} cannot be read: it is damaged or no image; replace or delete it"
        ) from error
    fitted = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(numpy.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def read_folder(vae: Any, found: Sequence[Path], size: tuple[int, int], progress: Progress) -> Tensor:
    """The pictures as latents (n, c, h, w) of height and width `size`, on the CPU. Raises `TrainingError` where one of them
    fills the GPU."""
    factor, latents = scale_of(vae), []
    for i, path in enumerate(found):
        picture = pixels(path, (size[0] * factor, size[1] * factor))
        with memory_line(ELSEWHERE):
            latents.append(encoded(vae, picture[None]).cpu())
        progress(i + 1, len(found), "reading images")
    return torch.cat(latents)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the image {path} cannot be read ({error.strerror}): replace or delete it") from error


# -- between pixels and latents -----------------------------------------------------------------------------------


def scale_of(vae: Any) -> int:
    """Pixels a side of one latent."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


@torch.no_grad()
def encoded(vae: Any, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
    """The latents of images in [-1, 1]: the mean of the autoencoder's posterior, scaled as the denoiser reads it."""
    mean = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode()
    return mean.float() * vae.config.scaling_factor


@torch.no_grad()
def decoded(vae: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
    """The images in [-1, 1] that latents stand for."""
    scaled = (latents / vae.config.scaling_factor).to(vae.device, vae.dtype)
    return vae.decode(scaled).sample.float().clamp(-1, 1)


class Augmented(NamedTuple):
    """An image (3, H, W), its valid latents (1, h, w) of 0 and 1, and how large it is against the one before."""

    image: Tensor
    mask: Tensor
    scale: float


def augmented(image: Float[Tensor, "3 H W"], factor: int, draw: torch.Generator) -> Augmented:
    """The image perhaps mirrored and, two times of three, shrunk to [1/3, 1] of its size somewhere on grey, else the
    inside of it enlarged by [1.2, 1.4]. Source: arXiv 2303.13516, its implementation details.

    `factor` pixels are a side of a latent. Of what was shrunk the mask leaves one latent out at each edge, which sees
    the grey.
    """
    mirror, shrink, much, *where = torch.rand(5, generator=draw).tolist()
    image = image.flip(-1) if mirror < 0.5 else image
    scale = 1 / 3 + much * 2 / 3 if shrink < 2 / 3 else 1.2 + 0.2 * much
    return (_shrunk if shrink < 2 / 3 else _enlarged)(image, factor, scale, (where[0], where[1]))


def _shrunk(image: Tensor, factor: int, scale: float, where: tuple[float, float]) -> Augmented:
    height, width = image.shape[1:]
    h, w = round(height * scale), round(width * scale)
    top, left = round(where[0] * (height - h)), round(where[1] * (width - w))
    canvas = torch.zeros_like(image)  # grey
    canvas[:, top : top + h, left : left + w] = _resized(image, h, w)
    mask = torch.zeros(1, height // factor, width // factor, device=image.device)
    mask[:, top // factor + 1 : (top + h) // factor - 1, left // factor + 1 : (left + w) // factor - 1] = 1
    return Augmented(canvas, mask, scale)


def _enlarged(image: Tensor, factor: int, scale: float, where: tuple[float, float]) -> Augmented:
    height, width = image.shape[1:]
    h, w = round(height * scale), round(width * scale)
    top, left = round(where[0] * (h - height)), round(where[1] * (w - width))
    inside = _resized(image, h, w)[:, top : top + height, left : left + width]
    return Augmented(inside, torch.ones(1, height // factor, width // factor, device=image.device), scale)


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    found = torch.nn.functional.interpolate(image[None], (height, width), mode="bilinear", antialias=True)
    return found[0].clamp(-1, 1)
