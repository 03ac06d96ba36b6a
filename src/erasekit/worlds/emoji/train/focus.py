"""Which drawings the denoiser confuses between styles, and how often each shall be shown in the next stretch.

Scenes are drawn at random, so of the 660 drawings (an object in a style) some are named in seven training captions and
some in thirty; those named least are drawn in a wrong style three times as often. `run` measures, for every drawing,
how much better the denoiser does with its own caption than with the nearest wrong style's, and keeps a weight for
each; the denoiser's stage then draws its rows so that every drawing is shown by its weight, not by chance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from ..concepts import BACKGROUNDS, STYLES, names
from ..scenes import USUAL_SIZE, Scene
from .card import plain_asks
from .denoiser import BETAS, build, encode_scenes, encode_text

log = logging.getLogger(__name__)
LEVELS = (950, 850)  # where style is decided
USUAL_MARGIN, LEAST, MOST = 0.6, 0.6, 4.0


@torch.no_grad()
def margins(denoise: Callable[[Tensor, int, Tensor], Tensor], clean: Tensor, texts: Tensor, seed: int) -> Tensor:
    """How much larger the error with the best wrong style's caption is than with the right one, relative: (objects, styles).

    clean (objects, styles, c, h, w) latents, texts (objects, styles, n, d) captions, the same noise for all captions of
    a drawing; mean over `LEVELS`. Below zero another style's caption explains the drawing better.
    """
    alphas, generator = DDPMScheduler(**BETAS).alphas_cumprod, torch.Generator().manual_seed(seed)
    objects, styles = clean.shape[:2]
    total = torch.zeros(objects, styles)
    for level in LEVELS:
        signal, spread = alphas[level].sqrt(), (1 - alphas[level]).sqrt()
        noise = torch.randn(clean.shape, generator=generator)
        noisy, velocity = signal * clean + spread * noise, signal * noise - spread * clean
        for i in range(objects):
            said = denoise(noisy[i].repeat_interleave(styles, 0), level, texts[i].repeat(styles, 1, 1))
            error = (said.unflatten(0, (styles, styles)) - velocity[i][:, None]).square().mean((2, 3, 4))
            right = error.diagonal()
            wrong = error.masked_fill(torch.eye(styles, dtype=torch.bool), torch.inf).amin(1)
            total[i] += (wrong - right) / right
    return total / len(LEVELS)


def boost(margin: Tensor) -> Tensor:
    """A drawing's weight: 1 at the usual margin, up to `MOST` where styles are confused, not below `LEAST`."""
    return (USUAL_MARGIN / margin.clamp(min=1e-3)).pow(0.7).clamp(LEAST, MOST)


def run(work: Path, *, seed: int = 0, steps: int = 0) -> None:
    """Measures the moving average in `work/denoiser.pt` and writes `work/focus.pt`, which the denoiser's stage reads."""
    del steps
    unet = _average(work).eval().to(memory_format=torch.channels_last)
    asks = plain_asks()
    scenes = [Scene(a.objects, a.style or 0, i % len(BACKGROUNDS), ((32, 32, USUAL_SIZE),)) for i, a in enumerate(asks)]
    grid = (len(names()), len(STYLES))
    clean, texts = encode_scenes(work, scenes), encode_text(work, [a.prompt for a in asks]).float()

    def denoise(noisy: Tensor, level: int, context: Tensor) -> Tensor:
        return unet(noisy.contiguous(memory_format=torch.channels_last), level, context).sample

    margin = margins(denoise, clean.unflatten(0, grid), texts.unflatten(0, grid), seed)
    log.info("%.1f %% of the drawings confused, median margin %.2f", 100 * (margin < 0).float().mean(), margin.median())
    torch.save(boost(margin), work / "focus.pt")


def _average(work: Path) -> UNet2DConditionModel:
    unet = build()
    unet.load_state_dict(torch.load(work / "denoiser.pt", weights_only=True)["average"])
    return unet
