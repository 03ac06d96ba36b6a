"""Sums, multiples and low-rank forms of ops. Pure: ops in, ops out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erasekit.coded_ops import Guidance
from erasekit.errors import EditError, UsageError
from erasekit.ops import Dense, LinearOp, LowRank, Op, Projection

# Of a delta's singular values, those below this fraction of the largest are float64 noise and carry nothing.
NOISE = 1e-12


def scaled(op: Op, factor: float) -> Op:
    """The op with `factor` times the change; `EditError` for a kind that has no multiples."""
    if not isinstance(op, LinearOp):
        raise EditError(f"{op.label} is code and cannot be scaled as a value: apply the edit with scale={factor:g}")
    return op.scaled(factor)


def summed(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The same change with at most one `LowRank` or `Dense`, and one `Projection` per bias, for each module; one `Guidance`
    of a name goes along as it is."""
    result: dict[tuple[str, str], Op] = {}
    for i, op in enumerate(ops):
        if isinstance(op, Guidance) and (op.label, "guidance") not in result:
            result[op.label, "guidance"] = op
            continue
        if not isinstance(op, LinearOp):
            raise EditError(f"{op.label} is code and cannot be added: apply the edits one after the other")
        key = (op.site, f"projection {i}" if isinstance(op, Projection) else "sum")
        result[key] = _sum(result[key], op) if key in result else op
    return tuple(result.values())


def _sum(a: Op, b: Op) -> Op:
    """Two deltas of one module as one op: low rank stays low rank, anything with a dense delta is dense."""
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        if a.up.shape[0] != b.up.shape[0] or a.down.shape[1:] != b.down.shape[1:]:
            raise EditError(f"{a.label} has another shape in the other edit: fit both on one model")
        return LowRank(a.component, a.module, torch.cat([a.up, b.up], 1), torch.cat([a.down, b.down], 0))
    first, second = difference(a), difference(b)
    if first.shape != second.shape:
        raise EditError(f"{a.label} has another shape in the other edit: fit both on one model")
    return Dense(a.component, a.module, first + second, _sum_of(bias_of(a), bias_of(b)))


def bias_of(op: Op) -> Tensor | None:
    """What a linear op adds to the bias, or None."""
    return op.bias_delta() if isinstance(op, LinearOp) else None


def _sum_of(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first + second if first is not None and second is not None else second if first is None else first


def difference(op: Op) -> Tensor:
    """The delta of an op that needs no weight to know it, float32 at least."""
    if isinstance(op, LowRank):
        wide = torch.promote_types(op.up.dtype, torch.float32)
        return (op.up.to(wide) @ op.down.to(wide).flatten(1)).reshape(-1, *op.down.shape[1:])
    if isinstance(op, Dense):
        return op.difference
    raise EditError(f"{op.label} depends on the model's weight: use `erasekit apply`, which has the model")


def is_zero(op: LinearOp) -> bool:
    """Whether the op changes nothing."""
    if isinstance(op, LowRank):
        return not (bool(op.up.any()) and bool(op.down.any()))
    if isinstance(op, Dense):
        return not bool(op.difference.any()) and (op.bias is None or not bool(op.bias.any()))
    return False


def check_compression(rank: int | None, energy: float | None) -> None:
    """Raise `UsageError` unless exactly one of the two is given, and in its range."""
    if (rank is None) == (energy is None):
        raise UsageError("compress takes either rank or energy: give one of them")
    if rank is not None and rank < 1:
        raise UsageError(f"the rank {rank} is less than 1: give a positive one")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"the energy {energy} is not in (0, 1]: give a fraction such as 0.99")


def compressed(op: Op, rank: int | None, energy: float | None) -> Op:
    """The best low-rank approximation of the op's delta (Eckart-Young), with balanced factors."""
    if not isinstance(op, LinearOp):
        raise EditError(f"{op.label} has no delta: it cannot be compressed")
    if isinstance(op, Dense) and op.difference.ndim < 2:
        return op
    if bias_of(op) is not None:
        raise EditError(f"{op.label} changes a bias too, which no low-rank form can hold: keep the edit as it is")
    return balanced(op, rank, energy)


@torch.no_grad()
def balanced(op: LinearOp, rank: int | None = None, energy: float | None = None) -> LowRank:
    """The op's delta as `up @ down` with equal singular values on both sides (sqrt each), float32.

    Without `rank` and `energy` it is the same delta to float rounding. A zero delta gives a zero pair of rank 1.
    """
    left, values, right = _svd(op)
    keep = max(1, int((values > NOISE * values[0]).sum()))
    if rank is not None:
        keep = min(keep, rank)
    if energy is not None and values[0] > 0:
        part = values.square().cumsum(0) / values.square().sum()
        keep = min(keep, 1 + int((part < energy * (1 - NOISE)).sum()))
    root = values[:keep].sqrt()
    shape = op.down.shape[1:] if isinstance(op, LowRank) else difference(op).shape[1:]
    up, down = left[:, :keep] * root, root[:, None] * right[:keep]
    return LowRank(op.component, op.module, up.float(), down.reshape(keep, *shape).float())


def _svd(op: LinearOp) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of the delta in float64; of a low-rank op by QR of its factors, never through out x in."""
    if not isinstance(op, LowRank):
        return torch.linalg.svd(difference(op).double().flatten(1), full_matrices=False)
    left, upper = torch.linalg.qr(op.up.double())
    right, lower = torch.linalg.qr(op.down.double().flatten(1).T)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return left @ inner_left, values, inner_right @ right.T


def derived_check(check: dict[str, Any], note: str, *, scale: float | None = None) -> dict[str, Any]:
    """The self-check of an edit that was computed from another: what was measured no longer holds, so it is None
    (a multiple's relative update is known), and `warnings` says why."""
    if scale == 1.0:
        return dict(check)
    unknown = dict.fromkeys(("residual", "residual_before_cast", "relative_update", "retained_drift"))
    update = check.get("relative_update")
    if scale is not None and isinstance(update, (int, float)):
        unknown["relative_update"] = abs(scale) * update
    warning = f"{note} after the fit: residuals were not measured again"
    return check | unknown | {"sites": [], "warnings": [*check.get("warnings", []), warning]}
