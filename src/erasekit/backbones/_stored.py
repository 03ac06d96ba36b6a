"""Which files of a diffusers folder hold its weights: decided here alone, so that all that reads a folder reads the same."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from erasekit.errors import ModelError
from erasekit.models import UNREAD

FILE = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:-\d+-of-\d+)?(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors"
)
OTHERS = (".bin", ".ckpt", ".msgpack", ".h5")  # weights in formats that are not read


def variant(folder: Path) -> str | None:
    """The variant ("fp16") that a model folder is read as: that of its first part without a plain file; None where every
    part has one."""
    for part in sorted(path for path in folder.glob("*/") if path.name not in UNREAD):
        kinds = _kinds(part)
        if kinds and "" not in kinds:
            return min(kinds)
    return None


def variant_of(part: Path) -> str | None:
    """The variant that one part of a model folder is read from: the folder's, where the part has it."""
    found = variant(part.parent)
    return found if found in _kinds(part) else None


def located(part: Path, stem: str) -> dict[str, Path]:
    """Stored name -> file: one file, or shards behind an index. Raises `ModelError`, naming what is missing or damaged."""
    kind = variant_of(part)
    ending = f".{kind}" if kind else ""
    whole, index = part / f"{stem}{ending}.safetensors", part / f"{stem}.safetensors.index{ending}.json"
    if whole.exists():
        return dict.fromkeys(_keys(whole), whole)
    if index.exists():
        return _shards(index)
    if (found := sorted(part.glob("*.bin"))) or (found := sorted(part.glob("*.ckpt"))):
        raise ModelError(f"{found[0]} is a pickle, which is not read: save the model with safe_serialization=True")
    raise ModelError(f"{part} has no {stem}.safetensors: fetch the whole diffusers folder")


def precision(part: Path, stem: str) -> str:
    """The precision of the part's first tensor, in safetensors' word ("F16"); empty where it holds none."""
    from safetensors import SafetensorError, safe_open

    for name, path in located(part, stem).items():
        try:
            with safe_open(path, "pt") as file:
                return str(file.get_slice(name).get_dtype())
        except (SafetensorError, OSError) as error:
            raise damaged(path, error) from error
    return ""


def copy_part(part: Path, to: Path) -> bool:
    """Copy a part with its weights under their plain names, from a variant where there is no plain file; False, and
    nothing is copied, where there are no weights."""
    kinds = _kinds(part)
    if not kinds and not any(path.suffix in OTHERS for path in part.glob("*")):
        return False
    kind = "" if "" in kinds else min(kinds, default="")

    def unneeded(_: str, names: list[str]) -> list[str]:
        weights = {name: found["variant"] or "" for name in names if (found := FILE.fullmatch(name))}
        return [name for name in names if weights.get(name, kind) != kind or (kinds and name.endswith(OTHERS))]

    shutil.copytree(part, to, ignore=unneeded)
    for path in to.glob(f"*.{kind}.safetensors") if kind else ():
        path.rename(path.with_name(path.name.replace(f".{kind}.", ".")))
    return True


def damaged(path: Path, error: Exception) -> ModelError:
    """The error for a file that cannot be read."""
    return ModelError(f"{path} cannot be read, it is damaged or incomplete ({error}): fetch it again")


def _kinds(part: Path) -> set[str]:
    """The variants that the part has weights of; "" is the plain files."""
    found = (FILE.fullmatch(path.name) for path in part.glob("*.safetensors"))
    return {match["variant"] or "" for match in found if match}


def _shards(index: Path) -> dict[str, Path]:
    try:
        table = json.loads(index.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(index, error) from error
    return {name: index.parent / Path(file).name for name, file in table.items()}


def _keys(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error
