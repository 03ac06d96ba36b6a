"""A run's state as one safetensors file that appears whole or not at all, and is refused by any other run."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from erasekit.errors import TrainingError
from erasekit.files import check_writable, fill_whole

FILE = "checkpoint.safetensors"
DOCUMENT = "erasekit.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its state, and what decides the run's result (`about`, plain JSON data)."""

    path: Path
    about: Mapping[str, Any]
    free: frozenset[str] = frozenset()
    """Parameters that decide nothing: files from before they were known to name them, and are gone on from."""

    @classmethod
    def at(cls, place: str | PathLike[str], about: Mapping[str, Any], *, free: Collection[str] = ()) -> Checkpoint:
        """The checkpoint in a folder or at a file name; `EditError` if it can surely not be written there."""
        path = Path(place).expanduser()
        path = path / FILE if path.is_dir() or not path.suffix else path
        check_writable(path)
        return cls(path, json.loads(json.dumps(about)), frozenset(free))

    def save(self, tensors: Mapping[str, Tensor], losses: Sequence[float]) -> None:
        """Replace the file by this state; a kill at any time leaves the one before. Raises `EditError`: a full disk."""
        from safetensors.torch import save_file

        document = json.dumps({"about": self.about, "losses": list(losses)})
        own = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        fill_whole(self.path, lambda beside: save_file(own, beside, {DOCUMENT: document}))

    def load(self) -> tuple[dict[str, Tensor], list[float]] | None:
        """The state (on the CPU) and the loss of every step so far, or None where there is no file yet.

        Raises `TrainingError`: damaged, or written by another run; the line says in what the two differ.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                document = json.loads((file.metadata() or {})[DOCUMENT])
                self._require_same(document["about"])
                return {name: file.get_tensor(name) for name in list(file.keys())}, document["losses"]
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise TrainingError(f"{self.path} is no checkpoint, or a damaged one: delete it or name another") from error

    def _require_same(self, other: Mapping[str, Any]) -> None:
        was = dict(other)
        if isinstance(parameters := was.get("parameters"), dict):
            was["parameters"] = {name: value for name, value in parameters.items() if name not in self.free}
        names = [name for name in {**self.about, **was} if self.about.get(name) != was.get(name)]
        if names:
            raise TrainingError(f"{self.path} is the checkpoint of another run (other {', '.join(names)}): "
                                "name another file, or delete it to begin anew")  # fmt: skip
