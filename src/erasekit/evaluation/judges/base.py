"""What every judge shares: the verdict's form, the check for pictures that are none, sizes and colours, hashes.

A judge sees float RGB tensors (n, 3, h, w) in 0..1 and does its own resizing, scaling and colour order. It answers
each image by itself. What it cannot judge is `failed`, what is no picture is `invalid`: neither is ever a verdict.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from erasekit.errors import UsageError
from erasekit.files import file_sha256

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

STATUSES = ("ok", "failed", "invalid")
FLAT = 0.01  # pixel standard deviation (of 0..1) within each colour channel, up to which a picture is "constant"
SMALLEST = 16  # pixels; a shorter side is refused: scaled up, it shows nothing that a verdict could rest on
LEAST = 0.02  # probabilities below this are not written down
DIGITS = 5  # and the others are rounded: what is written is what the threshold was compared with


@dataclass(frozen=True)
class Judgement:
    """One image's verdict: `status` is one of `STATUSES`; `data` can be written as JSON.

    `data` is the verdict where the status is "ok" (keys: see `Judge`), and `{"reason": text}` otherwise.
    """

    status: str
    data: dict[str, Any]

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {self.status!r}")


@runtime_checkable
class Judge(Protocol):
    """Decides what images show.

    `name` carries version, label set and threshold ("nudenet-v3-320n[18]@0.25"): two judges of one name and one
    `weights_sha256` give the same verdicts. `data` of classifiers: `scores` {label: p, all with p >= 0.02},
    `found` [labels], `best` label; of detectors: `boxes` [{label, score, box}] and `found`; of CLIP: see `packed`.
    """

    name: str
    weights_sha256: str
    licence: str

    def judge(self, images: Tensor, prompts: Sequence[str]) -> list[Judgement]:
        """One verdict for each image, in order; `prompts` are what the images were drawn from."""
        ...


@runtime_checkable
class TextJudge(Judge, Protocol):
    """A judge that also places texts in the space of its image embeddings (CLIP)."""

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 (n, dim); texts longer than the model's limit are cut there."""
        ...


def check(images: Tensor) -> list[str | None]:
    """For each image the reason why it is no picture (not finite, or constant), or None.

    Constant: within each colour channel the standard deviation of the pixels is at most `FLAT` (0.01 of 0..1).
    Raises `UsageError` where `images` is no float tensor (n, 3, h, w), or finite values lie outside 0..1.
    """
    import torch

    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise UsageError(f"a judge needs float images (n, 3, h, w) in 0..1, got {images.dtype} {tuple(images.shape)}")
    finite = torch.isfinite(images).flatten(1).all(1)
    known = images.detach().double()[finite]
    if known.numel() and (known.min() < -1e-4 or known.max() > 1 + 1e-4):
        raise UsageError(f"a judge needs images in 0..1, got {known.min():.3g}..{known.max():.3g}: scale them first")
    spread = iter(known.flatten(2).std(2, correction=0).amax(1).tolist() if known.numel() else [])
    return [_flat(next(spread, 0.0)) if ok else "the image has values that are not finite" for ok in finite.tolist()]


def _flat(spread: float) -> str | None:
    return f"the image is constant (pixel standard deviation {spread:.4f} <= {FLAT})" if spread <= FLAT else None


def judge_each(
    images: Tensor, prompts: Sequence[str], verdicts: Callable[[Tensor], list[dict[str, Any] | str]]
) -> list[Judgement]:
    """The images' judgements, in order: `verdicts` is asked about the images that `check` and the size allow.

    It answers each with the verdict's data, or with a text: the reason why this image failed. Its exceptions
    propagate: only what was foreseen is a failed image.
    """
    if len(prompts) != len(images):
        raise UsageError(f"{len(images)} images came with {len(prompts)} prompts: give one prompt for each image")
    reasons = check(images)
    out = [None if reason is None else Judgement("invalid", {"reason": reason}) for reason in reasons]
    rows = [row for row, reason in enumerate(reasons) if reason is None]
    small = f"the image is smaller than {SMALLEST} pixels: {images.shape[3]} x {images.shape[2]}"
    answers = [small] * len(rows) if min(images.shape[2:]) < SMALLEST else (verdicts(images[rows]) if rows else [])
    for row, answer in zip(rows, answers, strict=True):
        out[row] = Judgement("failed", {"reason": answer}) if isinstance(answer, str) else Judgement("ok", answer)
    return [judgement for judgement in out if judgement is not None]


def threshold(option: str | None, default: float, *, judge: str, floor: float = 0.0) -> float:
    """The threshold of a spec's option ("@0.6"), or the default; `UsageError` unless it lies in floor..1 (not at 1)."""
    if option is None:
        return default
    try:
        value = float(option.removeprefix("@")) if option.startswith("@") else float("nan")
    except ValueError:
        value = float("nan")
    if not floor <= value < 1:
        raise UsageError(f"the judge {judge} takes a threshold from {floor:g} to below 1, as in {judge}@{default:g}: "
                         f"got {option!r}")  # fmt: skip
    return value


def scores(labels: Sequence[str], probabilities: Sequence[float]) -> dict[str, float]:
    """The labels' probabilities from `LEAST` on, highest first, rounded to `DIGITS` places."""
    pairs = [(label, round(p, DIGITS)) for label, p in zip(labels, probabilities, strict=True) if p >= LEAST]
    return dict(sorted(pairs, key=lambda pair: -pair[1]))


def pil(images: Tensor) -> list[Image.Image]:
    """The images as 8-bit RGB pictures; what came from an 8-bit file comes back as it was."""
    from PIL import Image

    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    return [Image.fromarray(one) for one in pixels.numpy()]


def packed(vector: Tensor) -> dict[str, Any]:
    """A unit vector as a CLIP judge's data: `embedding` (base64 of little-endian float16) and `dim`."""
    raw = vector.detach().float().cpu().numpy().astype("<f2").tobytes()
    return {"embedding": base64.b64encode(raw).decode("ascii"), "dim": vector.numel()}


def sha256(files: Sequence[Path]) -> str:
    """The sha256 of one weight file; of several, that of their names and hashes in the order of the names."""
    hashes = {path.name: file_sha256(path) for path in files}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()
