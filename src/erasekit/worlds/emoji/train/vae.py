"""The autoencoder: 64 x 64 pictures to 8 x 8 x 16 latents.

The full-resolution levels are narrow (16 and 32 channels), because nearly all of the time goes there; the width that
drawings need is spent at 8 x 8. The loss adds the difference of neighbouring pixels to the plain one: flat drawings
live on their edges.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..scenes import render, sample_scene
from .loop import Schedule, step_rng, train

CHANNELS = (16, 32, 64, 128)
LATENT_NOISE = 0.1
LATENT_PENALTY = 2e-3


def build() -> AutoencoderKL:
    """The untrained autoencoder; every residual branch starts at zero, so that it begins as a linear map.

    One group in every norm, so that a norm keeps the means of its channels apart from each other.
    """
    n = len(CHANNELS)
    vae = AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        layers_per_block=1,
        norm_num_groups=1,
        latent_channels=16,
        sample_size=64,
    )
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
    return vae


def pictures(rng: np.random.Generator, count: int, *, pair_share: float = 0.3) -> Tensor:
    """Random scenes as (count, 3, 64, 64) in -1..1."""
    batch = np.stack([render(sample_scene(rng, pair_share=pair_share)) for _ in range(count)])
    return torch.from_numpy(batch).permute(0, 3, 1, 2) * 2 - 1


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of horizontal and of vertical neighbours."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def run(work: Path, *, seed: int = 0, steps: int = 1400, batch: int = 8) -> AutoencoderKL:
    """Trains the autoencoder, sets its scaling factor from 512 scenes and saves it in `work/vae`."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        vae = build().to(memory_format=torch.channels_last)
    noise = torch.Generator()

    def loss_of(step: int) -> Tensor:
        x = pictures(step_rng(seed, "vae", step), batch).contiguous(memory_format=torch.channels_last)
        mean = vae.encode(x).latent_dist.mean
        z = mean + LATENT_NOISE * torch.randn(mean.shape, generator=noise.manual_seed(seed * 1_000_003 + step))
        y = vae.decode(z).sample
        pixel = (y - x).abs().mean() + (y - x).square().mean()
        edge = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
        return pixel + edge + LATENT_PENALTY * mean.square().mean()

    train(vae, loss_of, Schedule(steps, 2.5e-3, warmup=20, decay=0.6), work / "vae.pt")
    return _finish(vae, work, seed)


@torch.no_grad()
def _finish(vae: AutoencoderKL, work: Path, seed: int) -> AutoencoderKL:
    latents = vae.encode(pictures(step_rng(seed, "vae-scale", 0), 512)).latent_dist.mean
    # The loss never used the posterior's spread: fix it at what the decoder was trained to bear.
    vae.quant_conv.weight[16:] = 0
    vae.quant_conv.bias[16:] = 2 * math.log(LATENT_NOISE)
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))
    vae.save_pretrained(work / "vae")
    return vae
