"""Named weights, read one by one: from safetensors files (only what is asked for) or from a live module.

Every weight is checked for NaN and infinity when it is first read, so that no edit is computed from a broken model.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from erasekit.backbones._stored import damaged, located
from erasekit.errors import ModelError
from erasekit.layers import originals, require_here, uncompiled

T = TypeVar("T")
FLOATS = ("float16", "bfloat16", "float32", "float64")
KINDS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "I8": "int8", "U8": "uint8"}
"""Torch's words for those of a safetensors file; others stand as they are."""
LARGE = 2**24
"""A stored tensor of more numbers, such as a table of token embeddings, is mapped for itself and unmapped with its last use:
looking for NaN reads all of it, an edit needs a few rows, and memory would hold the rest to the end."""
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

    @abstractmethod
    def shape(self, stored: str) -> tuple[int, ...]:
        """The shape of the tensor under its stored name, the tensor left unread."""

    @abstractmethod
    def kind(self, stored: str) -> str:
        """What numbers the tensor under its stored name holds ("float16"), the tensor left unread."""

    def __init__(self, component: str) -> None:
        self.component = component
        self._known: dict[str, str] = {}  # name -> stored name
        self._checked: set[str] = set()

    def stored(self, name: str) -> str | None:
        """The name under which `name` is stored, or None."""
        return next((n for n in (name, PREFIX + name) if n in self.names()), None)

    def get(self, name: str) -> Tensor:
        """The weight, finite; a missing name or a NaN raises `ModelError` naming it."""
        stored = self._known.get(name) or self._found(name)
        tensor = self.read(stored).detach()
        self._known[name] = stored
        if stored not in self._checked:
            self._check(tensor, stored)
        return tensor

    def require(self, name: str, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """The weight's shape, which must be this one (None: any number); else `ModelError` names the weight and where it is."""
        stored = self._found(name)
        self._require_floats(stored)  # first: numbers of four bits are packed, which changes the shape too
        found = self.shape(stored)
        if len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
            wanted = " x ".join("any" if side is None else str(side) for side in shape)
            raise ModelError(f"{self._place(stored)} is {' x '.join(map(str, found))}, and the model's text width asks for "
                             f"{wanted}: fetch the model's files again")  # fmt: skip
        return found

    def _found(self, name: str) -> str:
        stored = self.stored(name)
        if stored is None:
            near = difflib.get_close_matches(name, sorted(self.names()), n=2, cutoff=0.3)
            hint = f"; the nearest names are {', '.join(near)}" if near else ""
            raise ModelError(f"{self.component} has no weight {name}{hint}: is it a complete diffusers model?")
        return stored

    def _place(self, stored: str) -> str:
        """Where a weight is, for a message."""
        return f"{self.component}/{stored}"

    def _require_floats(self, stored: str) -> None:
        if (kind := self.kind(stored)) not in FLOATS:
            raise ModelError(f"{self._place(stored)} holds {kind} numbers, which are not edited: give the model in float16, "
                             "bfloat16 or float32")  # fmt: skip

    def _check(self, tensor: Tensor, stored: str) -> None:
        require_here(self._place(stored), tensor)
        self._require_floats(stored)
        low, high = torch.aminmax(tensor)  # NaN reaches both ends
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelError(f"{self._place(stored)} contains NaN or infinity: fetch the model's files again")
        self._checked.add(stored)


class ModuleWeights(Weights):
    """The weights of a live module without the edits that are on it: its own tensors, or those kept for it by the first of
    these; never copied, never written."""

    def __init__(self, component: str, module: nn.Module) -> None:
        super().__init__(component)
        module = uncompiled(module)
        self._tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        wrapped = next((n for n in self._tensors if ".base_layer." in n or ".lora_" in n), None)
        if wrapped:
            raise ModelError(f"{component} has a LoRA loaded ({wrapped}): call pipe.unload_lora_weights() first")
        paths = {name: name.rpartition(".") for name in self._tensors}
        self._owners = {name: (module.get_submodule(path), leaf) for name, (path, _, leaf) in paths.items()}

    def names(self) -> set[str]:
        """Every parameter and buffer."""
        return set(self._tensors)

    def shape(self, stored: str) -> tuple[int, ...]:
        """The live tensor's."""
        return tuple(self._tensors[stored].shape)

    def kind(self, stored: str) -> str:
        """The live tensor's."""
        return str(self._tensors[stored].dtype).removeprefix("torch.")

    def read(self, stored: str) -> Tensor:
        """The tensor that the module has when no edit is on it."""
        (owner, leaf), live = self._owners[stored], self._tensors[stored]
        kept = originals(owner).get(leaf)
        return live if kept is None else kept.to(live)  # a pipeline that was moved since leaves what is kept behind


class FolderWeights(Weights):
    """The weights of one component of a diffusers folder; a tensor is read from disk when it is asked for."""

    def __init__(self, component: str, folder: Path, stem: str) -> None:
        super().__init__(component)
        self._where = located(folder, stem)
        self._files: dict[Path, safe_open] = {}

    def names(self) -> set[str]:
        """Every name in the component's files."""
        return set(self._where)

    def shape(self, stored: str) -> tuple[int, ...]:
        """As the file's header has it."""
        return tuple(self._asked(stored, lambda file: file.get_slice(stored).get_shape()))

    def kind(self, stored: str) -> str:
        """As the file's header has it."""
        found = str(self._asked(stored, lambda file: file.get_slice(stored).get_dtype()))
        return KINDS.get(found, found)

    def read(self, stored: str) -> Tensor:
        """The tensor from its file (memory-mapped where the platform can)."""
        apart = prod(self.shape(stored)) > LARGE
        return self._asked(stored, lambda file: file.get_tensor(stored), apart=apart)

    def _asked(self, stored: str, question: Callable[[safe_open], T], *, apart: bool = False) -> T:
        """The file's answer; `apart`: from a mapping of its own."""
        path = self._where[stored]
        try:
            if apart:
                return question(safe_open(path, "pt"))
            if path not in self._files:
                self._files[path] = safe_open(path, "pt")
            return question(self._files[path])
        except (SafetensorError, OSError) as error:
            raise damaged(path, error) from error

    def _place(self, stored: str) -> str:
        return f"{stored} in {self._where[stored]}"
