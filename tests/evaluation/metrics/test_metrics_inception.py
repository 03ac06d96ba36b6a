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
