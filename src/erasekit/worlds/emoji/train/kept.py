"""Tensors that a stage computes once and keeps in the work folder, each together with what it was made of."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from erasekit.files import file_sha256, fill_whole

log = logging.getLogger(__name__)
Origin = Mapping[str, int | str]


def kept(path: Path, origin: Origin, rows: int, make: Callable[[], Tensor]) -> Tensor:
    """The tensor in `path` if it was made of exactly this, else what `make` gives, which `path` then holds.

    Tensor and origin are one file, which is replaced whole: a kill leaves the old pair or the new one. A bare tensor, as
    older versions kept it, says nothing of its origin; it is taken as it is if it has so many rows, and the log says so.
    """
    found = torch.load(path, weights_only=True) if path.exists() else None
    if isinstance(found, Tensor) and len(found) == rows:
        log.info("%s does not say what it was made of and is taken as it is: delete it to compute it anew", path)
        return found
    if isinstance(found, dict) and found["origin"] == origin:
        return found["tensor"]
    if found is not None:
        log.info("%s was made of something else: computing it anew", path)
    pair = {"origin": dict(origin), "tensor": make()}
    fill_whole(path, lambda beside: torch.save(pair, beside))
    return pair["tensor"]


def digest(*folders: Path) -> str:
    """One hash over names and contents of all files in these folders."""
    lines = [f"{folder.name}/{file.relative_to(folder)} {file_sha256(file)}"
             for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]  # fmt: skip
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
