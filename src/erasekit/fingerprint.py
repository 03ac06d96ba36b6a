"""Which weights an edit was made for: hashes that recognise a base model again, also rounded to 16 bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ROUNDINGS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Base:
    """The model that an edit belongs to: its id, its family, and for each edited module ("component/module",
    without `text_model.`) the fingerprint of the original weight."""

    id: str
    family: str
    fingerprint: dict[str, dict[str, str]] = field(default_factory=dict)

    def recorded(self, site: str) -> dict[str, str] | None:
        """The fingerprint of `site`, also if it was written with `text_model.`; None if there is none."""
        component, _, module = site.partition("/")
        return self.fingerprint.get(site) or self.fingerprint.get(f"{component}/text_model.{module}")


@torch.no_grad()
def fingerprint(weight: Tensor) -> dict[str, str]:
    """Hashes of a weight of any shape: `sha256` of its values, `float16` and `bfloat16` of the rounded values.

    Each is the sha256 of the shape and the values as float32 bytes, so that one model gives the same `sha256`
    from float32 files and from a float32 copy, and a 16-bit copy of it is found under the rounding's name.
    """
    own = digest(weight)
    return {"sha256": own} | {
        name: own if weight.dtype == dtype else digest(weight.to(dtype)) for name, dtype in ROUNDINGS.items()
    }


@torch.no_grad()
def digest(weight: Tensor) -> str:
    """The sha256 of a tensor's shape and of its values as float32 bytes (no copy if it is float32 on the CPU)."""
    values = weight.detach().to(device="cpu", dtype=torch.float32).contiguous()
    found = hashlib.sha256(repr(tuple(values.shape)).encode())
    found.update(memoryview(values.numpy().reshape(-1)))  # pyright: ignore[reportArgumentType]
    return found.hexdigest()


def parts_sha256(parts: Mapping[str, nn.Module]) -> str:
    """One sha256 of every tensor of the named parts as they are stored."""
    return hashlib.sha256(json.dumps(stored_sha256(parts)).encode()).hexdigest()


def stored_sha256(parts: Mapping[str, nn.Module]) -> dict[str, str]:
    """The sha256 of each tensor of the named parts as it is stored, under "part/name"."""
    tensors = {f"{part}/{name}": tensor for part, module in parts.items()
               for name, tensor in sorted(module.state_dict().items())}  # fmt: skip
    with ThreadPoolExecutor() as pool:
        return dict(zip(tensors, pool.map(bytes_sha256, tensors.values()), strict=True))


def bytes_sha256(tensor: Tensor) -> str:
    """The sha256 of a tensor's dtype, shape and bytes."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(memoryview(values.numpy()))  # pyright: ignore[reportArgumentType]
    return found.hexdigest()


def matches(weight: Tensor, recorded: dict[str, str]) -> bool:
    """Whether `weight` is the recorded one, or one of the two is the other rounded to float16 or bfloat16.

    Roundings of one float32 weight to float16 and to bfloat16 do not match: neither can be computed from the other.
    """
    own = digest(weight)
    if own in recorded.values():
        return True
    known = recorded.get("sha256")
    return any(known == digest(weight.to(dtype)) for dtype in ROUNDINGS.values() if known and dtype != weight.dtype)


def strangers(weight: Tensor, recorded: Mapping[str, str]) -> str:
    """What to add to "give that model" where weight and record are of different 16-bit precisions, which do not match even
    if they come from one model; else ""."""
    now, own = str(weight.dtype).removeprefix("torch."), recorded.get("sha256")
    # bfloat16 first: most of its values are float16's too.
    made = next((name for name in ("bfloat16", "float16") if own and recorded.get(name) == own), "")
    if {now, made} != set(ROUNDINGS):
        return ""
    return f" in {made} or float32 (these weights are {now}, which {made} is not recognised in)"
