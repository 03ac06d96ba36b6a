"""The solves alone at SDXL's shapes: random features through `erasekit.solvers`, no model (SDXL has no backbone yet).

Features are 2048 wide (both encoders' outputs side by side) and stand for prompts that are already encoded. The
matrices are SDXL's cross-attention K and V, counted from its public configuration; one of each shape is drawn and used
SAMPLE times, and the time counts for all of its shape. Beside it one d x d inverse for every matrix, timed on one of
each shape; not for the largest case, where the sums alone take minutes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from measuring import high_water
from shapes import xl_matrices
from textbook import uce
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Site
from erasekit.methods._cross import make_op

LAMB, SCALE, SAMPLE = 0.5, 0.1, 6


@dataclass(frozen=True)
class Case:
    """So many columns that change and so many that stay; `exact` as ErasePro solves, else as UCE does; `beside`: the
    textbook form is timed too."""

    changed: int
    retained: int
    exact: bool = False
    beside: bool = True


CASES = {
    "1 target, 75 rows, exact": Case(75, 0, exact=True, beside=False),
    "10 targets of 75 rows, 100 retained of 77": Case(750, 7700),
    "100 last tokens, 1,000 retained": Case(100, 1000),
    "1,000 last tokens, 30,000 retained": Case(1000, 30000, beside=False),
}


def run(small: bool) -> dict[str, Any]:
    """Every case: seconds, bytes of the edit, the ratio to one inverse a matrix, the distance of the results."""
    matrices = xl_matrices(small)
    torch.manual_seed(0)
    weights = {shape: torch.randn(shape) / shape[1] ** 0.5 for shape in matrices}
    found = {name: solved(case, matrices, weights, small) for name, case in CASES.items()}
    counted = {f"{out} x {width}": count for (out, width), count in matrices.items()}
    return {"matrices": sum(matrices.values()), "shapes": counted, "cases": found, "peak_rss_mb": high_water() // 10**6}


def solved(
    case: Case, matrices: dict[tuple[int, int], int], weights: dict[tuple[int, int], Tensor], small: bool
) -> dict[str, Any]:
    width = next(iter(matrices))[1]
    counts = (case.changed, case.changed, case.retained)
    x, y, kept = (torch.randn(width, -(-n // 50) if small else n) for n in counts)
    started = time.perf_counter()
    factor = one_solve(case, x, y, kept)
    shared = seconds = time.perf_counter() - started
    size, ops, site = 0, {}, Site("unet", "m", "cross.k", 0)
    for shape, count in matrices.items():
        started, used = time.perf_counter(), min(count, SAMPLE)
        for _ in range(used):
            ops[shape] = make_op(site, weights[shape], factor.up(weights[shape]), factor.right)
        seconds += (time.perf_counter() - started) * count / used
        size += count * sum(4 * tensor.numel() for tensor in ops[shape].tensors().values())
    taken = {"seconds": round(seconds, 3), "shared_solve": round(shared, 3), "edit_bytes": size}
    return taken | beside(matrices, weights, (x, y, kept), ops, seconds) if case.beside else taken


def one_solve(case: Case, x: Tensor, y: Tensor, kept: Tensor) -> solvers.RightFactor:
    if case.exact:
        return solvers.solve(x, y)
    metric = solvers.prior(SCALE * solvers.second_moment(kept), ridge=LAMB)
    return solvers.solve(x, y, prior=metric, scale=1.0).compact()


def beside(
    matrices: dict[tuple[int, int], int],
    weights: dict[tuple[int, int], Tensor],
    features: tuple[Tensor, Tensor, Tensor],
    ops: dict[tuple[int, int], Any],
    seconds: float,
) -> dict[str, Any]:
    """The textbook form on one matrix of each shape: its seconds for all of them in float32, its result in float64."""
    plain, worst = 0.0, 0.0
    x, y, kept = (part.T for part in features)
    for shape, count in matrices.items():
        started = time.perf_counter()
        uce(weights[shape], [(x, y)], [kept], lamb=LAMB, scale=SCALE)
        plain += count * (time.perf_counter() - started)
        old = weights[shape].double()
        new = uce(old, [(x.double(), y.double())], [kept.double()], lamb=LAMB, scale=SCALE)
        worst = max(worst, float((old + ops[shape].delta(old) - new).norm() / new.norm()))
    return {"textbook_seconds": round(plain, 3), "ratio": round(plain / seconds, 1), "difference": worst}
