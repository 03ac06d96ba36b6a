"""The random control has the edit's norm at every weight, and nothing of its direction."""

from __future__ import annotations

from pathlib import Path

import edits
import pytest
import torch

from erasekit.edit import Adapter, Edit, Projection
from erasekit.errors import UsageError
from erasekit.evaluation import controls


def deltas(edit: Edit, pipe) -> dict[str, torch.Tensor]:
    """What the edit adds to each weight, from the pipeline before and with it."""
    before = edits.weights(pipe)
    with edit.applied(pipe):
        after = edits.weights(pipe)
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def test_same_norm_at_every_weight_and_another_direction(sd1) -> None:
    name = edits.KEYS[0]
    twice = edits.edit(sd1, edits.dense(sd1, "unet", name), edits.low_rank(sd1, "unet", name, rank=2, size=1.0),
                       edits.dense(sd1, "text_encoder", edits.TEXT[0], seed=5),
                       edits.dense(sd1, "text_encoder", edits.MLP[0], seed=6))  # fmt: skip
    noise = controls.random_like(twice, sd1, seed=0)
    ours, theirs = deltas(noise, sd1), deltas(twice, sd1)
    assert ours.keys() == theirs.keys() and len(ours) == 3, "two ops on one weight count as their sum"
    for weight, delta in theirs.items():
        assert float(ours[weight].norm()) == pytest.approx(float(delta.norm()), rel=1e-5)
        cosine = float((ours[weight] * delta).sum() / delta.norm() ** 2)
        assert abs(cosine) < 0.2, "noise has nothing of the edit's direction"
    assert (noise.targets, noise.base) == (twice.targets, twice.base)


def test_a_projection_and_its_bias(sd1) -> None:
    name, width = edits.MLP[0], edits.module(sd1, "text_encoder", edits.MLP[0]).weight.shape[0]
    edit = edits.edit(sd1, Projection("text_encoder", name, left=0.9 * torch.eye(width), bias=edits.noise(width, seed=3)))
    ours, theirs = deltas(controls.random_like(edit, sd1, seed=1), sd1), deltas(edit, sd1)
    assert ours.keys() == theirs.keys() and len(ours) == 2
    for part, delta in theirs.items():
        assert float(ours[part].norm()) == pytest.approx(float(delta.norm()), rel=1e-4)


def test_the_seed_decides_and_the_global_generator_is_left_alone(sd1) -> None:
    edit, state = edits.edit(sd1), torch.random.get_rng_state()
    first, again, other = (controls.random_like(edit, sd1, seed=seed).ops for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    same = [torch.equal(a.tensors()["delta"], b.tensors()["delta"]) for a, b in zip(first, again, strict=True)]
    assert all(same) and not torch.equal(first[0].tensors()["delta"], other[0].tensors()["delta"])


def test_the_noise_is_of_the_original_weight_also_under_another_edit(sd1) -> None:
    edit = edits.edit(sd1)
    alone = controls.random_like(edit, sd1, seed=0)
    with edit.applied(sd1):
        under = controls.random_like(edit, sd1, seed=0)
    assert all(torch.equal(a.tensors()["delta"], b.tensors()["delta"]) for a, b in zip(alone.ops, under.ops, strict=True))


def test_an_edit_of_code_has_no_norm(sd1) -> None:
    edit = Edit((Adapter("unet", "conv_in", "gate"),), edits.base(sd1, ()), "spm")
    with pytest.raises(UsageError, match="--control none"):
        controls.random_like(edit, sd1, seed=0)


def test_models_that_never_knew(sd1_folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "emoji-never-hot-dog"
    named.symlink_to(sd1_folder)
    assert controls.never(str(named), ["cat", "hot dog"]).concept == "hot dog"
    assert controls.never(f"cat={sd1_folder}", ["cat", "dog"]).folder == sd1_folder
    assert controls.never(str(sd1_folder), ["cat"]).concept == "cat", "one target: any folder is of it"
    with pytest.raises(UsageError, match="no edit here erases"):
        controls.never(str(sd1_folder), ["cat", "dog"])
    with pytest.raises(UsageError, match="no edit here erases 'fox'"):
        controls.never(f"fox={sd1_folder}", ["cat"])
    with pytest.raises(UsageError, match="is no diffusers folder"):
        controls.never(str(tmp_path / "none"), ["cat"])
