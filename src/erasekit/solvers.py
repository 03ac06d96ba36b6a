"""Closed-form edits of linear maps as one family of exact or regularised least-squares problems.

Columns are features: `inputs` X (d, n) is what a weight W_o (o, d) reads, `wanted` Y (d, n) is what it should
behave as if it read. Every method here is an instance of

    min_dW  a ||(W_o + dW) X - W_o Y||^2 + tr(dW C dW^T)      (+ dW R = 0 for kept columns R)

whose solution with D = Y - X is `dW = W_o D K`, `K = (X^T C^-1 X + I/a)^-1 X^T C^-1` (n, d), and for a = inf
`K = (L^-1 X)^+ L^-1` with C = L L^T. ErasePro (arXiv 2508.04472): C = I, a = inf. Ridge: C = I, a = 1/mu.
UCE (arXiv 2308.14761): C = lamb I + preserve_scale R R^T, a = erase_scale. K knows nothing of W_o: it is computed
once for every matrix that reads the same features, and only its rows J where D is not zero are kept, so an
edit is `up = W_o D_J` (o, |J|) times the shared `right = K_J` (|J|, d). Solved in float64 on the CPU.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

EXACT = math.inf
FLOOR = 1e-9
"""A ridge is at least this fraction of the mean diagonal that it is added to: below, rounding decides the factorisation."""
ROUNDING = 1e-13
"""Damping is at least this fraction of the trace that it is added to: less than what rounding leaves between equal columns."""
BLOCKS = 4
"""A Gram matrix is multiplied in so many bands: 5/8 of the work, and products still large enough to be fast."""


@dataclass(frozen=True)
class Prior:
    """How dear a change is in each input direction: tr(dW C dW^T) with C = L L^T; `lower` is L (d, d)."""

    lower: Tensor


@dataclass(frozen=True)
class Inverse:
    """The shared K: `rows` (n, d); `rank` and `condition` (largest over smallest singular value that was used)
    describe the whitened inputs, kept columns projected out. With a finite scale a direction of singular value s counts
    s^2 / (s^2 + 1/a), what it closes of its gap, and `rank` is the rounded sum."""

    rows: Tensor
    rank: int
    condition: float


@dataclass(frozen=True)
class RightFactor:
    """What every weight with the same inputs shares: dW = (W_o @ gap) @ right.

    `columns` J (c,) are the columns whose wanted input differs from the input; `gap` (d, r) and `right` (r, d)
    are D_J and K_J (r = c), or after `compact` the same product with r <= d; `lost` (d, n) = D K X - D is what the
    solution misses of the wanted inputs: zero up to rounding where it is exact; `miss` is ||lost|| / ||Y||.
    """

    columns: Tensor
    gap: Tensor
    right: Tensor
    lost: Tensor
    rank: int
    condition: float
    miss: float

    def up(self, weight: Float[Tensor, "o d"]) -> Float[Tensor, "o r"]:
        """W_o D_J in float64, the left factor of this weight's change."""
        return weight.detach().to("cpu", torch.float64) @ self.gap

    def missed(self, weight: Float[Tensor, "o d"]) -> Float[Tensor, "o n"]:
        """(W_o + dW) X - W_o Y: what is left of the alignment before any cast, at float32 or better."""
        weight = weight.detach().to("cpu", torch.promote_types(weight.dtype, torch.float32))
        return weight @ self.lost.to(weight.dtype)

    def compact(self) -> "RightFactor":
        """The same change with at most d factors (for when more columns than the width ask for one)."""
        if self.right.shape[0] <= self.right.shape[1]:
            return self
        u, s, vh = torch.linalg.svd(self.gap @ self.right)
        used = s > 1e-14 * s[0]
        return replace(self, gap=u[:, used] * s[used], right=vh[used])


