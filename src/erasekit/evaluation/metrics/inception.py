"""Inception-2015 features, the space in which a Fréchet distance is called FID: from the published weights or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import ModelError, UsageError
from erasekit.evaluation.metrics.distribution import INCEPTION, Features
from erasekit.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

INCEPTION_SHA256 = "6726825d"  # how the sha256 of the published weights begins; it is in their file's name
FILE = "weights-inception-2015-12-05-6726825d.pth"
REMEDY = f"give the path of {FILE}, or use features of a judge at hand"


class Inception:
    """The network of the published weights, through torch-fidelity. Source: arXiv 1706.08500."""

    name = INCEPTION
    width = 2048

    def __init__(self, weights: Path | None) -> None:
        """`weights`: the file on this machine, or a folder that holds it under its own name; nothing is fetched.

        Any other file, or no torch-fidelity, is one `ModelError`: features of other weights would not be FID's.
        """
        path = weights / FILE if weights is not None and weights.is_dir() else weights
        if path is None or not path.is_file():
            raise ModelError(f"FID's Inception weights are not at hand ({path}): {REMEDY}")
        self.weights_sha256 = file_sha256(path)
        if not self.weights_sha256.startswith(INCEPTION_SHA256):
            raise ModelError(f"{path} does not hold FID's Inception weights (another sha256): {REMEDY}")
        self.network = _network(path)

    def __call__(self, batches: Iterable[Tensor]) -> Features:
        """Features (n, 2048) of all images of the batches, each (b, 3, h, w) in 0..1 and let go once it is seen.

        Raises `UsageError` where images are not finite or of other shape, and for fewer than two of them.
        """
        import torch

        with torch.no_grad():
            parts = [self._seen(images) for images in batches]
        return Features(INCEPTION, torch.cat(parts).numpy())

    def _seen(self, images: Tensor) -> Tensor:
        import torch

        if not torch.isfinite(images).all() or images.ndim != 4:
            raise UsageError("images must be finite and of shape (n, 3, h, w) in 0..1")
        return self.network((images.clamp(0, 1) * 255).round().to(torch.uint8))[0].double()


def _network(path: Path) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise ModelError("FID's features need torch-fidelity: pip install 'erasekit[eval]'") from error
    return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
