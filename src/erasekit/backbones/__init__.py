"""Which model families erasekit can edit, and how one is opened: `backbone(model)`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.backbones.base import Backbone

BACKBONES: dict[str, str] = {  # a pipeline's class name -> the backbone that reads it
    "StableDiffusionPipeline": "erasekit.backbones.sd:SDBackbone",
    "StableDiffusionImg2ImgPipeline": "erasekit.backbones.sd:SDBackbone",
    "StableDiffusionInpaintPipeline": "erasekit.backbones.sd:SDBackbone",
}


def backbone(model: Any) -> Backbone:
    """The backbone of a live diffusers pipeline, a diffusers folder, "emoji" or a hub id; the model stays as it is.

    Of a model by name only the text encoder and the edited weights are read, and of a hub id no other part is fetched, unless
    training asks for more. A folder without a readable
    `model_index.json` raises `ModelError`, an unsupported pipeline class `UsageError` that lists the supported ones.
    """
    if not isinstance(model, str | Path):
        return _class(type(model).__name__).from_pipeline(model)
    from erasekit import models
    from erasekit.backbones._folder import pipeline_class

    folder = models.resolve(str(model), without=(*models.UNREAD, *models.UNEDITED))
    cls = _class(pipeline_class(folder))
    return cls.from_folder(folder, model_id=models.public_name(model), whole=lambda: models.resolve(str(model)))


def family_of(pipe: Any) -> str:
    """The family of a live diffusers pipeline, whatever is loaded onto it: no weight is looked at. Raises `UsageError` for
    an unsupported pipeline class, as `backbone` does."""
    return _class(type(pipe).__name__).family_of(pipe)


def require_supported(name: str) -> None:
    """Raises `UsageError`, listing the supported ones, for a pipeline class that no backbone reads."""
    if name not in BACKBONES:
        raise UsageError(f"models of class {name} are not supported: use {', '.join(BACKBONES)}")


def _class(name: str) -> Any:
    require_supported(name)
    module, _, attribute = BACKBONES[name].partition(":")
    return getattr(import_module(module), attribute)
