"""Where in a picture a phrase is: from the denoiser's own cross-attention maps, or from masks that a user gives.

The maps stand in for a segmenter: how much each latent reads the phrase's tokens, averaged over heads, layers (resized
to the latents, as in arXiv 2210.04885) and sampling steps, then stretched to 0..1 and cut at a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.errors import UsageError
from erasekit.training.bench import Denoiser
from erasekit.training.latents import Schedule, noised
from erasekit.training.maps import grid, maps, resized


def positions(backbone: Backbone, prompt: str, phrase: str, *, ending: bool = False) -> list[int]:
    """Where the phrase's tokens stand in the prompt (all of the prompt's where it cannot be found); with `ending` also
    the end of text and all padding."""
    tokens = backbone.tokenize([prompt])
    end, length = tokens.ends[0], tokens.ids.shape[1]
    inside = sorted({row for span in backbone.concept_spans(prompt, phrase) for row in span}) or list(range(1, end))
    return inside + list(range(end, length)) * ending


class Heat:
    """A denoiser, called as it is, that adds up in `total` (n, h, w) how much each latent reads some tokens.

    Of a batch that holds both guidance branches only the last n, the conditional ones, are watched.
    """

    def __init__(self, denoise: Denoiser, tokens: Sequence[int], count: int) -> None:
        self.denoise, self.tokens, self.count = denoise, list(tokens), count
        self.total = torch.zeros(count, *denoise.shape[1:], device=denoise.device)

    @torch.no_grad()
    def __call__(self, latents: Tensor, timestep: float, text: Tensor) -> Tensor:
        """The denoiser's prediction."""
        with maps(self.denoise.unet) as found:
            prediction = self.denoise(latents, timestep, text)
        read = [probability[-self.count :, :, :, self.tokens].mean((1, 3)) for probability in found.values()]
        self.total += sum(self._grown(flat) for flat in read) / len(read)
        return prediction

    def _grown(self, flat: Float[Tensor, "n positions"]) -> Float[Tensor, "n h w"]:
        size = (self.total.shape[1], self.total.shape[2])
        small = flat.unflatten(1, grid(flat.shape[1], size))[:, None]
        return torch.nn.functional.interpolate(small, size, mode="bilinear")[:, 0]


@torch.no_grad()
def heat_of(
    heat: Heat, clean: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], text: Tensor, schedule: Schedule
) -> Float[Tensor, "n h w"]:
    """How much given pictures read the tokens: the latents are noised to each level of the sampler and looked at."""
    for timestep in schedule.timesteps:
        heat(noised(clean, noise, schedule.level(timestep)), timestep, text.expand(len(clean), -1, -1))
    return heat.total


def segmented(heat: Float[Tensor, "n h w"], *, threshold: float) -> Bool[Tensor, "n h w"]:
    """What is above `threshold` of the way from the coldest to the hottest latent of each map."""
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    return heat - low > threshold * (high - low)


def found_or_whole(masks: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """The masks, and the whole picture where one is empty: nothing was found (arXiv 2403.06135, its procedure)."""
    return masks | ~masks.flatten(1).any(1)[:, None, None]


def mask_files(folder: str | Path, images: Sequence[Path]) -> list[Path]:
    """The masks of the images: the PNGs of the same names; `UsageError` naming one that is not there."""
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UsageError(
            f"the masks folder {folder} is no folder: give one of black and white PNGs named as the images"
        )
    found = [place / f"{image.stem}.png" for image in images]
    if missing := [path for path in found if not path.is_file()]:
        raise UsageError(f"the mask {missing[0]} is missing: give a PNG of the same name for each image")
    return found


def read_masks(
    masks: Sequence[Path], images: Sequence[Path], size: tuple[int, int], factor: int
) -> Bool[Tensor, "n h w"]:
    """White is the concept: at the latents' `size`, cut as the images are (`factor` pixels a side of a latent).

    Raises `UsageError` naming a mask that cannot be read, or has another size than its image.
    """
    fitted = [
        _fitted(mask, image, (size[0] * factor, size[1] * factor)) for mask, image in zip(masks, images, strict=True)
    ]
    return resized(torch.stack(fitted), size)


def _fitted(path: Path, image: Path, size: tuple[int, int]) -> Bool[Tensor, "H W"]:
    import numpy
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as found, Image.open(image) as whole:
            # Upright, as `images.pixels` reads pictures.
            mask, own = ImageOps.exif_transpose(found).convert("L"), ImageOps.exif_transpose(whole).size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"the mask {path} cannot be read: it is damaged or no image; replace it") from error
    if mask.size != own:
        raise UsageError(f"the mask {path} has {mask.size} pixels and its image {own}: give masks of the images' size")
    fitted = ImageOps.fit(mask, (size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(numpy.array(fitted)) > 127
