"""UCE's debias: the rule of one round against the textbook, and the walk to the asked shares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from uce_oracles import fit, textbook, transformers_rows

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.errors import InfeasibleError, UsageError
from erasekit.methods._cross import silent
from erasekit.methods.uce import UCEConfig
from erasekit.methods.uce_debias import fit_debias, image_labeller, steps


def test_oracle_7_alpha_follows_the_shares() -> None:
    config = UCEConfig(mode="debias", attributes=("cat", "dog"), labeller=lambda edit: [])
    alphas = steps(torch.tensor([[0.5, 0.5], [0.53, 0.47], [1.0, 0.0]], dtype=torch.float64), config)
    assert alphas[:2].abs().max() == 0
    assert alphas[2].tolist() == pytest.approx([-0.05, 0.05])


def share_reader(pipe, target: str, attributes: tuple[str, ...], seen: list):
    """A labeller that reads the shares off one projection: which attribute the target's output leans to."""
    rows, f = transformers_rows(pipe, target)
    name = next(n for n, _ in pipe.unet.named_modules() if n.endswith("attn2.to_v"))
    w = pipe.unet.get_submodule(name).weight.detach().double()
    marks = [w @ g[i] for g, i in (transformers_rows(pipe, attribute) for attribute in attributes)]
    axis = marks[0] / marks[0].norm() - marks[1] / marks[1].norm()

    def label(edit) -> list[list[float]]:
        op = next(op for op in edit.ops if op.module == name)
        now = (w + op.delta(w)) @ rows[f]
        share = float(torch.sigmoid((now @ axis) / (axis.norm() * now.norm()) * 3 + 1.5))
        seen.append(share)
        return [[share, 1 - share]]

    return label


def test_debias_walks_to_the_asked_shares(sd1) -> None:
    seen: list[float] = []
    attributes = ("dog", "fox")
    labeller = share_reader(sd1, "cat", attributes, seen)
    before = {n: p.clone() for n, p in sd1.unet.named_parameters()}
    edit = fit(sd1, "cat", mode="debias", attributes=attributes, labeller=labeller, rounds=60)
    assert abs(seen[0] - 0.5) > 0.1 and abs(seen[-1] - 0.5) <= 0.05
    assert not edit.self_check["warnings"] and "labeller" not in edit.parameters
    assert all(torch.equal(p, before[n]) for n, p in sd1.unet.named_parameters())


def test_debias_one_round_is_the_rule(sd1) -> None:
    """v* = V + sum alpha ||V|| U/||U||, solved with the textbook formula."""
    config = UCEConfig(mode="debias", attributes=("dog", "fox"), labeller=lambda e: [[1.0, 0.0]], rounds=1, tokens="last")
    model, request = backbone(sd1), EraseRequest.build("cat")
    edit = fit_debias(model, request, config, progress=silent)
    assert "still off for: cat" in edit.self_check["warnings"][0]
    templates = ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}")
    columns = {
        word: torch.stack([rows[f] for rows, f in (transformers_rows(sd1, t.format(word)) for t in templates)], 1)
        for word in ("cat", "dog", "fox")
    }
    op = edit.ops[0]
    w = sd1.unet.get_submodule(op.module).weight.detach().double()
    own = w @ columns["cat"]
    v = own.clone()
    for alpha, word in ((-0.05, "dog"), (0.05, "fox")):
        toward = w @ columns[word]
        v += alpha * own.norm(dim=0) * toward / toward.norm(dim=0)
    expected = textbook(w, columns["cat"], v, w.new_zeros(w.shape[1], 0), 1.0, 0.1, 0.5) - w
    assert (op.delta(w).double() - expected).norm() / expected.norm() < 2e-5


def test_debias_errors(sd1) -> None:
    options = {"mode": "debias", "attributes": ("dog", "fox")}
    with pytest.raises(InfeasibleError, match="already"):
        fit(sd1, "cat", labeller=lambda edit: [[0.5, 0.5]], **options)
    with pytest.raises(UsageError, match="one row"):
        fit(sd1, "cat", labeller=lambda edit: [[1.0]], **options)


def test_the_image_labeller_samples_under_the_edit_and_puts_it_back(sd1) -> None:
    seen = []

    def classify(images: Tensor, attributes: tuple[str, ...]) -> list[float]:
        seen.append(images)
        return [1.0, 0.0]

    attributes = ("dog", "fox")
    label = image_labeller(sd1, classify, targets=["cat"], attributes=attributes, seeds=range(2), steps=1)
    before = {n: p.clone() for n, p in sd1.unet.named_parameters()}
    fit(sd1, "cat", mode="debias", attributes=attributes, labeller=label, rounds=2, step=5.0)
    assert all(torch.equal(p, before[n]) for n, p in sd1.unet.named_parameters())
    assert seen[0].shape[0] == 2 and not torch.equal(seen[0], seen[1])
