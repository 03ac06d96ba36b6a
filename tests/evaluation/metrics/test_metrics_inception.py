"""Inception's features: from the published file or not at all; with a stand-in for the package, what goes in and out."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import pytest
import torch

from erasekit.errors import ModelError, UsageError
from erasekit.evaluation.metrics import inception
from erasekit.evaluation.metrics.distribution import INCEPTION
from erasekit.evaluation.metrics.inception import Inception


def test_inception_only_from_its_own_weights(tmp_path) -> None:
    other = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    other.write_bytes(b"not they")
    for path, message in ((None, "not at hand"), (tmp_path / "none.pth", "not at hand"), (other, "another sha256")):
        with pytest.raises(ModelError, match=message):
            Inception(path)


def test_the_real_package_reads_the_file_and_gives_its_own_features(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights at random in place of the published ones: this is about what goes in and comes out."""
    real = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="the extra `eval` is not installed")

    class Bare(real.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Leaves the weights as the constructors made them."""

    path = tmp_path / "w.pth"
    torch.save({}, path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = Bare("inception", ["2048"], feature_extractor_weights_path=str(path)).state_dict()
    torch.save(weights, path)
    monkeypatch.setattr(inception, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    direct = real.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    with torch.no_grad():
        expected = direct(pixels)[0]
    found = Inception(path)([pixels[:2].float() / 255, pixels[2:].float() / 255]).values
    assert found.shape == (3, Inception.width) and found[0].tolist() != found[2].tolist()
    assert found == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


def test_inception_features_go_through_torch_fidelity(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, and for the hash: bytes go in, the layer 2048 is asked for, features come out."""
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(inception, "INCEPTION_SHA256", hashlib.sha256(b"weights").hexdigest()[:8])

    def extractor(name: str, layers: list[str], feature_extractor_weights_path: str):
        assert layers == ["2048"] and Path(feature_extractor_weights_path).read_bytes() == b"weights"
        return lambda images: (images.flatten(1)[:, :5].float(),)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    images = torch.linspace(0, 1, 3 * 3 * 4).reshape(3, 3, 2, 2)
    network = Inception(weights)
    found = network([images[:2], images[2:]])
    assert found.space == network.name == INCEPTION and network.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert found.values == pytest.approx((images.flatten(1)[:, :5] * 255).round().numpy())
    weights.rename(tmp_path / inception.FILE)
    assert Inception(tmp_path).weights_sha256 == network.weights_sha256, "a folder that holds the file will do"
    with pytest.raises(UsageError, match="finite"):
        network([images * float("nan")])
