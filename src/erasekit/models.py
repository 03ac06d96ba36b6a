"""Models by name: the embedded world, a diffusers folder, or a model of the hub.

`resolve` touches no weights (torch is not even imported); `load` gives a whole diffusers pipeline.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import ModelError

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

EMBEDDED: dict[str, str] = {
    "emoji": "64 x 64 scenes of emoji in five drawing styles; ships with erasekit, works offline",
}
INDEX = "model_index.json"
DEFAULTS: dict[str, float] = {"steps": 30, "guidance": 7.5}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = [INDEX, "defaults.json", "*/*.json", "*/*.txt", "*/*.model", "*/model*.safetensors",
             "*/diffusion_pytorch_model*.safetensors"]  # fmt: skip
HUB_SKIP = ["safety_checker/*", "*.fp16*", "*.non_ema*", "*.bf16*"]


def resolve(name: str | Path) -> Path:
    """The folder (with a `model_index.json`) of a model: "emoji", a local folder, or a hub id "owner/name".

    A hub id is downloaded once into the hub's cache. Raises `ModelError` for anything else, naming what to give.
    """
    if str(name) in EMBEDDED:
        return _embedded(str(name))
    folder = Path(name).expanduser()
    if folder.exists():
        return _checked(folder)
    if isinstance(name, str) and HUB_ID.fullmatch(name):
        return _download(name)
    raise ModelError(f"no model {str(name)!r}: give {', '.join(EMBEDDED)}, an existing diffusers folder, or a hub id "
                     "(owner/name)")  # fmt: skip


def _embedded(name: str) -> Path:
    # Next to this file, and not through the world's package: a path needs none of the world's code.
    folder = Path(__file__).parent / "worlds" / name / "model"
    if not (folder / INDEX).is_file():
        raise ModelError(f"the weights of the embedded model {name!r} are missing ({folder}): reinstall erasekit")
    return folder


def _checked(folder: Path) -> Path:
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} is not a diffusers model: it has no {INDEX}; give the folder that holds it "
                         "(for a single checkpoint file, convert it with diffusers first)")  # fmt: skip
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIP)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot download model {name!r} ({reason}): check the id and the network, or give a local "
                         "diffusers folder") from error  # fmt: skip
    return _checked(Path(folder))


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
    """The precision in which a folder stores its denoiser (float32 where it cannot be told)."""
    import torch
    from safetensors import SafetensorError, safe_open

    names = {"F16": torch.float16, "BF16": torch.bfloat16}
    for path in sorted(folder.glob("unet/*.safetensors")) + sorted(folder.glob("transformer/*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                return names.get(file.get_slice(next(iter(file.keys()))).get_dtype(), torch.float32)
        except (SafetensorError, OSError, StopIteration) as error:
            raise ModelError(f"cannot read {path} ({error}): the file is damaged, copy it again") from error
    return torch.float32


def load(name: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> DiffusionPipeline:
    """A diffusers pipeline on `device`, in eval mode, without safety checker and without progress bars.

    `name` is as for `resolve`; `dtype` defaults to float32 on the CPU and float16 elsewhere.
    Raises `ModelError` where the folder is incomplete or damaged.
    """
    import torch

    folder = resolve(name)
    pipe = _read_pipeline(folder, dtype or (torch.float32 if device == "cpu" else torch.float16))
    pipe.set_progress_bar_config(disable=True)
    # What an edit's file will say about its base: the name a user would give, and no path of this machine.
    pipe.register_to_config(_name_or_path=folder.name if Path(name).exists() else str(name))
    return pipe.to(device)


def _read_pipeline(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    options = {"safety_checker": None, "requires_safety_checker": False}
    index = read_json(folder / INDEX)
    given = {key: value for key, value in options.items() if key in index}
    try:
        return DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, **given)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load the model in {folder} ({reason}): a file is missing, damaged or of an "
                         "unsupported kind; copy the folder again") from error  # fmt: skip
