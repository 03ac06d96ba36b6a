"""What SPEED retains (arXiv 2503.07392): prior filtering, directed augmentation, invariants, and their null space.

An augmented copy c + V z of a retained column c (V (d, r) the weakest input directions of a weight, z ~ N(0, I_r);
the same distribution as c + P_min eps, P_min = V V', eps ~ N(0, I_d)) differs from c in r numbers. So shifts and the
second moment of all copies follow from z alone, and no copy is ever built: with c_i the kept columns, m_i the number
of kept copies of c_i, s_i the sum of their z, and N = sum (1 + m_i),

    N S = sum h_i h_i' + V (sum z z' - sum s_i s_i' / (1 + m_i)) V',   h_i = sqrt(1 + m_i) c_i + V s_i / sqrt(1 + m_i)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from erasekit import solvers


@dataclass(frozen=True)
class Curated:
    """The refined retain set of one weight: `columns` (d, k) kept, `weak` V (d, r), and of the copies of each column
    their number `copies` (k,), the sum of their z `sums` (k, r) and of all z z' `squares` (r, r); float64.
    `emptied`: the filter would have kept nothing, so that nothing was filtered."""

    columns: Tensor
    weak: Tensor
    copies: Tensor
    sums: Tensor
    squares: Tensor
    emptied: bool

    @property
    def count(self) -> int:
        """N: kept columns and kept copies."""
        return self.columns.shape[1] + int(self.copies.sum())

    def root(self) -> Tensor:
        """H (d, k + r) with H H' = S, the mean second moment of kept columns and kept copies."""
        scale = (1 + self.copies).to(self.columns.dtype).sqrt()
        shares = self.sums / scale[:, None]
        values, vectors = torch.linalg.eigh(self.squares - shares.T @ shares)
        rest = self.weak @ (vectors * values.clamp_min(0).sqrt())
        return torch.cat([self.columns * scale + self.weak @ shares.T, rest], 1) / self.count**0.5


def unrelated(retain: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The names in which no target occurs as whole words, whatever case and spacing."""
    words = "|".join(r"\s+".join(map(re.escape, target.split())) for target in targets)
    target = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    return [name for name in retain if not target.search(name)]


def invariants(rows: Tensor, generator: torch.Generator) -> Tensor:
    """C2 (d, 4): the first of the empty prompt's `rows` (length, d), BOS, and three centroids of the others."""
    return torch.cat([rows[:1], centroids(rows[1:], 3, generator)]).T


def centroids(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means centres (count, d) of rows (m, d): k-means++ from `generator`, then Lloyd until nothing moves."""
    centres = rows[torch.randint(len(rows), (1,), generator=generator)]
    while len(centres) < count:
        far = torch.cdist(rows, centres).amin(1).square() + 1e-30  # rows may all be equal
        centres = torch.cat([centres, rows[torch.multinomial(far, 1, generator=generator)]])
    for _ in range(300):
        member = one_hot(torch.cdist(rows, centres).argmin(1), count).to(rows.dtype)
        sizes = member.sum(0)[:, None]
        fresh = torch.where(sizes > 0, member.T @ rows / sizes.clamp_min(1), centres)
        if torch.equal(fresh, centres):
            break
        centres = fresh
    return centres


def weak_directions(weight: Tensor, rank: int) -> Tensor:
    """The right singular vectors (d, rank) of `weight` (o, d) float64 with its smallest singular values, signs fixed.

    Of a wide weight those of its own o singular values, not of its null space. By the smaller Gram matrix, several
    times cheaper than an SVD; a direction without gain in a wide weight needs the SVD.
    """
    out, width = weight.shape
    found = torch.linalg.eigh(solvers.gram(weight if out >= width else weight.T)).eigenvectors[:, :rank]
    if out < width:
        found = weight.T @ found
        gains = found.norm(dim=0)
        if float(gains.min()) <= 1e-7 * float(torch.linalg.vector_norm(weight)):
            found = torch.linalg.svd(weight, full_matrices=False).Vh.flip(0)[:rank].T
        else:
            found = found / gains
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return found * largest.sign()


def curate(
    columns: Tensor, weak: Tensor, noise: Tensor, *, pulls: Tensor, along: Tensor, gram: Tensor, prior_filter: bool
) -> Curated:
    """IPF, then DPA: the columns whose shift ||D_erase c|| is above the mean, and of their copies c + V z those
    whose shift is above the copies' mean. Both comparisons are strict; identical shifts leave the columns unfiltered.

    `columns` (d, N), `weak` V (d, r), `noise` z (N, copies, r). D_erase = U K enters by `pulls` K C0 (n, N), `along`
    K V (n, r) and `gram` U' U (n, n).
    """
    squared = (pulls * (gram @ pulls)).sum(0)
    kept = _above_mean(squared) if prior_filter else torch.ones_like(squared, dtype=torch.bool)
    emptied = not bool(kept.any())
    if emptied:
        kept = ~kept
    z = noise[kept]
    cross = pulls[:, kept].T @ (gram @ along)
    moved = squared[kept, None] + 2 * (z * cross[:, None]).sum(-1) + (z @ (along.T @ gram @ along) * z).sum(-1)
    chosen = _above_mean(moved)
    some = z[chosen]
    sums = (z * chosen[..., None]).sum(1)
    return Curated(columns[:, kept], weak, chosen.sum(1), sums, some.T @ some, emptied)


def dominant(curated: Curated, *, tau: float, relative: bool) -> Tensor:
    """An orthonormal basis (d, m) of the directions that must not change: eigenvectors of the mean second moment S
    with eigenvalues of at least tau (`relative`: tau times trace S / d). P = I - its own outer product.

    By whichever of H H' and H' H is smaller (S = H H'); their common eigenvalues are taken for zero below rounding.
    """
    root = curated.root()
    width, count = root.shape
    values, vectors = torch.linalg.eigh(solvers.gram(root if count < width else root.T))
    level = tau * float(values.sum()) / width if relative else tau
    rounding = len(values) * torch.finfo(values.dtype).eps * float(values[-1])
    top = vectors[:, values >= max(level, rounding)]
    return torch.linalg.qr(root @ top).Q if count < width else top


def project(top: Tensor, columns: Tensor) -> Tensor:
    """P X; the second pass removes what rounding left."""
    for _ in range(2):
        columns = columns - top @ (top.T @ columns)
    return columns


def _above_mean(squared: Tensor) -> Tensor:
    """Which square roots are above their mean, by more than rounding."""
    values = squared.clamp_min(0).sqrt()
    return values > values.mean() * (1 + 1e-12)