def prior(moment: Float[Tensor, "d d"], *, ridge: float) -> Prior:
    """C = moment + ridge I as a factor; `ridge` in the units of `moment`, and at least FLOOR of its mean diagonal, so that a
    moment of any rank and scale has one. Raises ValueError for a ridge below 0, and for 0 on a moment of 0."""
    matrix = moment.to("cpu", torch.float64).clone()
    added = max(ridge, FLOOR * float(matrix.diagonal().mean()))
    if not (ridge >= 0 and added > 0):
        raise ValueError(f"a prior needs ridge > 0, got {ridge}")
    matrix.diagonal().add_(added)
    return Prior(torch.linalg.cholesky(matrix))


def second_moment(columns: Float[Tensor, "d k"]) -> Float[Tensor, "d d"]:
    """R R^T in float64."""
    return gram(columns.T)


def gram(columns: Float[Tensor, "o d"]) -> Float[Tensor, "d d"]:
    """A^T A in float64: bands of rows up to the diagonal are multiplied, the rest is their mirror image."""
    columns = columns.detach().to("cpu", torch.float64)
    width = columns.shape[1]
    found, step = columns.new_empty(width, width), max(1, -(-width // BLOCKS))
    for start in range(0, width, step):
        band = slice(start, start + step)
        left = columns[:, band].T @ columns[:, : start + step]
        found[band, : start + step] = left
        found[:start, band] = left[:, :start].T
    return found


def reduced(blocks: Iterable[Float[Tensor, "d _"]]) -> Float[Tensor, "d m"]:
    """Columns with the singular values and left singular vectors of all blocks side by side, to rounding of sigma_1, in the
    memory of two blocks: a single block as it is, else the d columns R^T of a QR carried from block to block.

    For columns by the ten thousand. What a tolerance decides of all it decides of these; a second moment, as small, squares
    the condition, and singular values below 1e-7 sigma_1 are rounding there.
    """
    return reduce(_joined, (block.detach().to("cpu", torch.float64) for block in blocks))


def _joined(one: Float[Tensor, "d m"], other: Float[Tensor, "d k"]) -> Float[Tensor, "d q"]:
    return torch.linalg.qr(torch.cat([one, other], 1).T, mode="r").R.T


def orthonormal(columns: Float[Tensor, "d k"], *, tolerance: float = 1e-10) -> Float[Tensor, "d q"]:
    """An orthonormal basis of the span of the columns; directions below `tolerance` * sigma_1 are not in it."""
    u, s, _ = torch.linalg.svd(columns.to(torch.float64), full_matrices=False)
    return u[:, s > tolerance * s[0]] if s.numel() else u


def inverse(
    inputs: Float[Tensor, "d n"],
    *,
    keep: Float[Tensor, "d k"] | None = None,
    prior: Prior | None = None,
    scale: float = EXACT,
    tolerance: float = 1e-10,
    keep_tolerance: float = 1e-10,
) -> Inverse:
    """K (n, d) such that dW = E K is the best change for wanted output changes E (o, n) of the columns.

    `scale` is a (EXACT for the hard constraint dW X = E, met to rounding wherever it can be; elsewhere the
    least-squares compromise of least change). `tolerance` drops singular values below tolerance * sigma_1.
    With `keep` R, dW R = 0 holds to rounding whatever E is, for the part of R above keep_tolerance *
    sigma_1(R). Never raises for rank deficiency.
    """
    white = _whiten(inputs, prior)
    floor = 0.0
    if keep is not None and keep.shape[1]:  # what rounding leaves of a projected column must not count as a direction
        floor = max(tolerance, keep_tolerance) * float(torch.linalg.matrix_norm(white, 2))
        basis = orthonormal(_whiten(keep, prior), tolerance=keep_tolerance)
        for _ in range(2):  # the second pass removes what rounding left in the span
            white = white - basis @ (basis.T @ white)
    rows, rank, condition = _pinv(white, tolerance, floor) if math.isinf(scale) else _damped(white, scale)
    if prior is not None:  # K = rows L^-1
        rows = torch.linalg.solve_triangular(prior.lower, rows, upper=False, left=False)
    return Inverse(rows, rank, condition)


def solve(
    inputs: Float[Tensor, "d n"],
    wanted: Float[Tensor, "d n"],
    *,
    keep: Float[Tensor, "d k"] | None = None,
    prior: Prior | None = None,
    scale: float = EXACT,
    tolerance: float = 1e-10,
    keep_tolerance: float = 1e-10,
    cut: float = 1e-12,
) -> RightFactor:
    """The factor shared by every weight that reads `inputs` and should act as if it read `wanted`.

    Options as in `inverse`. Columns that differ by at most `cut` (relative to the input column) count as equal:
    they are constraints of no change, and cost no rank. Sources: the module's docstring.
    """
    inputs, wanted = (t.detach().to("cpu", torch.float64) for t in (inputs, wanted))
    gap = wanted - inputs
    columns = (gap.norm(dim=0) > cut * inputs.norm(dim=0)).nonzero()[:, 0]
    if not columns.numel():
        none = inputs.new_zeros(inputs.shape[0], 0)
        return RightFactor(columns, none, none.T, -gap, 0, 1.0, float(gap.norm() / wanted.norm()))
    found = inverse(inputs, keep=keep, prior=prior, scale=scale, tolerance=tolerance, keep_tolerance=keep_tolerance)
    right, wide = found.rows[columns], gap[:, columns]
    lost = wide @ (right @ inputs) - gap
    miss = float(lost.norm() / wanted.norm())
    return RightFactor(columns, wide, right, lost, found.rank, found.condition, miss)


def conflicts(
    inputs: Float[Tensor, "d n"], wanted: Float[Tensor, "d n"], *, tolerance: float = 1e-9
) -> Int[Tensor, "pairs 2"]:
    """Every pair (i, j), i < j, of columns with the same input and another wanted input: no linear map serves both.

    "Same" is within `tolerance` relative to the mean norm of the columns.
    """
    inputs, wanted = inputs.T.to(torch.float64).contiguous(), wanted.T.to(torch.float64).contiguous()
    limit = tolerance * inputs.norm(dim=1).mean()
    exact = "donot_use_mm_for_euclid_dist"  # the matrix-product form loses half of the digits
    same = torch.cdist(inputs, inputs, compute_mode=exact) <= limit
    apart = torch.cdist(wanted, wanted, compute_mode=exact) > 10 * limit
    return (same & apart).triu(1).nonzero()


def _whiten(columns: Float[Tensor, "d n"], prior: Prior | None) -> Float[Tensor, "d n"]:
    columns = columns.detach().to("cpu", torch.float64)
    return columns if prior is None else torch.linalg.solve_triangular(prior.lower, columns, upper=False)


def _pinv(white: Float[Tensor, "d n"], tolerance: float, floor: float) -> tuple[Float[Tensor, "n d"], int, float]:
    u, s, vh = torch.linalg.svd(white, full_matrices=False)
    used = s > max(tolerance * float(s[0]), floor)
    rank = int(used.sum())
    if not rank:
        return white.new_zeros(white.shape[1], white.shape[0]), 0, math.inf
    rows = (vh[used].T / s[used]) @ u[:, used].T
    return rows, rank, float(s[0] / s[used][-1])


def _damped(white: Float[Tensor, "d n"], scale: float) -> tuple[Float[Tensor, "n d"], int, float]:
    """(X^T X + I/a)^-1 X^T, by whichever of the n x n and d x d forms is smaller (both positive definite)."""
    wide = white.shape[1] > white.shape[0]
    normal = gram(white.T if wide else white)
    added = max(1 / scale, ROUNDING * float(normal.diagonal().sum()))
    normal.diagonal().add_(added)
    lower = torch.linalg.cholesky(normal)
    rows = torch.cholesky_solve(white, lower).T if wide else torch.cholesky_solve(white.T.contiguous(), lower)
    diagonal = lower.diagonal()
    own = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
    rank = round(len(lower) - added * float(own.square().sum()))  # trace of (N - added I) N^-1
    return rows, rank, float((diagonal.max() / diagonal.min()) ** 2)
