"""Fréchet distance, KID and CMMD between two sets of features, under names that always carry the feature space.

"FID" and "KID" bare mean Inception-2015 features, "CMMD" bare OpenAI's CLIP ViT-L/14-336 by its hub id (a folder's own name
says nothing of its weights); on anything else the name says on what ("Fréchet(emoji-clip-v1)"), and sets of two spaces are
never compared. All arithmetic is in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from erasekit.errors import UsageError

INCEPTION = "inception-2015"
CLIP_L_336 = "clip[ViT-L/14-336 openai/clip-vit-large-patch14-336]"  # that judge's name
NAMES = {"Fréchet": ("FID", INCEPTION), "KID": ("KID", INCEPTION), "CMMD": ("CMMD", CLIP_L_336)}
KEYS = {"Fréchet": "frechet", "KID": "kid", "CMMD": "mmd"}
LEAST = 16
"""Fewer images than these say nothing: `refusal` gives the reason."""
ENOUGH = 5000
"""Below so many images a Fréchet distance is mostly its own upward bias: report KID or CMMD."""
CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Features:
    """Feature vectors (n, d) of images, and the versioned name of the space that they are in."""

    space: str
    values: np.ndarray

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        if not self.space:
            raise UsageError("features need the name of their space, such as emoji-clip-v1")
        if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
            raise UsageError(f"features must be finite and of shape (n >= 2, d), not {values.shape}")
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class Distance:
    """A distance with the name that it may be reported under. `sd` is the standard deviation over random subsets
    (None where there are none), `note` what a reader must know."""

    name: str
    value: float
    n: tuple[int, int]
    sd: float | None = None
    note: str = ""


def name(kind: str, space: str) -> str:
    """The name of the distance `kind` ("Fréchet", "KID", "CMMD") in a space: bare only in the space that the field
    means by it, else with the space; CMMD elsewhere is an "MMD"."""
    known, own = NAMES[kind]
    return known if space == own else f"{'MMD' if kind == 'CMMD' else kind}({space})"


def key(kind: str, space: str) -> str:
    """`name` as results write it, with the metric's key: "fid", "kid", "frechet(emoji-clip-v1)", "mmd(emoji-clip-v1)"."""
    known, own = NAMES[kind]
    return known.lower() if space == own else f"{KEYS[kind]}({space})"


def frechet(first: Features, second: Features) -> Distance:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the two sets' means and covariances.

    With A_i the centred rows / sqrt(n_i - 1) and R_i their triangular factors, tr (S1 S2)^(1/2) is the nuclear norm of
    R1 R2^T: no square root of a product is taken. Biased upward by small n, as `note` says.
    Source: Heusel et al., arXiv 1706.08500.
    """
    _same_space(first, second)
    roots = [_root(f.values) for f in (first, second)]
    apart = first.values.mean(0) - second.values.mean(0)
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    value = apart @ apart + sum((root**2).sum() for root in roots) - 2 * cross
    n = (len(first.values), len(second.values))
    note = f"biased upward: fewer than {ENOUGH} images; prefer KID" if min(n) < ENOUGH else ""
    return Distance(name("Fréchet", first.space), max(0.0, float(value)), n, note=note)  # below 0 only by rounding


def kid(
    first: Features, second: Features, *, generator: np.random.Generator, subsets: int = 100, size: int | None = None
) -> Distance:
    """The unbiased squared MMD with the kernel (x.y / d + 1)^3 over all features, and its sd over random subsets.

    It may be negative (it averages to 0 for equal distributions) and is not clamped. `size`: images a subset, drawn
    without replacement from each set; by default half of the smaller set, at most 1000.
    Source: Binkowski et al., arXiv 1801.01401.
    """
    _same_space(first, second)
    a, b = first.values, second.values
    least = min(len(a), len(b))
    size = min(1000, max(2, least // 2)) if size is None else size
    if not 2 <= size <= least or subsets < 2:
        raise UsageError(f"subsets need 2 to {least} images each and there must be at least 2 of them")
    draws = [
        _unbiased(a[generator.choice(len(a), size, replace=False)], b[generator.choice(len(b), size, replace=False)])
        for _ in range(subsets)
    ]
    note = f"sd over {subsets} subsets of {size}"
    return Distance(name("KID", first.space), _unbiased(a, b), (len(a), len(b)), float(np.std(draws, ddof=1)), note)


def cmmd(first: Features, second: Features, *, sigma: float = 10.0) -> Distance:
    """1000 times the biased squared MMD with the Gaussian kernel exp(-|x - y|^2 / (2 sigma^2)) on unit-norm features.

    Exactly 0 for a set with itself; biased upward by small n: compare at equal n only.
    Source: Jayasumana et al., arXiv 2401.09603 (CLIP ViT-L/14-336, sigma 10).
    """
    _same_space(first, second)
    a, b = (f.values / np.maximum(np.linalg.norm(f.values, axis=1, keepdims=True), 1e-300) for f in (first, second))
    value = _gaussian(a, a, sigma) + _gaussian(b, b, sigma) - 2 * _gaussian(a, b, sigma)
    return Distance(name("CMMD", first.space), 1000 * value, (len(a), len(b)), note="biased: compare at equal n only")


def refusal(kind: str, images: int, width: int) -> str:
    """Why the distance `kind` of two sets of so many images with features of this width is not stated; "" if it is.

    With no more images than features a covariance has no full rank: the Fréchet distance is then one of the sample.
    """
    needed = least(kind, width)
    return f"{images} pairs of images, and {needed} are needed" if images < needed else ""


def least(kind: str, width: int) -> int:
    """How many images of each set the distance `kind` of features of this width needs."""
    return max(LEAST, width + 1) if kind == "Fréchet" else LEAST


def _same_space(first: Features, second: Features) -> None:
    if first.space != second.space:
        raise UsageError(f"features of {first.space} and {second.space} are never mixed: use one extractor for both")
    if first.values.shape[1] != second.values.shape[1]:
        raise UsageError(f"features of {first.space} have widths {first.values.shape[1]} and {second.values.shape[1]}: "
                         "use one extractor for both")  # fmt: skip


def _root(values: np.ndarray) -> np.ndarray:
    """R (min(n, d), d) with R^T R the covariance."""
    return np.asarray(np.linalg.qr((values - values.mean(0)) / np.sqrt(len(values) - 1), mode="r"))


def _unbiased(a: np.ndarray, b: np.ndarray) -> float:
    n, m, d = len(a), len(b), a.shape[1]
    own = [(_cubic(x, x) - float((((x * x).sum(1) / d + 1) ** 3).sum())) / (k * (k - 1)) for x, k in ((a, n), (b, m))]
    return own[0] + own[1] - 2 * _cubic(a, b) / (n * m)


def _cubic(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(((part @ b.T / a.shape[1] + 1) ** 3).sum()) for part in _chunks(a))


def _gaussian(a: np.ndarray, b: np.ndarray, sigma: float) -> float:
    """The mean kernel value of unit rows."""
    sums = (float(np.exp((part @ b.T - 1) / sigma**2).sum()) for part in _chunks(a))  # |x - y|^2 = 2 - 2 x.y
    return sum(sums) / (len(a) * len(b))


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """So many rows at a time that a kernel matrix never fills the memory."""
    return (rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK))
