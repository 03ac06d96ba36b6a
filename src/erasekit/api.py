"""The one call that erases: a model and words in, an `Edit` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from erasekit.edit import Edit


def erase(
    model_or_pipe: DiffusionPipeline | str | Path,
    targets: str | Sequence[str],
    *,
    anchor: str | Sequence[str] | None = None,
    retain: Sequence[str] = (),
    method: str = "erasepro",
    seed: int = 0,
    progress: Callable[..., None] | None = None,
    **parameters: Any,
) -> Edit:
    """An edit that removes `targets` from the model; the model itself is left exactly as it was.

    `model_or_pipe`: a diffusers pipeline, a model folder, "emoji" or a hub id (a name reads only the tensors that
    the method needs). `anchor`: what the targets become, one for all or one each; without it the method's default.
    `retain`: concepts that must stay. `method`: a name, or name:preset. `parameters`: fields of the method's
    configuration, over the preset's (`erasekit methods`).
    Raises `UsageError` for a request that is wrong, `InfeasibleError` where the method cannot do what was asked.
    """
    from erasekit import methods
    from erasekit.backbones import backbone
    from erasekit.concept import EraseRequest

    cls, preset = methods.resolve(method)
    config = methods.make_config(cls, {**preset.values, **parameters})
    default_anchor = cls.default_anchor if preset.anchor is None else preset.anchor
    request = EraseRequest.build(targets, anchor=anchor, retain=retain, seed=seed, default_anchor=default_anchor)
    model = backbone(model_or_pipe)
    if model.family not in cls.families:
        raise UsageError(f"method {method!r} is not verified on family {model.family!r}: it works on "
                         f"{', '.join(cls.families)}; `erasekit methods` lists the others")  # fmt: skip
    return cls().fit(model, request, config, progress=progress)
