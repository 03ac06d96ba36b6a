"""UCE's columns: which rows face which, how pairs are reduced, and what retaining weighs."""

from __future__ import annotations

import pytest
import torch

from erasekit.backbones import backbone
from erasekit.methods._cross import silent
from erasekit.methods.uce import UCEConfig
from erasekit.methods.uce_text import gather_pairs, gather_retained, preserve_scale


def test_the_empty_anchor_faces_bos_and_eos_faces_eos(sd1) -> None:
    model, config = backbone(sd1), UCEConfig(variant="tensor")  # keeps every column as it is
    pairs = gather_pairs(model, [("cat", "")], config, progress=silent)
    cat, empty = model.encode(["cat", ""]).double()
    assert torch.equal(pairs.ys[0].T, empty[:76]) and torch.equal(pairs.x.T, cat[1:])


def test_many_pairs_reduce_to_twice_the_width_and_give_the_same_edit(sd1) -> None:
    model, config = backbone(sd1), UCEConfig()
    groups = [(word, anchor) for word in ("cat", "fox", "bird", "horse") for anchor in ("dog", "moon")]
    reduced = gather_pairs(model, groups, config, progress=silent)
    full = [gather_pairs(model, [group], UCEConfig(variant="tensor"), progress=silent) for group in groups]
    x, y = torch.cat([p.x for p in full], 1), torch.cat([p.ys[0] for p in full], 1)
    assert reduced.x.shape[1] == 64 < x.shape[1]
    assert torch.allclose(reduced.x @ reduced.x.T, x @ x.T) and torch.allclose(reduced.ys[0] @ reduced.x.T, y @ x.T)


def test_preserve_scale_follows_the_scripts(sd1) -> None:
    assert preserve_scale(UCEConfig(), 1) == 1 and preserve_scale(UCEConfig(), 4) == 0.25
    assert preserve_scale(UCEConfig(), 1000) == 0.1 and preserve_scale(UCEConfig(tokens="last"), 1000) == 1
    kept = gather_retained(backbone(sd1), ["a", "b", "a"], UCEConfig(), progress=silent)
    assert kept.scale == pytest.approx(1 / 3) and kept.probes.shape[1] == 3
