"""The denoiser: a U-Net on 8 x 8 x 16 latents, conditioned on the frozen text encoder.

Noise prediction on Stable Diffusion's schedule, min-SNR-5 weighting (arXiv 2303.09556), 10 % of the captions dropped
for classifier-free guidance, a moving average of the weights. Latents and text features are computed once.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..captions import caption
from ..scenes import Scene, render, sample_scene
from .loop import Schedule, step_rng, train

log = logging.getLogger(__name__)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DROPOUT = 0.1
SNR_CAP = 5.0


def build() -> UNet2DConditionModel:
    """The untrained U-Net, cross-attention at both resolutions."""
    return UNet2DConditionModel(
        sample_size=8, in_channels=16, out_channels=16, block_out_channels=(128, 256), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=192, attention_head_dim=4,
    )  # fmt: skip


@torch.no_grad()
def encode_text(work: Path, texts: list[str]) -> Tensor:
    """Text features (n, 77, 192) in float16."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(work / "text_encoder").eval()
    parts = []
    for start in range(0, len(texts), 256):
        ids = tokenizer(texts[start : start + 256], padding="max_length", max_length=77, return_tensors="pt").input_ids
        parts.append(encoder(input_ids=ids).last_hidden_state.half())
    return torch.cat(parts)


@torch.no_grad()
def encode_scenes(work: Path, scenes: list[Scene]) -> Tensor:
    """Scaled latents (n, 16, 8, 8)."""
    vae = AutoencoderKL.from_pretrained(work / "vae").eval().to(memory_format=torch.channels_last)
    parts = []
    for start in range(0, len(scenes), 128):
        pictures = torch.from_numpy(np.stack([render(s) for s in scenes[start : start + 128]]))
        parts.append(vae.encode(pictures.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(parts)


def pairs(seed: int, count: int) -> tuple[list[Scene], list[str]]:
    """The training scenes with one caption each."""
    rng = step_rng(seed, "denoiser-data", 0)
    scenes = [sample_scene(rng, pair_share=0.25) for _ in range(count)]
    return scenes, [caption(s, rng) for s in scenes]


def latents(work: Path, seed: int, count: int) -> Tensor:
    """The scenes' latents; kept in `work/latents.pt`."""
    path = work / "latents.pt"
    if not path.exists():
        torch.save(encode_scenes(work, pairs(seed, count)[0]), path)
    return torch.load(path, weights_only=True)


def contexts(work: Path, seed: int, count: int) -> Tensor:
    """The captions' text features, the empty prompt's last; kept in `work/contexts.pt`."""
    path = work / "contexts.pt"
    if not path.exists():
        torch.save(encode_text(work, [*pairs(seed, count)[1], ""]), path)
    return torch.load(path, weights_only=True)


def run(
    work: Path, *, seed: int = 0, steps: int = 1600, batch: int = 48, count: int = 20_000, onward: bool = False
) -> None:
    """Trains the U-Net (`onward`: the one in `work/unet`) and saves its moving average in `work/unet`."""
    clean, texts = latents(work, seed, count), contexts(work, seed, count)
    log.info("%d scenes", len(clean))
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        unet = UNet2DConditionModel.from_pretrained(work / "unet") if onward else build()
    unet = unet.train().to(memory_format=torch.channels_last)
    alphas = DDPMScheduler(**BETAS).alphas_cumprod
    snr = alphas / (1 - alphas)
    weight = snr.clamp(max=SNR_CAP) / snr

    def loss_of(step: int) -> Tensor:
        rng = step_rng(seed, "denoiser", step)
        rows = torch.from_numpy(rng.integers(count, size=batch))
        t = torch.from_numpy(rng.integers(1000, size=batch))
        noise = torch.from_numpy(rng.standard_normal((batch, 16, 8, 8), dtype=np.float32))
        kept = torch.from_numpy(rng.random(batch) >= DROPOUT)[:, None, None]
        context = torch.where(kept, texts[rows], texts[-1:]).float()
        a = alphas[t][:, None, None, None]
        noisy = (a.sqrt() * clean[rows] + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        error = (unet(noisy, t, context).sample - noise).square().mean((1, 2, 3))
        return (weight[t] * error).mean()

    schedule = Schedule(steps, 2e-3, warmup=60, decay=0.5)
    train(unet, loss_of, schedule, work / "denoiser.pt", ema=0.995).save_pretrained(work / "unet")
