"""The retained prompts' columns, and what they leave erasable of a target."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from erasekit import solvers
from erasekit.backbones import backbone
from erasekit.methods._cross import silent
from erasekit.methods._features import last_subject
from erasekit.methods._retained import erasable, retained_last_subject

PROMPTS = ["fox", "a photo of the moon", "dog"]


def test_last_subject_features_come_back_bit_for_bit(sd1, tmp_path: Path) -> None:
    model = backbone(sd1)
    plain = last_subject(model, PROMPTS, progress=silent, what="")
    for _ in range(2):
        found = retained_last_subject(model, PROMPTS, folder=tmp_path, progress=silent)
        assert found.dtype == torch.float64 and torch.equal(found, plain)
    assert retained_last_subject(model, [], folder=tmp_path, progress=silent).shape == (32, 0)


def test_erasable_is_the_share_that_a_lone_pair_closes() -> None:
    generator = torch.Generator().manual_seed(0)
    x, kept, w = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((9, 1), (9, 4), (5, 9)))
    metric = solvers.prior(0.7 * kept @ kept.T, ridge=0.5)
    gap = torch.ones(5, 1, dtype=torch.float64)
    closed = gap @ solvers.inverse(x, prior=metric, scale=2.0).rows @ x
    assert torch.allclose(closed, gap * erasable(x, metric, scale=2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert erasable(kept[:, :1], solvers.prior(1e9 * kept @ kept.T, ridge=0.5), scale=1.0) < 1e-6
    assert w.shape == (5, 9)
