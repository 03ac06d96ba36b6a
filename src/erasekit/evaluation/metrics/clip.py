"""CLIP score on its three scales, the three definitions of CLIP accuracy, and a floor and a ceiling to read them by.

Functions of embeddings: rows are images or texts, any array (torch tensors on the CPU too), any length; they are
normalised here. Numbers compare inside one backbone and one prefix only.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from erasekit.errors import UsageError

AC_PREFIX = "A photo depicts "
MACE_TEMPLATE = "a photo of the {}"
GENERIC_STYLE_ANCHOR = "painting"
CELLS = 1 << 22  # cosines that are held at once
GRID = 2.0**26
SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ac": lambda cos: 2.5 * np.maximum(cos, 0),  # AC, ErasePro
    "logit": lambda cos: 100 * cos,  # MACE, UCE, SPEED
    "cosine": lambda cos: cos,  # UnlearnDiffAtk, AdvUnlearn, CopyrightMeter
}


def decode(text: str) -> np.ndarray:
    """The embedding (d,) that a CLIP judge stored as base64 of little-endian float16, as a float64 unit vector."""
    try:
        stored = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2")
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"a stored embedding cannot be read ({error}): run the judge again") from error
    return unit(stored[None])[0]


def unit(rows: Any) -> np.ndarray:
    """The rows (n, d) in float64 with length 1. Raises `UsageError` for a row that is zero or not finite."""
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise UsageError(f"embeddings must have shape (n, d), not {values.shape}")
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise UsageError("an embedding is zero or not finite: leave out images that could not be judged")
    return values / lengths


def texts_with_prefix(texts: Sequence[str], prefix: str = AC_PREFIX) -> list[str]:
    """What is embedded for a score: the prefix and the text. AC's prefix by default; "" is the caption itself."""
    return [prefix + text for text in texts]


def cosines(first: Any, second: Any) -> np.ndarray:
    """cos of row i of one and row i of the other (n,): image and text, or two images (CLIP-I)."""
    left, right = _matched(first, second)
    return (left * right).sum(1)


def score(images: Any, texts: Any, *, scale: str = "ac") -> np.ndarray:
    """The CLIP score of image i and text i (n,): "ac" 2.5 max(cos, 0), "logit" 100 cos, "cosine" cos.

    Source: AC, arXiv 2303.13516 (ViT-B/32, prefix "A photo depicts "); MACE, arXiv 2403.06135 (100 cos, caption).
    """
    return _scale(scale)(cosines(images, texts))


def accuracy_texts(target: str, anchor: str, *, style: bool, prefix: str = AC_PREFIX) -> tuple[str, str]:
    """The two texts that compete in AC's accuracy: " style" follows each style's name, but not the anchor "painting"."""
    names = [
        name + " style" if style and name.strip().lower() != GENERIC_STYLE_ANCHOR else name for name in (target, anchor)
    ]
    first, second = texts_with_prefix(names, prefix)
    return first, second


def accuracy(images: Any, target: Any, anchor: Any) -> np.ndarray:
    """AC's and ErasePro's CLIP accuracy (n,) bool: image i is nearer to the target's text than to the anchor's.

    `target`, `anchor`: (d,). Its mean is 0 where all is erased, near 1 for the unedited model; a tie is False.
    Source: AC, arXiv 2303.13516.
    """
    both = _cos(images, np.stack([np.asarray(target), np.asarray(anchor)]))
    return both[:, 0] > both[:, 1]


def accuracy_softmax(images: Any, labels: Any, target: int, *, scale: float = 100.0) -> np.ndarray:
    """MACE's object accuracy (n,): the softmax probability of label `target` among `labels` (k, d) at 100 cos.

    Source: MACE, arXiv 2403.06135 (ten CIFAR-10 names in "a photo of the {}"). A probability, not a share of images.
    """
    logits = scale * _cos(images, labels)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers[:, _index(target, powers)] / powers.sum(1)


def accuracy_top1(images: Any, labels: Any, target: int) -> np.ndarray:
    """UCE's object accuracy (n,) bool: label `target` is the nearest of `labels`. Source: UCE, arXiv 2308.14761."""
    found = _cos(images, labels)
    return found.argmax(1) == _index(target, found)


@dataclass(frozen=True)
class Calibration:
    """What a similarity of these images would be without any relation to their prompts (`floor`), and what the
    unedited model reaches (`ceiling`); both on the scale of the value."""

    floor: float
    ceiling: float

    def position(self, value: float) -> float | None:
        """Where the value lies: 0 at the floor, 1 at the ceiling, not clamped; None where the two do not differ."""
        return (value - self.floor) / (self.ceiling - self.floor) if self.ceiling > self.floor else None


def calibrate(images: Any, base_images: Any, texts: Any, prompts: Sequence[str], *, scale: str = "ac") -> Calibration:
    """Floor: the same images against the other prompts, the exact mean over all of them (no draw is needed);
    ceiling: the unedited model's images with their own prompts.

    Row i of all three embeddings belongs to `prompts[i]`. One prompt alone has no floor: `UsageError`.
    """
    return Calibration(floor(images, texts, prompts, scale=scale), float(score(base_images, texts, scale=scale).mean()))


def floor(images: Any, texts: Any, prompts: Sequence[str], *, scale: str = "ac") -> float:
    """The mean score of every image with every row's text whose prompt is another one than its own.

    The vectors are rounded to 2^-26, of which stored ones (float16) know nothing: every product and partial sum is then
    exact in float64, so that BLAS gives the same bits whatever the order in which it adds.
    """
    left, right = (np.rint(rows * GRID) / GRID for rows in _matched(images, texts))
    if len(prompts) != len(left):
        raise UsageError(f"{len(prompts)} prompts for {len(left)} images: give the prompt of every image")
    names, first, own, counts = np.unique(
        np.asarray(prompts, dtype=str), return_index=True, return_inverse=True, return_counts=True
    )
    if len(names) < 2:
        raise UsageError("a floor needs at least two different prompts")
    own, others, total = own.reshape(-1), right[first].T, 0.0
    step = max(1, CELLS // len(names))
    for start in range(0, len(left), step):
        found = _scale(scale)(left[start : start + step] @ others)
        found[np.arange(len(found)), own[start : start + step]] = 0
        total += float((found * counts).sum())
    return total / int(counts.sum() * len(left) - counts[own].sum())


def _scale(name: str) -> Callable[[np.ndarray], np.ndarray]:
    if name not in SCALES:
        raise UsageError(f"unknown scale {name!r} of the CLIP score: use {', '.join(SCALES)}")
    return SCALES[name]


def _matched(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    left, right = unit(first), unit(second)
    if left.shape != right.shape:
        raise UsageError(f"embeddings of shapes {left.shape} and {right.shape} are not pairs of one model")
    return left, right


def _cos(images: Any, labels: Any) -> np.ndarray:
    left, right = unit(images), unit(labels)
    if left.shape[1] != right.shape[1]:
        raise UsageError(f"embeddings of width {left.shape[1]} and {right.shape[1]} are not of one model")
    return _products(left, right)


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right.T by einsum: BLAS may add in another order with another number of threads."""
    return np.einsum("nd,pd->np", left, right)


def _index(target: int, found: np.ndarray) -> int:
    if not 0 <= target < found.shape[1]:
        raise UsageError(f"label {target} is not among the {found.shape[1]} labels")
    return target
