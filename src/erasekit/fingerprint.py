"""Which weights an edit was made for: hashes that recognise a base model again, also in another precision."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

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


def matches(weight: Tensor, recorded: dict[str, str]) -> bool:
    """Whether `weight` is the recorded one, or the two are one weight in different precisions."""
    own = digest(weight)
    if own in recorded.values():
        return True
    known = recorded.get("sha256")
    return any(known == digest(weight.to(dtype)) for dtype in ROUNDINGS.values() if known and dtype != weight.dtype)
