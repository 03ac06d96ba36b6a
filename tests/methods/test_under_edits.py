"""Edits that are on have no say in a new one: what is fitted with another on is what is fitted without, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import edits
import pytest
import tiny
import torch
from test_conformance import asked, fit, same, state, traced

import erasekit
from erasekit.attacks.sides import Sides
from erasekit.backbones import backbone
from erasekit.edit import Edit
from erasekit.methods import METHODS

TABLE = "embeddings.token_embedding"


def other(pipe, family: str = "sd1") -> Edit:
    """A change of keys, values, queries and the token table."""
    ops = [edits.low_rank(pipe, "unet", name, rank=2, size=1.0) for name in edits.KEYS]
    ops += [edits.low_rank(pipe, "text_encoder", name, rank=1, size=1.0) for name in edits.TEXT]
    return edits.edit(pipe, *ops, edits.dense(pipe, "text_encoder", TABLE), family=family)


@contextmanager
def exchanged(pipe, edit: Edit) -> Iterator[None]:
    """The edit on as it is for an attack: parameters exchanged, nothing written."""
    with Sides(pipe, edit).edited():
        yield


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_with_an_edit_on_is_the_fit_without(name: str, sd1) -> None:
    plain, *_ = traced(name, "sd1")
    with other(sd1).applied(sd1):
        before = state(sd1)
        under = fit(name, sd1, **asked(name))
        assert state(sd1) == before
        with under.applied(sd1):  # its base is the original weights
            pass
    assert same(plain, under) and plain.base.fingerprint == under.base.fingerprint
    assert {k: v for k, v in plain.self_check.items() if k != "seconds"} == {
        k: v for k, v in under.self_check.items() if k != "seconds"}  # fmt: skip


def test_a_trained_token_too(sd1) -> None:
    def trained() -> Edit:
        return erasekit.erase(sd1, "cat", anchor="dog", method="ac", variant="embedding", steps=2, sampling_steps=2, images=2,
                              batch=1, augment=False, rate=1e-2)  # fmt: skip

    plain = trained()
    with other(sd1).applied(sd1):
        under = trained()
    assert same(plain, under) and plain.base.fingerprint == under.base.fingerprint


@pytest.mark.parametrize(("make", "family"), [(tiny.sd1, "sd1"), (tiny.sd2, "sd2")])
@pytest.mark.parametrize("on", [Edit.applied, exchanged])
def test_a_backbone_reads_what_the_model_was(make, family: str, on) -> None:
    pipe = make()
    edit = other(pipe, family)
    model = backbone(pipe)
    sites, prompts = model.sites("all", "text.out"), ["", "a photo of a cat"]
    text, weights = model.encode(prompts), [model.weight(site).clone() for site in sites]
    prints = [model.fingerprint(site) for site in sites]
    with on(edit, pipe) if on is Edit.applied else on(pipe, edit):
        assert any(not torch.equal(edits.module(pipe, "unet", name).weight, weights[i])
                   for i, site in enumerate(sites) for name in edits.KEYS if site.module == name)  # fmt: skip
        for one in (model, backbone(pipe)):
            assert torch.equal(one.encode(prompts), text)
            assert all(torch.equal(one.weight(site), own) for site, own in zip(sites, weights, strict=True))
            assert [one.fingerprint(site) for site in sites] == prints
    assert torch.equal(model.encode(prompts), text)
    edit.fuse(pipe)  # for good: now it is the model
    assert not torch.equal(backbone(pipe).encode(prompts), text) and not torch.equal(model.encode(prompts), text)
