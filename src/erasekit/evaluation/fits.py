"""A plan's requests: checked before anything is fitted, fitted once, and found again by another run.

A fitted edit lies under the digest of all that decides it. The device is no part of that: it decides rounding, and a run
that is taken up on another one goes on with the edits that it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from erasekit import __version__
from erasekit.errors import EditError
from erasekit.evaluation.plan import Entry
from erasekit.evaluation.shards import digest, slug, versions
from erasekit.files import write_whole

Progress = Callable[[int, int, str], None]


def place(entry: Entry, out: Path, model_sha256: str) -> Path:
    """Where the entry's edit lies once it is fitted; the file's name holds the digest of all that decides it."""
    name = digest([model_sha256, entry.digest, __version__, versions()])[:8]
    return out / "edits" / f"{slug(entry.name)}-{name}.safetensors"


def foreseen(entry: Entry) -> dict[str, Any]:
    """What the edit will say of its request; `UsageError` for a request that is wrong whatever the model."""
    from erasekit import api, io

    cls, request, config = api.requested(list(entry.targets), entry.method, _wanted(entry), entry.parameters)
    method, pairs = cls.name, dict(zip(request.targets, request.anchors, strict=True))
    if below := getattr(config, "on", ""):  # an edit that this one is added to: what is written then holds both
        other = io.load(below)
        method = method if method == other.method else f"{other.method}+{method}"
        own = dict(zip(other.targets, other.anchors, strict=False))
        pairs = {**own, **{target: anchor for target, anchor in pairs.items() if target not in own}}
    return {"method": method, "parameters": dict(entry.parameters), "targets": list(pairs), "anchors": [*pairs.values()],
            "retain": list(request.retain), "seed": request.seed, "bytes": 0, "self_check": {}}  # fmt: skip


def source(model: str, device: str) -> Any:
    """What edits are fitted from: the model's name, of which only the tensors that are needed are read, or on another
    device than the CPU the whole pipeline there."""
    from erasekit import models

    return model if device == "cpu" or not _at_hand(device) else models.load(model, device=device)


def fit(entry: Entry, model: Any, out: Path, model_sha256: str, *, progress: Progress | None = None) -> Path:
    """The file of the entry's edit, fitted from `model`; a training that was ended goes on from the state beside it.

    Raises as `erasekit.erase`, and `EditError` where a file that the request names was changed meanwhile.
    """
    from erasekit import api, methods

    path, start = place(entry, out, model_sha256), time.perf_counter()
    state = path.with_suffix(".state.safetensors")
    kept = {"checkpoint": state} if methods.trains(methods.resolve(entry.method)[0]) else {}
    edit = api.erase(model, list(entry.targets), method=entry.method, progress=_named(entry.name, progress),
                     **_wanted(entry), **kept, **entry.parameters)  # fmt: skip
    if place(entry, out, model_sha256) != path:
        raise EditError(f"a file that {entry.name} was fitted from was changed meanwhile: run the same command again")
    edit.save(path)
    for left in path.parent.glob(f"{path.stem}.state*.safetensors"):  # and what a method keeps beside its state
        left.unlink()
    write_whole(path.with_suffix(".seconds"), f"{time.perf_counter() - start:.3f}\n".encode())
    return path


def _wanted(entry: Entry) -> dict[str, Any]:
    anchor = None if entry.anchor is None else list(entry.anchor)
    return {"anchor": anchor, "retain": entry.retain, "seed": entry.seed}


def _named(name: str, progress: Progress | None) -> Progress | None:
    """The same, with what is fitted in front of what the method says."""
    if progress is None:
        return None
    return lambda done, total, what: progress(done, total, f"fitting: {name}, {what}")


def _at_hand(device: str) -> bool:
    """Whether this machine has the device: a Ray cluster's need not be here, and then the CPU fits."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):  # torch built without CUDA asserts
        return False
    return True
