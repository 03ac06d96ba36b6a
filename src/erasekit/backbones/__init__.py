"""Which model families erasekit can edit, and how one is opened: `backbone(model)`."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from erasekit.backbones.base import Backbone

BACKBONES: dict[str, str] = {  # a pipeline's class name -> the backbone that reads it
    "StableDiffusionPipeline": "erasekit.backbones.sd:SDBackbone",
    "StableDiffusionImg2ImgPipeline": "erasekit.backbones.sd:SDBackbone",
    "StableDiffusionInpaintPipeline": "erasekit.backbones.sd:SDBackbone",
}


def backbone(model: Any) -> Backbone:
    """The backbone of a live diffusers pipeline, a diffusers folder, "emoji" or a hub id; the model stays as it is.

    From a folder only the text encoder and the edited weights are ever read. A folder without a readable
    `model_index.json` raises `ModelError`, an unsupported pipeline class `UsageError` that lists the supported ones.
    """
    if not isinstance(model, str | Path):
        return _class(type(model).__name__).from_pipeline(model)
    from erasekit import models

    folder = Path(models.resolve(str(model)))
    # What an edit's file says about its base: the name a user would give, and no path of this machine.
    name = folder.name if Path(model).exists() else str(model)
    return _class(_pipeline_class(folder)).from_folder(folder, model_id=name)


def _class(name: str) -> Any:
    if name not in BACKBONES:
        raise UsageError(f"models of class {name} are not supported: use {', '.join(BACKBONES)}")
    module, _, attribute = BACKBONES[name].partition(":")
    return getattr(import_module(module), attribute)


def _pipeline_class(folder: Path) -> str:
    index = folder / "model_index.json"
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} has no readable model_index.json: give a complete diffusers folder") from error
    return name if isinstance(name, str) else name[-1]
