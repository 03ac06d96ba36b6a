"""Models by name: the embedded world, a diffusers folder, or a model of the hub.

`resolve` touches no weights (torch is not even imported); `load` gives a whole diffusers pipeline.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import ModelError

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

EMBEDDED: dict[str, str] = {
    "emoji": "64 x 64 scenes of emoji in five drawing styles; ships with erasekit, works offline",
    "emoji-never": "the same recipe, never shown cat, bomb, clown and the ink style: what erasing them aims at",
}
FOLDERS: dict[str, str] = {"emoji": "emoji/model", "emoji-never": "emoji/never"}
"""Where the embedded models lie, under `worlds`."""
INDEX = "model_index.json"
DEFAULTS: dict[str, float] = {"steps": 30, "guidance": 7.5}
UNREAD = ("safety_checker",)
"""Parts of a pipeline that `load` leaves out: nothing here needs them."""
UNEDITED = ("vae", "image_encoder")
"""Parts that no closed-form edit reads: they are fetched from the hub when `load` or training asks for them."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(name: str | Path, *, without: Collection[str] = UNREAD) -> Path:
    """The folder (with a `model_index.json`) of a model: "emoji", a local folder, or a hub id "owner/name".

    Of a hub id the parts that its index names and `without` does not are downloaded, once, into the hub's cache. Raises
    `ModelError` for anything else, naming what to give, and `UsageError` for a hub id of an unsupported class.
    """
    if str(name) in EMBEDDED:
        return _embedded(str(name))
    folder = Path(name).expanduser()
    if folder.exists():
        return checked(folder)
    if isinstance(name, str) and HUB_ID.fullmatch(name):
        from erasekit import hub

        return hub.fetch(name, without=without)
    raise ModelError(f"no model {str(name)!r}: give {', '.join(EMBEDDED)}, an existing diffusers folder, or a hub id "
                     "(owner/name)")  # fmt: skip


def public_name(name: str | Path) -> str:
    """What an edit's file says about its base: a hub id as it is, of a folder its own name, and no path of this machine."""
    text = os.fspath(name)
    if HUB_ID.fullmatch(text) and not Path(text).exists():
        return text
    return Path(os.path.normpath(Path(text).expanduser().absolute())).name


def _embedded(name: str) -> Path:
    # Next to this file, and not through the world's package: a path needs none of the world's code.
    folder = Path(__file__).parent / "worlds" / FOLDERS[name]
    if not (folder / INDEX).is_file():
        raise ModelError(f"the weights of the embedded model {name!r} are missing ({folder}): reinstall erasekit")
    return folder


def checked(folder: Path) -> Path:
    """The folder, which has a `model_index.json`; else `ModelError` says what to give."""
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} is not a diffusers model: it has no {INDEX}; give the folder that holds it "
                         "(for a single checkpoint file, convert it with diffusers first)")  # fmt: skip
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `ModelError` naming the file where it is unreadable."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path} ({error}): the model folder is damaged, copy it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object: the model folder is damaged, copy it again")
    return value


def defaults(folder: Path) -> dict[str, float]:
    """The sampling defaults of a model folder: `{"steps", "guidance"}`, from its `defaults.json` where it has one."""
    path = folder / "defaults.json"
    own = read_json(path) if path.is_file() else {}
    return {key: own.get(key, value) for key, value in DEFAULTS.items()}


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision of the files that a folder's denoiser is read from (float32 where it cannot be told)."""
    import torch

    from erasekit.backbones import _stored

    found = [_stored.precision(folder / part, "diffusion_pytorch_model") for part in ("unet", "transformer")
             if (folder / part).is_dir()]  # fmt: skip
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(found[0] if found else "", torch.float32)


def keep_unread(source: Path, saved: Path) -> list[str]:
    """Give a folder that was saved from what `load` read in `source` the parts that `load` leaves out, and their entries in
    the index; returns those that `source` names without having their weights."""
    from erasekit.backbones import _stored

    index, own = read_json(source / INDEX), read_json(saved / INDEX)
    named = [part for part in UNREAD if isinstance(index.get(part), list) and any(index[part])]
    missing = [part for part in named if not _stored.copy_part(source / part, saved / part)]
    kept = {part: index[part] for part in named if part not in missing}
    if kept:
        required = {key: index[key] for key in ("requires_safety_checker",) if key in index}
        (saved / INDEX).write_text(json.dumps(own | kept | required, indent=2) + "\n", encoding="utf-8")
    return missing


def load(name: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> DiffusionPipeline:
    """A diffusers pipeline on `device`, in eval mode, without safety checker and without progress bars.

    `name` is as for `resolve`; `dtype` defaults to float32 on the CPU and float16 elsewhere.
    Raises `ModelError` where the folder is incomplete or damaged, or has weights as pickles alone.
    """
    import torch

    folder = resolve(name)
    pipe = _read_pipeline(folder, dtype or (torch.float32 if device == "cpu" else torch.float16))
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(_name_or_path=public_name(name))
    return pipe.to(device)


def _read_pipeline(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    from erasekit.backbones import _folder, _stored

    _folder.check(folder)
    _stored.require_safetensors(folder)
    options = {**dict.fromkeys(UNREAD), "requires_safety_checker": False}
    index = read_json(folder / INDEX)
    given = {key: value for key, value in options.items() if key in index}
    try:
        pipe = DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, variant=_stored.variant(folder), use_safetensors=True, local_files_only=True, **given
        )
    except (OSError, ValueError, LookupError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load the model in {folder} ({reason}): a file is missing, damaged or of an "
                         "unsupported kind; copy the folder again") from error  # fmt: skip
    for part in pipe.components.values():
        _stored.align(part)
    return pipe
