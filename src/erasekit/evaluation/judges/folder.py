"""transformers models from a folder (or a hub id that the user names), complete or not at all.

transformers fills a missing weight with random numbers and goes on; a judge made so would decide by chance. Here a
missing or misshapen weight, tokenizer or image processor is a `ModelError` that names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from erasekit.errors import ModelError, UsageError
from erasekit.models import HUB_ID, read_json

CARD = "README.md"
TEXT_FILES = ["*.json", "*.txt", "*.model", CARD]
WHOLE = "copy or download the model's whole folder again"


def find(option: str | None, *, judge: str, hub: bool = False) -> Path:
    """The folder that a spec names after the colon; with `hub`, a hub id is downloaded into the hub's cache.

    Raises:
        UsageError: nothing was named.
        ModelError: no such folder, or it is no transformers model, or the download failed.
    """
    what = "a transformers folder or a hub id (owner/name)" if hub else "a transformers folder"
    if not option:
        raise UsageError(f"the judge {judge} needs {what} after a colon, as in {judge}:models/mine")
    folder = Path(option).expanduser()
    if not folder.exists() and hub and HUB_ID.fullmatch(option):
        folder = download(option)
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.is_dir() else "does not exist"
        raise ModelError(f"the weights of the judge {judge} are missing: {option} {problem}; give {what} that holds "
                         "config.json, the weights and the preprocessing files")  # fmt: skip
    return folder


def download(name: str) -> Path:
    """The hub's snapshot of `name`: safetensors where it has them, else its pytorch_model.bin."""
    from erasekit.hub import downloaded

    words = {"what": "the judge's model", "folder": "folder"}
    folder = downloaded(name, [*TEXT_FILES, "model*.safetensors"], **words)
    if not any(folder.glob("model*.safetensors")):
        folder = downloaded(name, [*TEXT_FILES, "pytorch_model*.bin"], **words)
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers reads: one file, or the shards of an index; `ModelError` if any is missing."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = sorted({folder / Path(str(file)).name for file in read_json(index).get("weight_map", {}).values()})
            gone = [path.name for path in shards if not path.is_file()]
            if gone or not shards:
                raise ModelError(f"{folder} lacks the weight file {(gone or ['of its index'])[0]}: {WHOLE}")
            return shards
    raise ModelError(f"{folder} holds no weights (model.safetensors): {WHOLE}")


def deciding_files(folder: Path) -> list[Path]:
    """All files that a verdict depends on: the weights, and the settings, labels, preprocessing and tokenizer beside them.

    Raises like `weight_files`.
    """
    beside = {path for pattern in TEXT_FILES for path in folder.glob(pattern) if path.name != CARD}
    return sorted({*weight_files(folder), *beside})


def read(cls: Any, folder: Path) -> Any:
    """`cls.from_pretrained` in float32 and eval mode; every weight of the model comes from the folder."""
    import torch

    weight_files(folder)
    model, info = guarded(
        folder,
        lambda: cls.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True),
    )
    wrong = sorted(map(str, info["missing_keys"])) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if wrong:
        raise ModelError(f"{folder} lacks {len(wrong)} of the weights of a {type(model).__name__} (first: {wrong[0]}): "
                         "is it a model of this kind, and complete?")  # fmt: skip
    return model.eval()


def processor(folder: Path) -> Any:
    """The folder's image processor on PIL and numpy, the same numbers whether torchvision is installed or not."""
    from transformers import AutoImageProcessor

    needed(folder, "preprocessor_config.json", "processor_config.json")
    return guarded(folder, lambda: AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"))


def needed(folder: Path, *names: str) -> None:
    """`ModelError` unless the folder has one of the files."""
    if not any((folder / name).is_file() for name in names):
        raise ModelError(f"{folder} has no {' or '.join(names)}: {WHOLE}")


def guarded(folder: Path, load: Callable[[], Any]) -> Any:
    """What `load` gives; what transformers raises over a bad folder becomes one line that names the folder."""
    from safetensors import SafetensorError

    try:
        return load()
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ModelError(f"cannot load the judge in {folder} ({_reason(error)}): {WHOLE}") from error


def calibration(folder: Path, name: str, weights_sha256: str) -> dict[str, Any]:
    """The judge's error rates in FOLDER.calibration.json beside the folder; {} without it. `ModelError` where it is damaged
    or of another judge."""
    own = Path(os.path.normpath(folder.absolute()))  # "." has a name too; a link keeps its own
    path = own.with_name(f"{own.name}.calibration.json")
    remedy = "delete it, or write it again with `erasekit judges calibrate`"
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except ModelError as error:
        raise ModelError(f"{path} is damaged and holds no calibration: {remedy}") from error
    if (found.get("judge"), found.get("weights_sha256")) != (name, weights_sha256):
        raise ModelError(f"{path} is of another judge than {name}: {remedy}")
    return found


def title(option: str) -> str:
    """What a judge's name says of where it is from: the folder's own name, or the hub id."""
    path = Path(option).expanduser()
    return path.resolve().name if path.exists() else option


def licence(folder: Path) -> str:
    """The licence that the folder's model card states, or that it states none."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^licen[sc]e:\s*(\S.*)$", head[1], re.MULTILINE) if head else None
    return found[1].strip().strip("\"'") if found else "not stated in the model's folder"


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
