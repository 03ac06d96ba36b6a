"""What methods compute from the retained prompts, kept in a folder between fits (`--retain-cache FOLDER`).

A file's name is the digest of all that decides its content: the text encoder's weights and settings, the tokenizer,
the prompts in their order, and what is computed. Whatever differs gives another file, so that nothing in the folder
is ever out of date, and any of it can be deleted. With the file there, no retained prompt is encoded.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from erasekit import solvers
from erasekit.backbones._clip import ClipTower
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.errors import EditError
from erasekit.files import check_writable, write_whole
from erasekit.fingerprint import digest
from erasekit.methods import Progress
from erasekit.methods._features import encoded, last_subject

FORMAT = 1
"""Part of every digest: raise it when the meaning of a stored tensor changes."""


class CacheWarning(UserWarning):
    """A cache file could not be used or written; the edit is the same, only later."""


def cached(
    backbone: Backbone,
    prompts: Sequence[str],
    kind: str,
    compute: Callable[[], Mapping[str, Tensor]],
    *,
    folder: Path | None,
) -> dict[str, Tensor]:
    """`compute()`, or the same tensors bit for bit from `folder` if they were computed for this model and list before.

    `kind` says in words what is computed, with every setting that changes it. Without a folder, or without prompts,
    nothing is read or written. A damaged file is computed again, with a `CacheWarning`. Raises `EditError` before
    the work where the folder cannot be written.
    """
    model = text_digest(backbone) if folder is not None and prompts else None
    if folder is None or model is None:
        if folder is not None and prompts:
            _warn(f"{backbone.model_id} has a text encoder that cannot be recognised again: {folder} was not used")
        return _plain(compute())
    key = hashlib.sha256(json.dumps([FORMAT, kind, model, list(prompts)]).encode()).hexdigest()
    path = Path(folder) / f"{key}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    check_writable(path)
    made = _plain(compute())
    try:
        write_whole(path, save(made, {"digest": _checksum(made)}))
    except EditError as error:  # the work is done: a full disk should not lose it
        _warn(str(error))
    return made


def retained_last_subject(
    backbone: Backbone, names: Sequence[str], *, folder: Path | None, progress: Progress
) -> Float[Tensor, "d n"]:
    """The feature of every retained prompt's last subject token, as columns in float64, from the cache if there is one."""

    def compute() -> dict[str, Tensor]:
        found = last_subject(backbone, names, progress=progress, what="encoding the retained")
        return {"columns": found.float()}  # exact: the encoder hands out float32

    if not names:
        return torch.zeros(backbone.weight(backbone.sites("cross.kv")[0]).shape[1], 0, dtype=torch.float64)
    found = cached(backbone, names, "last subject token", compute, folder=folder)
    return found["columns"].double()


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


def erasable(columns: Float[Tensor, "d n"], metric: solvers.Prior, *, scale: float) -> Float[Tensor, " n"]:
    """The share in 0..1 of each column's gap that closes if it alone is asked for: s / (1 + s), s = a x' C^-1 x.

    `metric` is C = ridge I + what is retained, `scale` is a. A column in the retained span has a small share.
    """
    white = torch.linalg.solve_triangular(metric.lower, columns.to("cpu", torch.float64), upper=False)
    reach = scale * white.square().sum(0)
    return reach / (1 + reach)


def held_back(
    backbone: Backbone,
    request: EraseRequest,
    moment: Float[Tensor, "d d"],
    *,
    ridge: float,
    scale: float,
    progress: Progress,
    base: tuple[Float[Tensor, "d d"], float] | None = None,
    ends: bool = False,
) -> list[str]:
    """A warning that names the targets of which the retained (weighted second moment `moment`) leaves less than half
    erasable, and which fraction that is; relative to what is erasable with nothing retained (then `base` is what is held
    in any case, a part of `moment`, and the ridge of that). `ends`: looked at are the first end tokens, else the last
    subject tokens."""
    if not request.retain:
        return []
    columns = _looked_at(backbone, request.targets, ends=ends, progress=progress)
    alone = base or (columns.new_zeros(moment.shape), ridge)
    shares = [erasable(columns, solvers.prior(part, ridge=own), scale=scale) for part, own in ((moment, ridge), alone)]
    left = shares[0] / shares[1]
    low = [i for i in left.argsort().tolist() if left[i] < 0.5]
    if not low:
        return []
    worst = ", ".join(f"{request.targets[i]!r} {float(left[i]):.0%}" for i in low[:5])
    return [
        f"the retained prompts span {len(low)} of {len(request.targets)} targets; the fraction left erasable: {worst}"
        f"{' ...' if len(low) > 5 else ''}; drop retained prompts that are close to them, or weigh the retained less"
    ]


def _looked_at(backbone: Backbone, targets: Sequence[str], *, ends: bool, progress: Progress) -> Float[Tensor, "d n"]:
    if not ends:
        return last_subject(backbone, targets, progress=progress, what="looking at the targets")
    rows = [rows[last + 1] for rows, last in encoded(backbone, targets, whole=False)]
    return torch.stack(rows, 1).double()


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
