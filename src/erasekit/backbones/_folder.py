"""What the small files of a model folder must hold. Looked at once, before anything is read by them: each fault is one
`ModelError` that names the file. The weights are checked where they are read (`_weights`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from erasekit.backbones._stored import parts, small_files
from erasekit.errors import ModelError
from erasekit.models import INDEX, read_json

COUNTS = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "max_position_embeddings",
          "vocab_size")  # fmt: skip
REMEDY = "fetch the whole diffusers folder again"


def check(folder: Path) -> None:
    """Raises `ModelError` for a pipeline's small file that cannot be what it stands for."""
    index = read_json(folder / INDEX)
    pipeline_class(folder)
    for path in (path for part in parts(folder) for path in small_files(part) if path.suffix == ".json"):
        read_json(path)
    if (folder / "text_encoder" / "config.json").is_file():
        text_config(folder / "text_encoder" / "config.json")
    if str(index.get("tokenizer")).count("CLIPTokenizer"):
        check_tokenizer(folder / "tokenizer")


def pipeline_class(folder: Path) -> str:
    """The name of the class that `model_index.json` gives; of a class outside diffusers it is the last of two."""
    found = read_json(folder / INDEX).get("_class_name")
    name = found[-1] if isinstance(found, list) and found else found
    if not isinstance(name, str):
        raise ModelError(f"{folder / INDEX} names no pipeline class (_class_name is {found!r}): {REMEDY}")
    return name


def text_config(path: Path) -> dict[str, Any]:
    """A text encoder's configuration, its numbers numbers."""
    config = read_json(path)
    for key in COUNTS:
        value = config.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{path} has {key} = {value!r}, which must be a whole number above 0: {REMEDY}")
    eps = config.get("layer_norm_eps", 1e-5)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
        raise ModelError(f"{path} has layer_norm_eps = {eps!r}, which must be a number above 0: {REMEDY}")
    return config


def check_tokenizer(folder: Path) -> None:
    """Raises `ModelError` for a CLIP tokenizer without its files or without a word; transformers makes an empty one."""
    whole, words, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not folder.is_dir() or not (whole.is_file() or (words.is_file() and merges.is_file())):
        raise ModelError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt: {REMEDY}")
    for path in (path for path in (whole, words) if path.is_file()):
        found = read_json(path)
        if path == whole:
            found = found.get("model")
            found = found.get("vocab") if isinstance(found, dict) else None
        if not isinstance(found, dict) or not found:
            raise ModelError(f"{path} holds no vocabulary: {REMEDY}")
