"""What methods share about the retained prompts: their columns, and how much of a target they leave erasable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.methods import Progress
from erasekit.methods._cache import cached
from erasekit.methods._features import encoded, last_subject


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
