"""LPIPS between the images of the unedited and the edited model at the same prompts and seeds.

The lpips package brings the linear heads only, and would fetch the backbone or start it at random. Neither happens here:
the backbone's weights are a file that the caller gives, or there is no LPIPS. Source: Zhang et al., arXiv 1801.03924.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import ModelError, UsageError
from erasekit.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

VARIANTS = ("full", "64-short", "64-square")
"""full: as drawn; 64-short: the shorter side is 64 (ESD, UCE, AdvUnlearn); 64-square: squashed to 64 x 64 (RECE)."""
FILES = {"alex": "alexnet-owt-*.pth", "vgg": "vgg16-*.pth", "squeeze": "squeezenet1_1-*.pth"}  # torchvision's names
NETS = tuple(FILES)
REMEDY = "give torchvision's file of it (alexnet-owt-7be5be79.pth for alex), or use an image-image CLIP cosine"


class Lpips:
    """LPIPS v0.1 with a backbone from a local file; `name` says net, version and size."""

    def __init__(self, backbone: Path | None, *, net: str = "alex", variant: str = "64-short") -> None:
        """`backbone`: a state dict of torchvision's AlexNet, VGG-16 or SqueezeNet 1.1 with ImageNet weights, or a folder
        (torch hub's `checkpoints`) that holds it under its own name.

        Raises `ModelError` where the file or the lpips package is missing, or the file does not hold every weight.
        """
        if variant not in VARIANTS or net not in NETS:
            raise UsageError(f"LPIPS has the nets {', '.join(NETS)} and the variants {', '.join(VARIANTS)}")
        self.name = f"LPIPS-{net}-v0.1@{variant}"
        self.variant = variant
        path = _found(net, backbone)
        self.network, self.weights_sha256 = _network(net, path), file_sha256(path)

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """The distance of each pair (n,), 0 for equal images; both (n, 3, h, w) in 0..1 (scaled to -1..1 inside)."""
        import torch

        if before.shape != after.shape or before.ndim != 4:
            raise UsageError(f"LPIPS compares pairs (n, 3, h, w), not {(*before.shape,)} and {(*after.shape,)}")
        if not (_in_range(before) and _in_range(after)):
            raise UsageError("LPIPS needs finite images in 0..1: leave out those that could not be judged")
        parts = zip(before.float().split(32), after.float().split(32), strict=True)
        with torch.no_grad():
            return torch.cat([
                self.network(resize(a, self.variant) * 2 - 1, resize(b, self.variant) * 2 - 1).reshape(-1)
                for a, b in parts
            ])  # fmt: skip


def resize(images: Tensor, variant: str) -> Tensor:
    """The images (n, 3, h, w) at the variant's size, bilinear with antialiasing; "full" returns them as they are."""
    import torch.nn.functional as F

    if variant == "full":
        return images
    height, width = images.shape[-2:]
    short = min(height, width)
    size = (64, 64) if variant == "64-square" else (64 * height // short, 64 * width // short)
    return images if size == (height, width) else F.interpolate(images, size, mode="bilinear", antialias=True)


def _in_range(images: Tensor) -> bool:
    return bool(((images >= 0) & (images <= 1)).all())  # False for NaN too


def _found(net: str, backbone: Path | None) -> Path:
    path = backbone and Path(backbone)
    if path and path.is_dir():
        path = next(iter(sorted(path.glob(FILES[net]))), path)
    if path is None or not path.is_file():
        raise ModelError(f"LPIPS needs the weights of its {net} backbone, which are not at hand ({backbone}): {REMEDY}")
    return path


def _network(net: str, backbone: Path) -> Any:
    try:
        import lpips  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError("LPIPS needs the lpips package: pip install 'erasekit[eval]'") from error
    import torch

    with torch.random.fork_rng(devices=[]):  # the package starts the backbone at random; every weight is replaced below
        network = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    network.net.load_state_dict(_backbone(network.net.state_dict(), backbone, net))
    return network.eval()


def _backbone(wanted: dict[str, Tensor], path: Path, net: str) -> dict[str, Tensor]:
    """The file's weights under the package's names: its `slice2.3.weight` is torchvision's `features.3.weight`."""
    import pickle

    import torch

    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: stored[f"features.{name.partition('.')[2]}"] for name in wanted}
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} does not hold every weight of the {net} backbone ({error}): {REMEDY}") from error
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ModelError(f"{path} has another shape at features.{name.partition('.')[2]}: {REMEDY}")
    return found
