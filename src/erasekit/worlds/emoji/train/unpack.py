"""The reverse of `assemble`: the shipped weights as a work folder in float32, to train them further (`--onward`)."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from .. import MODEL_DIR
from ..judge import JUDGE_DIR


def run(work: Path) -> None:
    """Writes `vae`, `text_encoder`, `tokenizer`, `unet` and `judge` into the work folder."""
    for kind, part in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"), (CLIPTextModel, "text_encoder")):
        kind.from_pretrained(MODEL_DIR, subfolder=part).float().save_pretrained(work / part)
    CLIPTokenizer.from_pretrained(MODEL_DIR, subfolder="tokenizer").save_pretrained(work / "tokenizer")
    shutil.copytree(JUDGE_DIR, work / "judge", dirs_exist_ok=True)
