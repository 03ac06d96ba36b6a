"""The one call that erases: a model and words in, an `Edit` out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from erasekit.backbones.base import Backbone
    from erasekit.concept import EraseRequest
    from erasekit.edit import Edit
    from erasekit.methods import Method
    from erasekit.training.plan import Plan


def erase(
    model_or_pipe: DiffusionPipeline | str | Path,
    targets: str | Sequence[str],
    *,
    anchor: str | Sequence[str] | None = None,
    retain: Sequence[str] = (),
    method: str = "erasepro",
    seed: int = 0,
    retain_cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[..., None] | None = None,
    **parameters: Any,
) -> Edit:
    """An edit that removes `targets` from the model; the model itself is left exactly as it was.

    `model_or_pipe`: a diffusers pipeline, a model folder, "emoji" or a hub id (a name reads only the tensors that
    the method needs). `anchor`: what the targets become, one for all or one each; without it the method's default.
    `retain`: concepts that must stay; `retain_cache`: a folder where what is computed from them is kept for the next
    edit of the same text encoder. `checkpoint`: a file or folder where a method that trains keeps its state; where
    it exists the run goes on from it. `method`: a name, or name:preset. `parameters`: fields of the method's
    configuration, over the preset's (`erasekit methods`). What is odd about the request but no error is among the
    self-check's warnings; of a list of targets too long for the method a `CrowdWarning` tells before the work.
    Raises `UsageError` for a request that is wrong, `InfeasibleError` where the method cannot do what was asked.
    """
    wanted = {"anchor": anchor, "retain": retain, "seed": seed, "retain_cache": retain_cache}
    method_, model, request, config = _prepared(model_or_pipe, targets, method, wanted, parameters)
    options = {}
    if checkpoint is not None:
        _require_training(method_, "a checkpoint (--resume)")
        options["checkpoint"] = Path(checkpoint)
    notes = (*request.notes, *_uncached(method_.name, retain_cache))
    return _noted(method_.fit(model, request, config, progress=progress, **options), notes)


def plan(
    model_or_pipe: DiffusionPipeline | str | Path,
    targets: str | Sequence[str],
    *,
    anchor: str | Sequence[str] | None = None,
    retain: Sequence[str] = (),
    method: str,
    seed: int = 0,
    **parameters: Any,
) -> Plan:
    """What `erase` with a method that trains would train, and the time and memory to expect, from a few timed passes.

    Nothing is written and the model is left as it was. Raises as `erase`; `UsageError` for a method that does not train.
    """
    wanted = {"anchor": anchor, "retain": retain, "seed": seed, "retain_cache": None}
    method_, model, request, config = _prepared(model_or_pipe, targets, method, wanted, parameters)
    _require_training(method_, "a plan (--dry-run)")
    return method_.plan(model, request, config)


def _prepared(
    model_or_pipe: Any, targets: str | Sequence[str], method: str, wanted: dict[str, Any], parameters: dict[str, Any]
) -> tuple[Any, Backbone, EraseRequest, Any]:
    """The method, the model, the request as the model reads it, and the configuration; all checked."""
    from erasekit.backbones import backbone
    from erasekit.concept import as_read

    cls, request, config = requested(targets, method, wanted, parameters)
    model = backbone(model_or_pipe)
    if model.family not in cls.families:
        raise UsageError(f"method {method!r} is not verified on family {model.family!r}: it works on "
                         f"{', '.join(cls.families)}; `erasekit methods` lists the others")  # fmt: skip
    return cls(), model, _with_crowd(as_read(request, model), cls.name, config, model), config


def _with_crowd(request: EraseRequest, method: str, config: Any, model: Backbone) -> EraseRequest:
    """The request with a note on a list that is too long for the method, which is also said now, before the long work."""
    from erasekit.methods._crowd import CrowdWarning, crowded

    width = model.weight(model.sites("cross.kv")[0]).shape[1]
    said = crowded(method, request, config, width)
    if not said:
        return request
    warnings.warn(said, CrowdWarning, stacklevel=4)
    return replace(request, notes=(*request.notes, said))


def requested(
    targets: str | Sequence[str], method: str, wanted: Mapping[str, Any], parameters: Mapping[str, Any]
) -> tuple[type[Method], EraseRequest, Any]:
    """The method, the request and the configuration that `erase` would work with, checked as far as that needs no model.

    `wanted`: `anchor`, `retain`, `seed` and, if there is one, `retain_cache`. Raises `UsageError` as `erase` does.
    """
    from erasekit import methods
    from erasekit.concept import EraseRequest

    cls, preset = methods.resolve(method)
    config = methods.make_config(cls, {**preset.values, **parameters})
    default_anchor = cls.default_anchor if preset.anchor is None else preset.anchor
    cache = wanted.get("retain_cache")
    given = {**wanted, "retain_cache": None if cache is None else Path(cache)}
    return cls, EraseRequest.build(targets, **given, default_anchor=default_anchor), config


def _require_training(method: Any, what: str) -> None:
    """Refuse what only methods that train have."""
    from erasekit import methods

    if not methods.trains(type(method)):
        raise UsageError(f"{method.name} does not train and has no use for {what}: leave it out")


def _uncached(method: str, retain_cache: str | Path | None) -> list[str]:
    """A note where a cache was given to a method that has nothing to put there."""
    from erasekit.methods import CACHING

    if retain_cache is None or method in CACHING:
        return []
    return [f"{method} computes nothing from the retained prompts that another edit could use: the retain cache "
            f"(--retain-cache) was not used; it serves {', '.join(sorted(CACHING))}"]  # fmt: skip


def _noted(edit: Edit, notes: Sequence[str]) -> Edit:
    """The edit with the request's notes before its own warnings."""
    said = [*notes, *edit.self_check.get("warnings", ())]
    return replace(edit, self_check={**edit.self_check, "warnings": said})
