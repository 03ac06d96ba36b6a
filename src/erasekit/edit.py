"""An edit: a value that says what changes in a model, holds no live model, and knows how it was made.

The verbs: `with edit.applied(pipe)`, `edit.apply(pipe).remove()`, `edit.fuse(pipe)`, `0.7 * edit`, `a + b`,
`edit.compress(rank=...)`, and `save`, `load`, `export`, which hand over to `io` and `export`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from os import PathLike
from typing import Any

from erasekit import algebra
from erasekit.attach import Handle, attach, is_edited
from erasekit.coded_ops import Adapter, Guidance
from erasekit.errors import BaseMismatchError, EditError, UsageError
from erasekit.fingerprint import Base, fingerprint
from erasekit.ops import Dense, LinearOp, LowRank, Op, Projection

__all__ = [
    "Adapter", "Base", "Dense", "Edit", "Guidance", "Handle", "LinearOp", "LowRank", "Op", "Projection",
    "fingerprint", "library_versions",
]  # fmt: skip

LIBRARIES = ("erasekit", "torch", "diffusers", "transformers", "safetensors")


def library_versions() -> dict[str, str]:
    """The installed versions of the libraries that decide an edit's numbers: what `Edit.versions` holds."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found


@dataclass(frozen=True, eq=False)
class Edit:
    """Ops for one base model, with the request, method, parameters and self-check that they came from.

    `self_check` is the method's own measurement at fit time; what algebra makes unknown is None there, with a
    warning that says so. `history` lists what was done since the fit ("scaled by 0.7").
    """

    ops: tuple[Op, ...]
    base: Base
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    self_check: dict[str, Any] = field(default_factory=dict)
    history: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ops:
            raise EditError("the edit has no op: nothing would change; fit it again")

    # -- on a pipeline ------------------------------------------------------------------------------------------

    def apply(self, pipe: Any, *, scale: float | int = 1.0, force: bool = False) -> Handle:
        """Put the edit on a pipeline until `handle.remove()`, which restores the weights bitwise.

        `scale` multiplies the change (0 leaves the model as it is). Edits that are applied one inside the other
        add up, and come off in reverse order. See `attach.attach` for the errors.
        """
        return attach(pipe, self.ops, self.base, scale=_number(scale), force=force)

    @contextmanager
    def applied(self, pipe: Any, *, scale: float | int = 1.0, force: bool = False) -> Iterator[Any]:
        """The pipeline with the edit on, inside `with`; after it the weights are bitwise those of before."""
        handle = self.apply(pipe, scale=scale, force=force)
        try:
            yield pipe
        finally:
            handle.remove()

    def fuse(self, pipe: Any, *, scale: float | int = 1.0, force: bool = False) -> None:
        """Put the edit on for good: nothing of the old weights is kept. Refused while an edit is applied."""
        self.require_fusible()
        if is_edited(pipe, self.ops):
            raise EditError("an edit is applied to this pipeline: remove it before fusing, or add the edits and fuse")
        self.apply(pipe, scale=scale, force=force).keep()

    def require_fusible(self) -> None:
        """Raises `EditError` naming an op that is code: it can be applied, and never become weights."""
        for op in self.ops:
            if not isinstance(op, LinearOp):
                raise EditError(
                    f"{op.label} is code and not a change of weights: it cannot be fused; draw with it instead "
                    "(`erasekit generate --edit`, or edit.applied(pipe))"
                )

    # -- algebra ------------------------------------------------------------------------------------------------

    def __mul__(self, factor: float | int) -> Edit:
        """The edit whose change is `factor` times this one's."""
        if not isinstance(factor, (int, float)):
            return NotImplemented
        scale = float(_number(factor))
        check = algebra.derived_check(self.self_check, f"scaled by {scale:g}", scale=scale)
        return self._changed(tuple(algebra.scaled(op, scale) for op in self.ops), f"scaled by {scale:g}", check)

    __rmul__ = __mul__

    def __neg__(self) -> Edit:
        return -1.0 * self

    def __add__(self, other: Edit) -> Edit:
        """The edit whose change is the sum of both; ops on one module become one where their kinds allow it.

        A guidance goes along as it is: a target of its own that this edit has already keeps this edit's anchor.
        """
        if not isinstance(other, Edit):
            return NotImplemented
        ops = algebra.summed(self.ops + other.ops)
        maps = any(not isinstance(op, Guidance) for op in other.ops)
        new = [i for i, target in enumerate(other.targets) if maps or target not in self.targets]
        check = algebra.derived_check(self.self_check, f"sum of {self.method} and {other.method}")
        return Edit(
            ops=ops,
            base=_common_base(self.base, other.base),
            method=self.method if self.method == other.method else f"{self.method}+{other.method}",
            parameters={"parts": [self.parameters, other.parameters]},
            targets=self.targets + tuple(other.targets[i] for i in new),
            anchors=self.anchors + tuple(other.anchors[i] for i in new if i < len(other.anchors)),
            retain=tuple(dict.fromkeys(self.retain + other.retain)),
            seed=self.seed,
            versions=other.versions | self.versions,
            self_check=check
            | {"modules": len({op.site for op in ops if op.component}), "parts": [self.self_check, other.self_check]},
            history=(*self.history, *other.history, f"sum of {self.method} and {other.method}"),
        )

    def compress(self, *, rank: int | None = None, energy: float | None = None) -> Edit:
        """The edit with each dense or low-rank delta cut to its best approximation: of rank at most `rank`, or of
        the least rank that keeps the fraction `energy` (0..1] of the squared Frobenius norm.

        Vectors (norms, biases) stay as they are. A `Projection` has no delta without its weight: `EditError`.
        """
        algebra.check_compression(rank, energy)
        note = f"compressed to rank {rank}" if rank is not None else f"compressed to energy {energy:g}"
        ops = tuple(algebra.compressed(op, rank, energy) for op in self.ops)
        return self._changed(ops, note, algebra.derived_check(self.self_check, note))

    def _changed(self, ops: tuple[Op, ...], note: str, check: dict[str, Any]) -> Edit:
        return replace(self, ops=ops, self_check=check, history=(*self.history, note))

    # -- what it is ---------------------------------------------------------------------------------------------

    @property
    def rank_max(self) -> int:
        """The largest rank that a delta can have (0 if no op is linear)."""
        return max((op.rank for op in self.ops if isinstance(op, LinearOp)), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: the size of the file but for its header."""
        return sum(tensor.numel() * tensor.element_size() for op in self.ops for tensor in op.tensors().values())

    @property
    def is_zero(self) -> bool:
        """Whether no linear op changes anything; an edit with code is never zero."""
        return all(isinstance(op, LinearOp) and algebra.is_zero(op) for op in self.ops)

    def describe(self) -> dict[str, Any]:
        """All but the tensors, as plain data: what `show --json` prints."""
        absent = {"modules": None, "residual": None, "relative_update": None, "retained_drift": None}
        return {
            "method": self.method,
            "parameters": self.parameters,
            "targets": list(self.targets),
            "anchors": list(self.anchors),
            "retain": list(self.retain),
            "seed": self.seed,
            "base": {"id": self.base.id, "family": self.base.family, "fingerprint": self.base.fingerprint},
            "ops": [op.describe() for op in self.ops],
            "rank_max": self.rank_max,
            "bytes": self.nbytes,
            "versions": self.versions,
            "history": list(self.history),
            "self_check": absent | self.self_check,
        }

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write the edit's file, whole or not at all (`io.save`)."""
        from erasekit import io

        io.save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Edit:
        """The edit that a file holds (`io.load`)."""
        from erasekit import io

        return io.load(path)

    def export(self, path: str | PathLike[str], *, format: str) -> str:
        """Write the edit for other programs: "peft", "kohya" or "comfy"; returns what they cannot hold (`export.export`)."""
        from erasekit import export

        return export.export(self, path, format)


def _number(value: float | int) -> float | int:
    if not math.isfinite(value):
        raise UsageError(f"the scale {value} is not a number: give a finite one")
    return value


def _common_base(a: Base, b: Base) -> Base:
    """The base of a sum: both edits must be for one model; the modules that both edit prove it."""
    shared = set(a.fingerprint) & set(b.fingerprint)
    other = sorted(site for site in shared if not set(a.fingerprint[site].values()) & set(b.fingerprint[site].values()))
    if other or a.family != b.family:
        where = f"{len(other)} modules differ, such as {other[0]}" if other else f"{a.family} and {b.family}"
        raise BaseMismatchError(f"the edits are for different models ({a.id} and {b.id}; {where}): fit both on one")
    return Base(a.id, a.family, b.fingerprint | a.fingerprint)
