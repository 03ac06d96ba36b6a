"""What methods compute from lists of prompts, kept in a folder between fits (`--retain-cache FOLDER`).

A file's name is the digest of all that decides its content: the text encoder's weights and settings, the tokenizer,
the prompts in their order, and what is computed. Whatever differs gives another file, so that nothing in the folder
is ever out of date, and any of it can be deleted. With the file there, no prompt of the list is encoded.

What grows from prompt to prompt (`grown`) is kept on the way too: a fit that was stopped goes on from there, and so does
one with more prompts at the end of its list.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from erasekit.backbones._clip import ClipTower
from erasekit.backbones.base import Backbone
from erasekit.errors import EditError
from erasekit.files import check_writable, write_whole
from erasekit.fingerprint import digest

FORMAT = 2
"""Part of every digest: raise it when the meaning of a stored tensor changes."""
STRIDE = 16
"""What grows is kept after every so many batches."""
State = Mapping[str, Tensor]


class CacheWarning(UserWarning):
    """A cache file could not be used or written; the edit is the same, only later."""


def cached(
    backbone: Backbone, prompts: Sequence[str], kind: str, compute: Callable[[], State], *, folder: Path | None
) -> dict[str, Tensor]:
    """`compute()`, or the same tensors bit for bit from `folder` if they were computed for this model and list before.

    `kind` says in words what is computed, with every setting that changes it. Without a folder, or without prompts,
    nothing is read or written. A damaged file is computed again, with a `CacheWarning`. Raises `EditError` before
    the work where the folder cannot be written.
    """
    shelf = _shelf(backbone, prompts, kind, folder)
    found = shelf and shelf.read(len(prompts))
    if found:
        return found
    if shelf:
        check_writable(shelf.paths[-1])
    made = _plain(compute())
    if shelf:
        shelf.write(len(prompts), made)
    return made


def grown(
    backbone: Backbone, prompts: Sequence[str], kind: str, start: State, add: Callable[[State, int], State],
    *, batch: int, folder: Path | None,
) -> dict[str, Tensor]:  # fmt: skip
    """What `start` has become after `add(state, first)` for every `batch` prompts, from number `first` on; bit for bit the
    same whatever of it is in `folder`.

    There it goes on from the longest beginning of the list, of whole batches, that is kept. Kept are the state after the
    whole list, and after every STRIDE batches the state so far in place of the one before. Otherwise as `cached`.
    """
    shelf, count = _shelf(backbone, prompts, kind, folder), len(prompts)
    done, state = next(shelf.beginnings(batch), (0, None)) if shelf else (0, None)
    if shelf and done < count:
        check_writable(shelf.paths[-1])
    state, kept = _plain(start if state is None else state), 0
    for first in range(done, count, batch):
        state, after = _plain(add(state, first)), min(first + batch, count)
        if shelf and (after == count or after % (STRIDE * batch) == 0):
            shelf.write(after, state)
            if kept and (after < count or after % batch == 0):  # an odd end is none to go on from: the one before stays
                shelf.paths[kept].unlink(missing_ok=True)
            kept = after
    return state


def text_digest(backbone: Backbone) -> str | None:
    """What a prompt's features depend on, as a hash: weights and settings of the text encoder, tokenizer, padding.

    The same for a live pipeline and for its folder. None for an encoder whose settings are not known here.
    """
    tower, tokenizer = backbone.tower, getattr(getattr(backbone, "tokenizer", None), "backend_tokenizer", None)
    if not isinstance(tower, ClipTower) or tokenizer is None:
        return None
    read = json.loads(tokenizer.to_str()) | {"padding": None, "truncation": None}  # state that calls leave behind
    bend = [round(float(value), 3) for value in tower.activation(torch.tensor([-1.0, 1.0]))]
    device = tower.weights.get("final_layer_norm.weight").device.type
    settings = [tower.depth, tower.heads, tower.eps, str(tower.dtype), bend, device]
    empty = backbone.tokenize([""]).ids.tolist()  # begin, end, padding and length
    found = hashlib.sha256(json.dumps([settings, read, empty], sort_keys=True).encode())
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing lets other threads run
        for line in pool.map(lambda name: _named(tower, name), sorted(tower.weights.names())):
            found.update(line.encode())
    return found.hexdigest()


@dataclass
class _Shelf:
    """The files of a list's beginnings: `paths[n]` has what its first n prompts give."""

    paths: list[Path] = field(repr=False)
    full: bool = False
    """Whether a file could not be written: then no other is tried."""

    def read(self, count: int) -> dict[str, Tensor] | None:
        """What the first `count` prompts give, if it is here."""
        return _read(self.paths[count])

    def beginnings(self, batch: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """What is here of the whole list and of its whole batches, the longest first."""
        count = len(self.paths) - 1
        for length in (count, *range(count - 1 - (count - 1) % batch, 0, -batch)):
            if found := self.read(length):
                yield length, found

    def write(self, count: int, state: dict[str, Tensor]) -> None:
        """Keeps what the first `count` prompts give; that it cannot is a warning: a full disk should not lose the work."""
        if self.full:
            return
        try:
            write_whole(self.paths[count], save(state, {"digest": _checksum(state)}))
        except EditError as error:
            self.full = True
            _warn(str(error))


def _shelf(backbone: Backbone, prompts: Sequence[str], kind: str, folder: Path | None) -> _Shelf | None:
    """Where `folder` has the list; None without a folder or prompts, and with a warning for an encoder that has no digest."""
    if folder is None or not prompts:
        return None
    model = text_digest(backbone)
    if model is None:
        _warn(f"{backbone.model_id} has a text encoder that cannot be recognised again: {folder} was not used")
        return None
    running, paths = hashlib.sha256(json.dumps([FORMAT, kind, model]).encode()), [Path(folder)]
    for prompt in prompts:
        running.update(f"{json.dumps(prompt)}\n".encode())
        paths.append(Path(folder) / f"{running.hexdigest()}.safetensors")
    return _Shelf(paths)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As a file gives them back: what follows then rounds the same way with a cache and without."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _named(tower: ClipTower, name: str) -> str:
    """A weight's name, without the prefix that only some files have, and its hash; integer buffers do not count."""
    tensor = tower.weights.read(name).detach()  # not `get`, which refuses integers
    return f"{name.removeprefix('text_model.')} {digest(tensor)}\n" if tensor.is_floating_point() else ""


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file that is whole; None if there is none, and with a warning if it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            note = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        _warn(f"the cache file {path} cannot be read ({error}): computed again")
        return None
    if note.get("digest") != _checksum(tensors):
        _warn(f"the cache file {path} is damaged: computed again")
        return None
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.reshape(-1).view(torch.uint8)
        found.update(memoryview(raw.numpy()))  # pyright: ignore[reportArgumentType]
    return found.hexdigest()


def _warn(line: str) -> None:
    warnings.warn(line, CacheWarning, stacklevel=3)
