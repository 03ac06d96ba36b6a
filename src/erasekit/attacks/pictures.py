"""Pictures of the target, which many attacks start from: made by the unedited model, or the user's; and their latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.attacks.base import Case, Spent
from erasekit.errors import UsageError
from erasekit.training import images

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.attacks.sight import Seen
    from erasekit.attacks.victim import Victim


def made(victim: Victim, prompts: Sequence[str], count: int, *, seed: int, tries: int = 4) -> list[Image]:
    """The pictures of `made_and_spent`, where their cost is nobody's."""
    return made_and_spent(victim, prompts, count, seed=seed, tries=tries)[0]


def made_and_spent(
    victim: Victim, prompts: Sequence[str], count: int, *, seed: int, tries: int = 4
) -> tuple[list[Image], Spent]:
    """`count` pictures by the unedited model, of the prompts in turn, in each of which the judge finds the target; and
    what all that were drawn for them cost.

    Draws at most `tries` times as many as asked. Raises `UsageError` where fewer show the target: an attack with
    pictures of something else would prove nothing.
    """
    found, spent = picked(victim, prompts, count, lambda seen: seen.hit, seed=seed, tries=tries)
    if len(found) < count:
        raise UsageError(f"the unedited model shows {victim.sight.target!r} in only {len(found)} of {tries * count} "
                         "pictures: name prompts that it draws, or give images=FOLDER")  # fmt: skip
    return found, spent


def picked(
    victim: Victim, prompts: Sequence[str], count: int, wanted: Callable[[Seen], bool], *, seed: int, tries: int
) -> tuple[list[Image], Spent]:
    """The first `count` pictures by the unedited model, of the prompts in turn, that are `wanted`, fewer where `tries`
    times as many have no more; and what all that were drawn for them cost."""
    found: list[Image] = []
    spent = Spent()
    with victim.original():
        for turn in range(tries):
            cases = [Case(prompts[i % len(prompts)], seed + turn * count + i) for i in range(count)]
            drawn = victim.draw(cases)
            found += [image for image, seen in zip(drawn, victim.look(cases, drawn), strict=True) if wanted(seen)]
            spent += victim.cost(count)
            if len(found) >= count:
                break
    return found[:count], spent


def files(folder: str) -> list[Path]:
    """The user's pictures; `UsageError` for a folder without any, which offers those that the unedited model makes."""
    try:
        return images.pictures(folder)
    except UsageError as error:
        raise UsageError(f"{error}, or leave images out: the unedited model then makes the pictures") from error


def of_folder(folder: str, victim: Victim) -> Float[Tensor, "n c h w"]:
    """The latents of the user's pictures at the model's own size; `UsageError` for a folder that has none."""
    side = victim.pipe.unet.config.sample_size
    size = (side, side) if isinstance(side, int) else (side[0], side[1])
    return images.read_folder(victim.pipe.vae, files(folder), size, lambda done, total, what: None)


def latents(victim: Victim, pictures: Sequence[Image]) -> Float[Tensor, "n c h w"]:
    """The pictures as clean, scaled latents (the autoencoder's mean), on the model's device."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
    scaled = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = scaled.split(victim.sampling.batch)
    return torch.cat([images.encoded(victim.pipe.vae, part) for part in parts])


def shown(victim: Victim, clean: Float[Tensor, "n c h w"]) -> list[Image]:
    """The pictures that clean latents stand for."""
    parts = clean.split(victim.sampling.batch)
    pixels = torch.cat([images.decoded(victim.pipe.vae, part) for part in parts]).cpu() / 2 + 0.5
    finite = torch.isfinite(pixels).flatten(1).all(1)[:, None, None, None]
    pixels = torch.where(finite, pixels, torch.zeros_like(pixels))  # black: no judge takes it for a picture
    return victim.pipe.image_processor.numpy_to_pil(pixels.permute(0, 2, 3, 1).numpy())
