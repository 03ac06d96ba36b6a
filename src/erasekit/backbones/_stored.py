"""Which files of a diffusers folder are read: decided here alone, so that all that reads a folder reads the same."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from erasekit.errors import ModelError
from erasekit.models import INDEX, UNREAD, read_json

FILE = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:-\d+-of-\d+)?(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors"
)
ALIGNMENT = 64  # bytes: where torch's own memory on the CPU begins
STEMS = ("diffusion_pytorch_model", "model")
SMALL = (".json", ".txt", ".model")  # configurations and vocabularies
OTHERS = (".bin", ".ckpt", ".msgpack", ".h5")  # weights in formats that are not read
PICKLE = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)\b.*\.(?:bin|ckpt)")


def align(part: Any) -> None:
    """Copies a module's weights that lie at an odd place in a file's mapped memory to where torch would have put them.

    Vectorised kernels round differently there: training from a folder would give other bits than on the same weights in
    memory. What is no module is left as it is.
    """
    import torch

    for tensor in (*part.parameters(), *part.buffers()) if isinstance(part, torch.nn.Module) else ():
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def parts(folder: Path, *, without: Collection[str] = UNREAD) -> list[Path]:
    """The parts that a model folder is read from, by name: those that its index names, without what `load` leaves out."""
    named = sorted(key for key, value in read_json(folder / INDEX).items() if isinstance(value, list) and any(value))
    return [folder / name for name in named if name not in without and not name.startswith("_")]


def small_files(part: Path) -> list[Path]:
    """A part's configurations and vocabularies by name, without the hidden files that some systems leave behind."""
    found = (path for path in part.glob("*") if path.suffix in SMALL and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def files(folder: Path) -> list[Path]:
    """All files that a model is read from, its index first: another file that lies in the folder changes nothing.

    Raises `ModelError`, naming it, for one that is missing or damaged.
    """
    found: set[Path] = set()
    for part in parts(folder):
        found.update(path for path in small_files(part) if ".index." not in path.name)
        for source in (_source(part, stem) for stem in STEMS):
            shards = _shards(source).values() if source and source.suffix == ".json" else ()
            found.update([source] if source else [], shards)
    if gone := sorted(path for path in found if not path.is_file()):
        raise ModelError(f"{gone[0]} is missing: fetch the whole diffusers folder")
    return [folder / INDEX, *sorted(found)]


def without_plain(folder: Path, *, without: Collection[str] = UNREAD) -> list[Path]:
    """The parts that are there and hold weights, but no plain ones."""
    # Only what holds weights has a configuration of this name, but for tokenizers that were copied with their model's.
    held = (part for part in parts(folder, without=without) if (part / "config.json").is_file())
    return [part for part in held if "" not in _kinds(part) and not part.name.startswith("tokenizer")]


def variant_alone(part: Path) -> bool:
    """Whether the part has weights of a variant, and no plain ones."""
    kinds = _kinds(part)
    return bool(kinds) and "" not in kinds


def require_safetensors(folder: Path) -> None:
    """Raises `ModelError`, naming the file, for a part whose weights are there as a pickle alone: none is ever opened."""
    for part in parts(folder):
        if not _kinds(part):
            _refuse_pickle(part)


def variant(folder: Path) -> str | None:
    """The variant ("fp16") that a model folder is read as: that of its first part without a plain file; None where every
    part has one."""
    for part in parts(folder):
        if variant_alone(part):
            return min(_kinds(part))
    return None


def variant_of(part: Path) -> str | None:
    """The variant that one part of a model folder is read from: the folder's, where the part has it."""
    found = variant(part.parent)
    return found if found in _kinds(part) else None


def located(part: Path, stem: str) -> dict[str, Path]:
    """Stored name -> file: one file, or shards behind an index. Raises `ModelError`, naming what is missing or damaged."""
    source = _source(part, stem)
    if source is None:
        _refuse_pickle(part)
        raise ModelError(f"{part} has no {stem}.safetensors: fetch the whole diffusers folder")
    return _shards(source) if source.suffix == ".json" else dict.fromkeys(_keys(source), source)


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


def _source(part: Path, stem: str) -> Path | None:
    """The file that holds the part's weights, or the index of its shards; None where there is neither."""
    kind = variant_of(part)
    ending = f".{kind}" if kind else ""
    places = (part / f"{stem}{ending}.safetensors", part / f"{stem}.safetensors.index{ending}.json")
    return next((path for path in places if path.exists()), None)


def _refuse_pickle(part: Path) -> None:
    if found := sorted(path for path in part.glob("*") if PICKLE.fullmatch(path.name)):
        raise ModelError(f"{found[0]} is a pickle, which is not read: save the model with safe_serialization=True")


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
