"""Points around a feature at given cosines to it and distances from it, drawn exactly, without rejection.

For a feature e, a cosine s, a distance r >= sqrt(1 - s^2) in units of ||e|| and a random unit vector u orthogonal to e:
`e' = q (s e + |e| sqrt(1 - s^2) u)` with `q = s +- sqrt(r^2 - (1 - s^2))`, both roots as likely.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from erasekit.errors import UsageError


def place(
    centre: Float[Tensor, " d"],
    directions: Float[Tensor, "d k"],
    cosine: Float[Tensor, " k"],
    distance: Float[Tensor, " k"],
    longer: Bool[Tensor, " k"],
) -> Float[Tensor, "d k"]:
    """Points at exactly these cosines to `centre` and distances from it, the latter in units of its norm.

    `directions` are made orthogonal to the centre; `longer` chooses the root q (the shorter point is taken only
    where it does not vanish or turn its sign). Raises ValueError where distance < sqrt(1 - cosine^2).
    """
    size = centre.norm()
    unit = (centre / size)[:, None]
    for _ in range(2):  # the second pass removes what rounding left
        directions = directions - unit * (unit * directions).sum(0)
    aside = (1 - cosine) * (1 + cosine)
    room = distance.square() - aside
    if bool((room < -1e-12).any()):
        raise ValueError("a distance is below sqrt(1 - cosine^2): no point is there")
    root = room.clamp_min(0).sqrt()
    length = torch.where(longer | (cosine - root < 1e-6), cosine + root, cosine - root)
    return size * length * (cosine * unit + aside.sqrt() * directions / directions.norm(dim=0))


def draw(
    centre: Float[Tensor, " d"],
    count: int,
    *,
    distance: tuple[float, float],
    cosine: tuple[float, float],
    generator: torch.Generator,
) -> Float[Tensor, "d count"]:
    """`count` random points around `centre` (float64) with both constraints met: cosine uniform in its bounds, then
    distance uniform in what is left of its own. Nothing is rejected."""
    options: dict[str, Any] = {"dtype": torch.float64, "generator": generator}
    s = cosine[0] + (cosine[1] - cosine[0]) * torch.rand(count, **options)
    least = ((1 - s) * (1 + s)).sqrt().clamp_min(distance[0])
    r = least + (distance[1] - least) * torch.rand(count, **options)
    longer = torch.rand(count, **options) < 0.5
    return place(centre, torch.randn(len(centre), count, **options), s, r, longer)


def check_bounds(name: str, values: tuple[float, ...], high: float) -> None:
    """`UsageError` unless the values are three ascending numbers from 0 to `high`."""
    if len(values) != 3 or not 0 <= values[0] <= values[1] <= values[2] <= high:
        raise UsageError(f"{name} must be three ascending numbers between 0 and {high:g}, not {values!r}")
