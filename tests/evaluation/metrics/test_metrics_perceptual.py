"""LPIPS: refused without its weights, never random; with a stand-in for the package, which weights and sizes arrive."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from erasekit.errors import ModelError, UsageError
from erasekit.evaluation.metrics.perceptual import Lpips, resize


class Package(nn.Module):
    """Laid out as the package's class: `net` with slices; the distance is that of the backbone's outputs."""

    def __init__(self, *, net: str, version: str, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert (net, version, pnet_rand, verbose) == ("alex", "0.1", True, False)
        self.net = nn.Module()
        self.net.slice1, self.net.slice2 = nn.Sequential(), nn.Sequential()
        self.net.slice1.add_module("0", nn.Conv2d(3, 2, 1))
        self.net.slice2.add_module("3", nn.Conv2d(2, 2, 1))
        self.seen: list[torch.Tensor] = []

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        self.seen.append(a)
        outs = [self.net.slice2(self.net.slice1(x)) for x in (a, b)]
        return (outs[0] - outs[1]).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lpips")
    module.LPIPS = Package
    monkeypatch.setitem(sys.modules, "lpips", module)


@pytest.fixture
def weights(tmp_path):
    values = {
        "features.0.weight": torch.ones(2, 3, 1, 1), "features.0.bias": torch.zeros(2),
        "features.3.weight": torch.full((2, 2, 1, 1), 0.5), "features.3.bias": torch.ones(2),
        "classifier.1.weight": torch.ones(2, 2),
    }  # fmt: skip
    torch.save(values, tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def images(n: int = 2, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(n))


def test_no_weights_no_number(tmp_path) -> None:
    for path in (None, tmp_path / "none.pth"):
        with pytest.raises(ModelError, match="not at hand"):
            Lpips(path)


@pytest.mark.usefixtures("package")
def test_a_file_that_lacks_a_weight_is_refused(tmp_path, weights) -> None:
    part = torch.load(weights, weights_only=True)
    del part["features.3.bias"]
    torch.save(part, tmp_path / "part.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save(part | {"features.3.bias": torch.ones(3)}, tmp_path / "shape.pth")
    for name, message in (("part", "every weight"), ("text", "every weight"), ("shape", "another shape")):
        with pytest.raises(ModelError, match=message):
            Lpips(tmp_path / f"{name}.pth")


@pytest.mark.usefixtures("package")
def test_weights_and_range_arrive(weights) -> None:
    """Both layers as the file says: outputs differ by 0.5 * 2 * sum over channels of the difference, of -1..1 pixels."""
    state = torch.get_rng_state()
    lpips = Lpips(weights, variant="full")
    assert torch.equal(state, torch.get_rng_state()) and lpips.name == "LPIPS-alex-v0.1@full"
    a, b = images(), images().flip(0)
    expected = (2 * (a - b)).sum(1).square().mean((1, 2))
    torch.testing.assert_close(lpips(a, b), expected)
    assert lpips(a, a).tolist() == [0, 0]
    assert lpips.network.seen[0].min() < -0.5 and not lpips.network.training


# The layers of torchvision's `features` whose outputs are compared (arXiv 1801.03924), and the package's scaling of pixels.
LAYERS = {"alex": ("alexnet", (1, 4, 7, 9, 11)), "vgg": ("vgg16", (3, 8, 15, 22, 29))}
SHIFT, SCALE = (torch.tensor(x).view(1, 3, 1, 1) for x in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))


def outputs(features: nn.Module, x: torch.Tensor, layers: tuple[int, ...]) -> list[torch.Tensor]:
    found = []
    for i, layer in enumerate(features.children()):
        x = layer(x)
        if i in layers:
            found.append(x / x.norm(dim=1, keepdim=True).clamp(min=1e-10))
    return found


@pytest.mark.parametrize("net", LAYERS)
def test_the_real_package_with_torchvisions_backbone_against_the_definition(tmp_path, net: str) -> None:
    """Backbone weights at random, the package's own heads: the distance as the paper defines it, layer by layer."""
    real = pytest.importorskip("lpips", reason="the extra `eval` is not installed")
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    name, layers = LAYERS[net]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = getattr(models, name)(weights=None).features.eval()
        heads = real.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, tmp_path / "w.pth")
    a, b = images(2, 64, 64), images(2, 64, 64).flip(0)
    with torch.no_grad():
        pairs = zip(*(outputs(features, (x * 2 - 1 - SHIFT) / SCALE, layers) for x in (a, b)), strict=True)
        expected = sum(
            ((one - two).square() * head.model[-1].weight).sum(1).mean((1, 2))
            for (one, two), head in zip(pairs, heads.lins, strict=True)
        )
    torch.testing.assert_close(Lpips(tmp_path / "w.pth", net=net, variant="full")(a, b), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("package")
def test_variants_and_bad_images(weights) -> None:
    lpips = Lpips(weights)
    lpips(images(1, 128, 256), images(1, 128, 256))
    assert lpips.network.seen[0].shape[-2:] == (64, 128) and lpips.name.endswith("@64-short")
    for pair in ((images() * 255, images() * 255), (images() * float("nan"), images())):
        with pytest.raises(UsageError, match="finite images"):
            lpips(*pair)
    with pytest.raises(UsageError, match="pairs"):
        lpips(images(2), images(3))
    with pytest.raises(UsageError, match="variants"):
        Lpips(weights, variant="32")


def test_sizes() -> None:
    tall = images(1, 96, 64)
    assert resize(tall, "64-short") is tall and resize(tall, "full") is tall
    assert resize(tall, "64-square").shape[-2:] == (64, 64)
    small = resize(images(1, 128, 128), "64-short")
    assert small.shape[-2:] == (64, 64)
    checker = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(64, 64).expand(1, 3, 128, 128)
    assert resize(checker, "64-short").std() < 0.01  # antialiased: a fine checkerboard becomes grey


@pytest.mark.usefixtures("package")
def test_torch_hubs_folder_will_do(tmp_path, weights) -> None:
    import hashlib

    with pytest.raises(ModelError, match="not at hand"):
        Lpips(tmp_path)
    weights.rename(tmp_path / "alexnet-owt-7be5be79.pth")
    lpips = Lpips(tmp_path)
    stored = (tmp_path / "alexnet-owt-7be5be79.pth").read_bytes()
    assert lpips.weights_sha256 == hashlib.sha256(stored).hexdigest()
