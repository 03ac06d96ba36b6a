"""Named weights, read one by one: from safetensors files (only what is asked for) or from a live module.

Every weight is checked for NaN and infinity when it is first read, so that no edit is computed from a broken model.
"""

from __future__ import annotations

import difflib
import json
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from erasekit.errors import ModelError
from erasekit.layers import originals

PREFIX = "text_model."  # hub files and some encoder classes put it before every text module


class Weights(ABC):
    """Read access to one component's weights by role name; with and without the `text_model.` prefix."""

    component: str

    @abstractmethod
    def names(self) -> set[str]:
        """Every name that the component has, as stored."""

    @abstractmethod
    def read(self, stored: str) -> Tensor:
        """The tensor under its stored name."""

    def __init__(self, component: str) -> None:
        self.component = component
        self._known: dict[str, str] = {}  # name -> stored name
        self._checked: set[str] = set()

    def stored(self, name: str) -> str | None:
        """The name under which `name` is stored, or None."""
        return next((n for n in (name, PREFIX + name) if n in self.names()), None)

    def get(self, name: str) -> Tensor:
        """The weight, finite; a missing name or a NaN raises `ModelError` naming it."""
        stored = self._known.get(name) or self.stored(name)
        if stored is None:
            near = difflib.get_close_matches(name, sorted(self.names()), n=2, cutoff=0.3)
            hint = f"; the nearest names are {', '.join(near)}" if near else ""
            raise ModelError(f"{self.component} has no weight {name}{hint}: is it a complete diffusers model?")
        tensor = self.read(stored).detach()
        self._known[name] = stored
        if stored not in self._checked:
            self._check(tensor, stored)
        return tensor

    def _check(self, tensor: Tensor, stored: str) -> None:
        low, high = torch.aminmax(tensor)  # NaN reaches both ends
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelError(f"{self.component}/{stored} contains NaN or infinity: fetch the model's files again")
        self._checked.add(stored)


class ModuleWeights(Weights):
    """The weights of a live module without the edits that are on it: its own tensors, or those kept for it by the first of
    these; never copied, never written."""

    def __init__(self, component: str, module: nn.Module) -> None:
        super().__init__(component)
        self._tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        wrapped = next((n for n in self._tensors if ".base_layer." in n or ".lora_" in n), None)
        if wrapped:
            raise ModelError(f"{component} has a LoRA loaded ({wrapped}): call pipe.unload_lora_weights() first")
        paths = {name: name.rpartition(".") for name in self._tensors}
        self._owners = {name: (module.get_submodule(path), leaf) for name, (path, _, leaf) in paths.items()}

    def names(self) -> set[str]:
        """Every parameter and buffer."""
        return set(self._tensors)

    def read(self, stored: str) -> Tensor:
        """The tensor that the module has when no edit is on it."""
        (owner, leaf), live = self._owners[stored], self._tensors[stored]
        kept = originals(owner).get(leaf)
        return live if kept is None else kept.to(live)  # a pipeline that was moved since leaves what is kept behind


class FolderWeights(Weights):
    """The weights of one component of a diffusers folder; a tensor is read from disk when it is asked for."""

    def __init__(self, component: str, folder: Path, stem: str) -> None:
        super().__init__(component)
        self._where = _locate(folder, stem)
        self._files: dict[Path, safe_open] = {}

    def names(self) -> set[str]:
        """Every name in the component's files."""
        return set(self._where)

    def read(self, stored: str) -> Tensor:
        """The tensor from its file (memory-mapped where the platform can)."""
        path = self._where[stored]
        try:
            if path not in self._files:
                self._files[path] = safe_open(path, "pt")
            return self._files[path].get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error


def _locate(folder: Path, stem: str) -> dict[str, Path]:
    """Stored name -> file: one file, shards behind an index, or the same of a variant such as fp16."""
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not whole.exists() and not index.exists():
        variants = [p for p in sorted(folder.glob(f"{stem}.*.safetensors")) if "-of-" not in p.name]
        indices = sorted({*folder.glob(f"{stem}.*index*.json")})
        whole, index = next(iter(variants), whole), next(iter(indices), index)
    if whole.exists():
        return dict.fromkeys(_keys(whole), whole)
    if index.exists():
        return _shards(index)
    if (found := sorted(folder.glob("*.bin"))) or (found := sorted(folder.glob("*.ckpt"))):
        raise ModelError(f"{found[0]} is a pickle, which is not read: save the model with safe_serialization=True")
    raise ModelError(f"{folder} has no {stem}.safetensors: fetch the whole diffusers folder")


def _shards(index: Path) -> dict[str, Path]:
    try:
        table = json.loads(index.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(index, error) from error
    return {name: index.parent / Path(file).name for name, file in table.items()}


def _keys(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} cannot be read, it is damaged or incomplete ({error}): fetch it again")
