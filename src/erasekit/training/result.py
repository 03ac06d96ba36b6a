"""From trained tensors to an edit: exact differences, and what the fit measured of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from erasekit.edit import Base, Dense, Edit, Op, library_versions
from erasekit.errors import DivergenceError, InfeasibleError
from erasekit.training.bench import Bench
from erasekit.training.parameters import Student, Trained
from erasekit.training.probes import doubled

CURVE = 20  # points of the loss curve that an edit's file keeps


@torch.no_grad()
def settle(student: Student) -> list[Dense]:
    """One op a module with the difference of its weight and bias; from here on the student computes, bit for bit,
    with the weights that the edit writes (a difference of float32 numbers may round, so it is added back)."""
    changes: dict[str, Tensor] = {}
    for name, tensor in student.trained.items():
        base = student.frozen[name].detach().to(tensor.dtype)
        change = tensor - base
        tensor.copy_(base + change)
        changes[name] = change.cpu()
    return [Dense("unet", m, changes[f"{m}.weight"], changes.get(f"{m}.bias")) for m in student.modules]


def finish(
    bench: Bench[Any],
    ops: Sequence[Op],
    records: Sequence[dict[str, Any]],
    losses: Sequence[float],
    *,
    method: str,
    parameters: dict[str, object],
    residual: float,
    drift: float | None,
    warnings: Sequence[str] = (),
    numbers: Mapping[str, Any] = MappingProxyType({}),
    students: int = 1,
) -> Edit:
    """The edit with its self-check. `records`: one a changed module, as `record` makes them.

    `residual`: how far the student is from what was asked, relative to how far the model was; `drift`: how far it moved
    on what is retained (None where nothing is); `numbers`: what the method's own self-check adds; `students`: how many of
    the bench's size were trained one after the other. Raises `InfeasibleError` for an edit that changes nothing,
    `DivergenceError` for numbers that are not finite.
    """
    update = max(record["relative_update"] for record in records)
    if update == 0:
        raise InfeasibleError("training changed nothing: the model reads target and anchor as the same; "
                              "choose another anchor")  # fmt: skip
    if not all(map(math.isfinite, (update, residual, drift or 0.0))):
        raise DivergenceError("the trained model gives numbers that are not finite: lower the rate")
    far = "training left the model as far from what was asked as it was: raise the rate or the steps"
    check = {
        "modules": len(records), "residual": residual, "residual_before_cast": residual, "relative_update": update,
        "retained_drift": drift, "sites": list(records), "warnings": [*warnings, *[far] * (residual >= 1)],
        "training": {"steps": len(losses), "numbers": students * _count(bench.student), "loss": _curve(losses)},
        **numbers,
    }  # fmt: skip
    request, base = bench.request, Base(bench.backbone.model_id, bench.backbone.family, bench.prints)
    return Edit(
        ops=tuple(ops), base=base, method=method, parameters=parameters, targets=request.targets,
        anchors=request.anchors, retain=request.retain, seed=request.seed, versions=library_versions(),
        self_check=check,
    )  # fmt: skip


def changes(bench: Bench[Student], ops: Sequence[Dense]) -> list[dict[str, Any]]:
    """The records of full differences: of weight and bias together, relative to their norm."""
    return [_change(bench, op) for op in ops]


def record(bench: Bench[Any], module: str, update: float, rank: int) -> dict[str, Any]:
    """What a self-check says of one changed module of the U-Net; `update` is relative to what was there."""
    return {"site": f"unet/{module}", "group": group(module), "depth": bench.backbone.tower.depth,
            "relative_update": update, "rank": rank}  # fmt: skip


def _change(bench: Bench[Student], op: Dense) -> dict[str, Any]:
    frozen = [bench.student.frozen[f"{op.module}.{leaf}"] for leaf in ("weight", "bias")[: len(op.tensors())]]
    old = math.hypot(*(float(doubled(tensor).norm()) for tensor in frozen))
    new = math.hypot(*(float(doubled(tensor).norm()) for tensor in op.tensors().values()))
    return record(bench, op.module, new / max(old, 1e-300), op.rank)


def group(module: str) -> str:
    """The family-neutral name of a U-Net's module: "cross.k", "self.out", "feed", "resnet", "time", "other"."""
    for part, name in (("attn2", "cross"), ("attn1", "self")):
        if f".{part}." in module:
            return f"{name}.{module.removesuffix('.0').rpartition('to_')[2]}"
    parts = {".ff.": "feed", ".resnets.": "resnet", "time_embedding.": "time"}
    return next((name for part, name in parts.items() if part in f".{module}."), "other")


def _curve(losses: Sequence[float]) -> list[float]:
    """The mean loss of at most `CURVE` equal stretches."""
    count = min(CURVE, len(losses))
    edges = [len(losses) * i // count for i in range(count + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]


def _count(student: Trained) -> int:
    return sum(tensor.numel() for tensor in student.trained.values())
