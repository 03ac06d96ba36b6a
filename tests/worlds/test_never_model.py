"""The shipped model that never knew: whole, of the same world, and known by its name where a model is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from erasekit import models
from erasekit.errors import UsageError
from erasekit.evaluation import controls

SHARED = ("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_denoiser_is_another() -> None:
    full, never = models.resolve("emoji"), models.resolve("emoji-never")
    assert all(sha256(full / part) == sha256(never / part) for part in SHARED)
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert sha256(full / unet) != sha256(never / unet)
    assert models.defaults(full) == models.defaults(never) and models.load("emoji-never").unet.config.in_channels == 16


def test_it_says_what_it_never_saw_and_stands_for_its_folder() -> None:
    folder = models.resolve("emoji-never")
    assert controls.withheld(folder) == {"cat", "bomb", "clown", "ink"}
    assert controls.never("cat=emoji-never", ["cat", "dog"]) == controls.Never("cat", folder)
    assert controls.never("emoji-never", ["cat"]) == controls.Never("cat", folder)
    with pytest.raises(UsageError, match="trained with 'dog'"):
        controls.without(folder, "dog", option="--never")
