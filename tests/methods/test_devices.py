"""A model on another device than the CPU: what is fitted and told is the same, and no operation mixes the two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from far import Apart, Far, far
from test_conformance import QUICK, SAMPLING, fit, same, tensors
from test_erasepro import wide

import erasekit
from erasekit.backbones import backbone
from erasekit.backbones._weights import ModuleWeights
from erasekit.backbones.sd import SDBackbone
from erasekit.concept import EraseRequest
from erasekit.methods import METHODS
from erasekit.methods.uce import UCE, UCEConfig
from erasekit.suggest import suggest_anchors

read = ModuleWeights.read


@contextmanager
def elsewhere() -> Iterator[None]:
    """Inside, every weight of a live model is on the other device."""
    with pytest.MonkeyPatch.context() as patch, Apart():
        patch.setattr(ModuleWeights, "read", lambda self, stored: far(read(self, stored)))
        yield


@pytest.mark.parametrize("name", [name for name in METHODS if name not in QUICK | SAMPLING])
def test_a_closed_form_fit_of_a_model_on_another_device_is_the_same(name: str, sd1) -> None:
    plain = fit(name, sd1, targets=["cat", "fox"], retain=("a photo",))
    with elsewhere():
        found = fit(name, sd1, targets=["cat", "fox"], retain=("a photo",))
    assert same(plain, found) and found.self_check == plain.self_check
    assert not any(isinstance(tensor, Far) for tensor in tensors(found).values())


@pytest.mark.parametrize("options", [{}, {"compensate": True}, {"retain": ["fox"], "retain_mode": "soft", "keep_empty": True}])
def test_erasepro_where_every_column_fits(options: dict) -> None:
    pipe = wide()
    plain = erasekit.erase(pipe, "cat", anchor="dog", **options)
    with elsewhere():
        found = erasekit.erase(pipe, "cat", anchor="dog", **options)
    # Two fits of this width need not agree in the last bit: products add up in another order where memory lies otherwise.
    changes = [{op.site: op.up @ op.down for op in edit.ops} for edit in (plain, found)]
    assert changes[0].keys() == changes[1].keys()
    assert all(torch.allclose(changes[1][site], change, rtol=1e-5, atol=1e-7) for site, change in changes[0].items())


@pytest.mark.parametrize("options", [
    {"variant": "tensor"}, {"tokens": "last", "expand": "art"},
    {"mode": "debias", "attributes": ("dog", "fox"), "labeller": lambda _: [[1.0, 0.0]], "rounds": 2},
])  # fmt: skip
def test_every_form_of_uce(options: dict, sd1) -> None:
    request = EraseRequest.build("cat", anchor="dog")
    plain = UCE().fit(backbone(sd1), request, UCEConfig(**options))
    with elsewhere():
        assert same(plain, UCE().fit(backbone(sd1), request, UCEConfig(**options)))


def test_what_is_suggested_too(sd1) -> None:
    plain = suggest_anchors(backbone(sd1), "cat", ["dog", "fox", "photo"])
    with elsewhere():
        assert suggest_anchors(backbone(sd1), "cat", ["dog", "fox", "photo"]) == plain


@pytest.mark.parametrize("name", ["uce", "rece", "realera-text"])
def test_a_weight_that_is_left_where_it_was_would_be_noticed(name: str, sd1, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SDBackbone, "weight", lambda self, site: self._weights[site.component].get(f"{site.module}.weight"))
    with elsewhere(), pytest.raises(RuntimeError, match="the same device"):
        fit(name, sd1)


def test_the_pretended_device_refuses_what_a_gpu_refuses() -> None:
    one, other = torch.ones(2, 2), far(torch.ones(2, 2))
    with Apart():
        for mixed in (lambda: one @ other, lambda: torch.cat([other, one]), lambda: one[other.long()], lambda: other.numpy()):
            with pytest.raises((RuntimeError, TypeError), match="cuda"):
                mixed()
        assert isinstance(other @ one.to(other.device), Far) and isinstance(other[one.long()], Far)
        assert not isinstance(other.to("cpu", torch.float64), Far) and not isinstance(one + other.cpu(), Far)
        assert isinstance(torch.zeros(2, device=other.device), Far) and isinstance(one.to(other), Far)
        assert isinstance(2 * other.double(), Far) and other.device.type == "cuda" and one.device.type == "cpu"
