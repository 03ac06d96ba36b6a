"""The edit file: one safetensors file, never a pickle, that appears whole or not at all.

Tensors are keyed `ops.<i>.<name>`; the header's metadata holds one JSON document under `erasekit`, and under
`erasekit.sha256` the hash of that document and of all tensors, so that a damaged file is never taken for an edit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from erasekit.coded_ops import KINDS, Adapter, Guidance
from erasekit.edit import Base, Edit
from erasekit.errors import EditError
from erasekit.files import read_bytes, write_whole
from erasekit.ops import Dense, Op

FORMAT = 1
DOCUMENT = "erasekit"
CHECKSUM = "erasekit.sha256"
HEADER_LIMIT = 100_000_000  # the safetensors format's own
PICKLES = {b"PK\x03\x04": "a zip archive (a torch checkpoint?)", b"\x80": "a pickle"}


def save(edit: Edit, path: str | PathLike[str]) -> None:
    """Write the edit to `path`, whole or not at all, also under Ctrl-C, a kill or a full disk.

    Raises:
        EditError: the edit changes nothing or holds values that JSON cannot; the path cannot be written.
    """
    if edit.is_zero:
        raise EditError("the edit changes nothing (all its updates are zero): it is not worth a file; fit it again")
    tensors = {f"ops.{i}.{name}": tensor for i, op in enumerate(edit.ops) for name, tensor in op.tensors().items()}
    text = _document(edit)
    write_whole(path, *pack(tensors, {DOCUMENT: text, CHECKSUM: _checksum(text, tensors)}))


def pack(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, memoryview]:
    """A safetensors file's header and the rest, the same for the same content; tensors that share memory are stored
    apart."""
    own = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    data = pack_tensors(own, metadata)
    size = int.from_bytes(data[:8], "little")
    header = {"__metadata__": None} | json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))  # the library's own order is random
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    return len(text).to_bytes(8, "little") + text, memoryview(data)[8 + size :]


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, those copied whose memory is not theirs alone (large edits are not copied for nothing)."""
    used = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        name: tensor
        if used[tensor.untyped_storage().data_ptr()] == 1 and tensor.untyped_storage().nbytes() == tensor.nbytes
        else tensor.clone()
        for name, tensor in tensors.items()
    }


def load(path: str | PathLike[str]) -> Edit:
    """The edit that was saved at `path`, equal to it in every tensor and value (tuples in parameters become lists).

    Nothing in the file is run.

    Raises:
        EditError: no such file, a pickle, damaged, not an edit, or of a newer format version.
    """
    return parse(read_bytes(path), path)


def parse(data: bytes, path: str | PathLike[str]) -> Edit:
    """The edit in the bytes of a file, for who also needs their hash: read once, both are of the same content.

    `path` is what errors call it; they are those of `load`.
    """
    metadata = _header(data, path).get("__metadata__") or {}
    document = _read_document(metadata, path)
    try:
        tensors = parse_tensors(data)
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise _damaged(path) from error
    if CHECKSUM in metadata and metadata[CHECKSUM] != _checksum(metadata[DOCUMENT], tensors):
        raise _damaged(path)
    try:
        return _edit(document, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _damaged(path) from error


def read_header(path: str | PathLike[str]) -> dict[str, Any]:
    """The JSON document of an edit file, its tensors left unread. Errors as `load`."""
    data = read_bytes(path, header_only=True)
    return _read_document(_header(data, path).get("__metadata__") or {}, path)


# -- writing ----------------------------------------------------------------------------------------------------


def _document(edit: Edit) -> str:
    document = {"format": FORMAT} | edit.describe() | {"self_check": edit.self_check}
    document = {name: value for name, value in document.items() if name not in ("rank_max", "bytes")}
    try:
        return json.dumps(_plain(document), allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise EditError(f"the edit's parameters or self-check are not plain values ({error}): fit it again") from error


def _plain(value: Any) -> Any:
    """Plain JSON data: numbers that are not finite become null, scalars of torch and numpy Python's."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (str, int, float, bool)) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(memoryview(raw.numpy()))  # pyright: ignore[reportArgumentType]
    return found.hexdigest()


# -- reading ----------------------------------------------------------------------------------------------------


def _header(data: bytes, path: str | PathLike[str]) -> dict[str, Any]:
    """The safetensors header of a file's bytes, refused if they are something else or damaged."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 9 or data[8:9] != b"{" or size > HEADER_LIMIT:
        for magic, what in PICKLES.items():
            if data.startswith(magic):
                raise EditError(f"{path} is {what} that could run code and was not opened: give a .safetensors file")
        raise EditError(f"{path} is not a safetensors file, or is damaged: give the file that `erasekit erase` wrote")
    try:
        header = json.loads(data[8 : 8 + size].decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if len(data) < 8 + size or not isinstance(header, dict):
        raise _damaged(path)
    return header


def _read_document(metadata: Any, path: str | PathLike[str]) -> dict[str, Any]:
    if not isinstance(metadata, dict) or DOCUMENT not in metadata:
        raise EditError(f"{path} holds no erasekit edit (an export or another LoRA?): give the file that `erase` wrote")
    try:
        document = json.loads(metadata[DOCUMENT])
        version = int(document["format"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if version > FORMAT:
        raise EditError(f"{path} has format version {version}, this erasekit reads up to {FORMAT}: update erasekit")
    if version < 1:
        raise _damaged(path)
    return document


def _edit(document: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    """The edit of a document and its tensors; any disagreement between the two raises ValueError or KeyError."""
    left = dict(tensors)
    ops = tuple(_op(i, described, left) for i, described in enumerate(document["ops"]))
    if left:
        raise ValueError(f"tensors that belong to no op: {sorted(left)}")
    base = document["base"]
    prints = {str(site): dict(found) for site, found in base["fingerprint"].items()}
    return Edit(
        ops=ops,
        base=Base(str(base["id"]), str(base["family"]), prints),
        method=str(document["method"]),
        parameters=dict(document["parameters"]),
        targets=tuple(document["targets"]),
        anchors=tuple(document["anchors"]),
        retain=tuple(document["retain"]),
        seed=int(document["seed"]),
        versions=dict(document["versions"]),
        self_check=dict(document["self_check"]),
        history=tuple(document.get("history", ())),
    )


def _op(i: int, described: dict[str, Any], left: dict[str, Tensor]) -> Op:
    """Op `i`; takes its tensors out of `left`."""
    tensors = {name: left.pop(f"ops.{i}.{name}") for name in described["shapes"]}
    if any(list(tensors[name].shape) != shape for name, shape in described["shapes"].items()):
        raise ValueError(f"op {i}: shapes differ")
    kind = KINDS.get(described["kind"])
    if kind is None:
        raise EditError(f"op {i} is of the kind {described['kind']!r}, unknown to this erasekit: update erasekit")
    if kind is Guidance:
        return Guidance(described["guidance"], tensors, described["config"])
    place = {"component": described["component"], "module": described["module"]}
    if kind is Adapter:
        return Adapter(**place, adapter=described["adapter"], tensors=tensors, config=described["config"])
    if kind is Dense:
        return Dense(**place, delta=tensors["delta"], bias=tensors.get("bias"))
    return kind(**place, **tensors)


def _damaged(path: str | PathLike[str]) -> EditError:
    return EditError(f"{path} is truncated or damaged: copy it again, or make it again with `erasekit erase`")
