"""Whole pipelines to train on: the embedded model, or Stable Diffusion's shapes with random weights; no download."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from shapes import SHAPES, text_config, write_tokenizer

MODELS = ("emoji", "sd14", "sd14-small")
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
SMALL_VAE = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}
SMALL_UNET = {"sample_size": 16}


def pipeline(name: str, device: str = "cpu") -> Any:
    """The pipeline in float32 on the device; the random ones have the same weights on every call."""
    import torch

    if name == "emoji":
        from erasekit import models

        return models.load("emoji", device=device, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return random(name).to(device)


def random(name: str) -> Any:
    """Random weights everywhere: zeros, as an edit's benchmark writes them, would give predictions of zero."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    shape, small = SHAPES[name], name.endswith("-small")
    vae, unet = (SMALL_VAE, SMALL_UNET) if small else (VAE, {})
    blocks = len(vae["block_out_channels"])
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), shape.pad)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    parts = {
        "vae": AutoencoderKL(latent_channels=4, down_block_types=("DownEncoderBlock2D",) * blocks,
                             up_block_types=("UpDecoderBlock2D",) * blocks, **vae),
        "text_encoder": CLIPTextModel(text_config(shape)),
        "unet": UNet2DConditionModel(**shape.unet, **unet),
    }  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                              clip_sample=False, prediction_type=shape.prediction)  # fmt: skip
    pipe = StableDiffusionPipeline(**{key: part.eval() for key, part in parts.items()}, tokenizer=tokenizer,
                                   scheduler=scheduler, safety_checker=None, feature_extractor=None,
                                   image_encoder=None, requires_safety_checker=False)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
