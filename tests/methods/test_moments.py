"""Second moments of lists of prompts, against a naive sum over all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.methods import _cache, _moments
from erasekit.methods._cross import silent
from erasekit.methods._moments import moment
from erasekit.methods.realera_text import RealEraText, RealEraTextConfig
from erasekit.methods.rece import RECE, RECEConfig
from erasekit.methods.uce import UCE, UCEConfig

MANY = [f"{a} {b}" for a in ("cat", "fox", "bird", "horse", "dog", "moon") for b in "abcdefg"]  # 42: an odd end


@pytest.mark.parametrize("rows", ["all", "last"])
def test_it_is_the_sum_over_the_rows(rows, sd1) -> None:
    model = backbone(sd1)
    found = moment(model, MANY, rows=rows, cache=None, progress=silent, what="")
    features, ends = model.encode(MANY).double(), model.tokenize(MANY).ends
    columns = features.flatten(0, 1) if rows == "all" else features[range(len(MANY)), [end - 1 for end in ends]]
    assert torch.allclose(found.total, sum(torch.outer(c, c) for c in columns), rtol=1e-5, atol=1e-4)
    assert found.prompts == len(MANY) and found.probes.shape == (42, 3 if rows == "all" else 1, 32)
    for probe, row, end in zip(found.probes, features, ends, strict=True):
        assert torch.allclose(probe, row[[end - 1, end, -1] if rows == "all" else [end - 1]], atol=1e-6)


def test_nothing_sums_to_nothing(sd1, tmp_path: Path) -> None:
    found = moment(backbone(sd1), [], rows="all", cache=tmp_path, progress=silent, what="")
    assert not found.total.any() and found.probes.shape == (0, 3, 32) and not list(tmp_path.iterdir())


def test_probes_are_spread_whatever_the_list_grew_from(sd1, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(_moments, "PROBES", 5)
    model = backbone(sd1)
    plain = moment(model, MANY, rows="last", cache=None, progress=silent, what="")
    for count in (16, 17, 32, 42):
        found = moment(model, MANY[:count], rows="last", cache=tmp_path, progress=silent, what="")
    assert torch.equal(found.probes, plain.probes) and torch.equal(found.total, plain.total)
    every = moment(model, MANY, rows="last", cache=None, progress=silent, what="").probes
    assert len(every) <= 5
    each = [moment(model, [name], rows="last", cache=None, progress=silent, what="").probes[0] for name in MANY[::16]]
    assert torch.allclose(every, torch.stack(each), atol=1e-6)


def test_methods_share_the_moment_of_a_list(sd1, tmp_path: Path) -> None:
    said: list[str] = []
    request = EraseRequest.build("cat", anchor="dog", retain=["fox", "moon"], retain_cache=tmp_path)
    model = backbone(sd1)
    UCE().fit(model, request, UCEConfig(), progress=lambda *told: said.append(told[2]))
    assert "encoding the retained" in said
    said.clear()
    RECE().fit(model, request, RECEConfig(), progress=lambda *told: said.append(told[2]))
    RealEraText().fit(model, request, RealEraTextConfig(), progress=lambda *told: said.append(told[2]))
    assert said and "encoding the retained" not in said


def test_a_killed_fit_goes_on_and_gives_the_same_edit(sd1, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(_cache, "STRIDE", 1)
    request = EraseRequest.build("cat", anchor="dog", retain=MANY, retain_cache=tmp_path)

    def killed(done: int, total: int, what: str) -> None:
        if what == "encoding the retained" and total == len(MANY) and done == 32:
            raise KeyboardInterrupt

    done: list[tuple[int, int, str]] = []
    with pytest.raises(KeyboardInterrupt):
        UCE().fit(backbone(sd1), request, UCEConfig(), progress=killed)
    again = UCE().fit(backbone(sd1), request, UCEConfig(), progress=lambda *told: done.append(told))
    plain = UCE().fit(backbone(sd1), EraseRequest.build("cat", anchor="dog", retain=MANY), UCEConfig())
    assert [told[0] for told in done if told[2] == "encoding the retained"] == [32] and again.describe() == plain.describe()
    for a, b in zip(again.ops, plain.ops, strict=True):
        assert all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())
