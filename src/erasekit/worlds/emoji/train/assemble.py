"""Puts the trained parts together as one `StableDiffusionPipeline` folder in half precision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ....errors import UsageError
from .denoiser import BETAS, PREDICTION
from .withheld import Withheld

DEFAULTS = {"steps": 20, "guidance": 4.0}


def run(work: Path, *, without: Sequence[str] = (), without_style: Sequence[str] = ()) -> None:
    """Writes `work/model`: every component in float16 safetensors, and `defaults.json` with steps and guidance.

    With concepts or styles withheld it is made of the denoiser that never saw them, its name has their suffix, and
    `without.json` in it names them. Raises `UsageError` where that denoiser was not trained.
    """
    withheld = Withheld(tuple(without), tuple(without_style))
    unet, folder = work / f"unet{withheld.suffix}", work / f"model{withheld.suffix}"
    if not unet.is_dir():
        same = " with the same --without and --without-style" if withheld.suffix else ""
        raise UsageError(f"{unet} is not there: run the stage denoiser{same} first")
    pipe = pipeline(work, UNet2DConditionModel.from_pretrained(unet))
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.to(torch.float16)
    pipe.save_pretrained(folder)
    for part in ("vae", "unet"):  # diffusers notes the folder that a part was read from
        _forget_origin(folder / part / "config.json")
    (folder / "defaults.json").write_text(json.dumps(DEFAULTS) + "\n")
    if withheld.suffix:
        withheld.note(folder)


def pipeline(work: Path, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """The work folder's parts with this denoiser, in float32."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=unet, scheduler=DPMSolverMultistepScheduler(**BETAS, steps_offset=1, prediction_type=PREDICTION),
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip


def _forget_origin(path: Path) -> None:
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
