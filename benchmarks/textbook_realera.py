"""RealEra's closed-form part (arXiv 2410.09140) as its formulas read: points around a concept, sums, one inverse a matrix.

The paper has the two sets, bounded by distance and cosine; the rest is this project's reconstruction, as
`erasekit.methods.realera_text` says. Features are rows (n, d), weights (o, d).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from textbook import Pair
from torch import Tensor

Bounds = tuple[float, float]


def realera(
    old: Tensor, pairs: Iterable[Pair], outside: Iterable[Tensor], kept: Iterable[Tensor],
    *, beyond: float, prior: float, lamb: float,
) -> Tensor:  # fmt: skip
    """W = (lamb W_o + sum W_o y x' + b sum W_o z z' + g sum W_o p p') (lamb I + sum x x' + b sum z z' + g sum p p')^-1, for
    one matrix: x the concept's rows and its neighbours, y the anchor's, z the outsiders, p the kept rows."""
    top, bottom = lamb * old, lamb * torch.eye(old.shape[1], dtype=old.dtype)
    for x, y in pairs:
        top = top + (old @ y.T) @ x
        bottom = bottom + x.T @ x
    for weight, blocks in ((beyond, outside), (prior, kept)):
        for z in blocks:
            top = top + weight * (old @ z.T) @ z
            bottom = bottom + weight * z.T @ z
    return top @ torch.linalg.inv(bottom)


def around(e: Tensor, count: int, *, distance: Bounds, cosine: Bounds, generator: torch.Generator) -> Tensor:
    """Random points (count, d) around e, one at a time: e' = q (s e / |e| + sqrt(1 - s^2) u), u a random unit vector
    orthogonal to e, q = s |e| +- sqrt(r^2 - |e|^2 (1 - s^2)), s the cosine to e and r the distance from it, which is bounded
    in units of |e|. The draws in their order: all s, all r, all signs, all u."""
    options = {"dtype": torch.float64, "generator": generator}
    share, far, coin = (torch.rand(count, **options) for _ in range(3))
    directions = torch.randn(len(e), count, **options)
    found = []
    for k in range(count):
        s = float(cosine[0] + (cosine[1] - cosine[0]) * share[k])
        least = max((1 - s * s) ** 0.5, distance[0])
        r = float(least + (distance[1] - least) * far[k])
        found.append(placed(e, directions[:, k], s, r, bool(coin[k] < 0.5)))
    return torch.stack(found) if found else e.new_zeros(0, len(e))


def placed(e: Tensor, direction: Tensor, s: float, r: float, longer: bool) -> Tensor:
    """The point at cosine s and distance r |e|; the shorter one only where it lies on the side of e."""
    size = e.norm()
    u = direction - e * (e @ direction) / size**2
    root = max(0.0, r * r - (1 - s * s)) ** 0.5
    q = size * (s + root if longer or s - root < 1e-6 else s - root)
    return q * (s * e / size + (1 - s * s) ** 0.5 * u / u.norm())
