"""Sums, multiples, compression and balanced factors are those of the deltas, and say what they lost."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasekit import algebra
from erasekit.edit import Base, Dense, Edit, Guidance, LowRank, Projection
from erasekit.errors import BaseMismatchError, EditError, UsageError

SEEDS = st.integers(0, 2**20)
RANKS = st.integers(1, 4)


def value(rank: int, seed: int, *, kind: str = "low_rank", module: str = "m") -> Edit:
    """An edit of one 6 x 5 weight, without a model."""
    op = LowRank("unet", module, edits.noise(6, rank, seed=seed), edits.noise(rank, 5, seed=seed + 1))
    if kind == "dense":
        op = Dense("unet", module, op.up @ op.down)
    return Edit((op,), Base("tiny", "sd1", {f"unet/{module}": {"sha256": "x"}}), "test", targets=(str(seed),))


def delta(edit: Edit) -> torch.Tensor:
    """The sum of all deltas on a zero weight."""
    return sum(op.delta(torch.zeros(6, 5)) for op in edit.ops)


@settings(deadline=None, max_examples=25)
@given(RANKS, RANKS, SEEDS, SEEDS, st.sampled_from(["low_rank", "dense"]), st.floats(-3, 3))
def test_the_algebra_is_that_of_the_deltas(ra, rb, sa, sb, kind, factor):
    a, b = value(ra, sa), value(rb, sb, kind=kind)
    assert torch.allclose(delta(factor * a), factor * delta(a), atol=1e-6)
    assert torch.allclose(delta(a + b), delta(a) + delta(b), atol=1e-6)
    assert torch.allclose(delta(a + -a), torch.zeros(6, 5), atol=1e-6)
    assert len((a + b).ops) == 1
    assert (a + b).targets == a.targets + b.targets


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), SEEDS, st.sampled_from(["low_rank", "dense"]), st.floats(0.05, 1.0))
def test_compression_is_the_best_approximation(rank, seed, kind, energy):
    edit = value(5, seed, kind=kind)
    values = torch.linalg.svdvals(delta(edit).double())
    cut = edit.compress(rank=rank)
    left = (delta(cut) - delta(edit)).double().square().sum()
    assert torch.isclose(left, values[rank:].square().sum(), rtol=1e-3, atol=1e-9)
    assert cut.rank_max <= rank
    part = edit.compress(energy=energy)
    kept = delta(part).double().square().sum() / values.square().sum()
    assert kept >= energy - 1e-6
    shares = values.square().cumsum(0) / values.square().sum()
    assert part.rank_max == 1 or shares[part.rank_max - 2] < energy + 1e-6  # one less would not have been enough


def test_sums_over_different_modules_keep_both():
    total = value(1, 0) + value(2, 5, module="n")
    assert [op.site for op in total.ops] == ["unet/m", "unet/n"]
    assert set(total.base.fingerprint) == {"unet/m", "unet/n"}
    assert total.self_check["modules"] == 2


def test_sums_of_different_bases_are_refused(sd1):
    with pytest.raises(BaseMismatchError, match="different models"):
        edits.edit(sd1) + edits.edit(tiny.sd1(seed=1))


def test_derived_edits_say_what_was_not_measured():
    check = {"modules": 1, "residual": 1e-7, "relative_update": 0.2, "retained_drift": 0.0, "warnings": ["w"]}
    edit = Edit(value(2, 0).ops, value(2, 0).base, "test", self_check=check)
    assert (1 * edit).self_check == check
    half = (0.5 * edit).describe()
    assert half["self_check"]["residual"] is None
    assert half["self_check"]["relative_update"] == pytest.approx(0.1)
    assert half["self_check"]["warnings"][0] == "w"
    assert half["history"] == ["scaled by 0.5"]
    assert edit.compress(rank=1).self_check["relative_update"] is None


def test_one_sided_projections_scale_and_two_sided_ones_say_why_not(sd1):
    layer = edits.module(sd1, "text_encoder", edits.TEXT[0])
    weight, left = layer.weight.detach().clone(), edits.noise(32, 32, seed=1)
    with (0.25 * edits.edit(sd1, Projection("text_encoder", edits.TEXT[0], left))).applied(sd1):
        assert torch.allclose(layer.weight, weight + 0.25 * (left @ weight - weight), atol=1e-6)
    with pytest.raises(EditError, match=r"projection op on text_encoder/.*scale=0.25"):
        0.25 * edits.edit(sd1, Projection("text_encoder", edits.TEXT[0], left, left))


def test_code_has_no_algebra_and_says_so():
    edit = Edit((Guidance("negative", {}, {}),), Base("tiny", "sd1", {}), "test")
    for act in (lambda: 2 * edit, lambda: edit + edit, lambda: edit.compress(rank=1)):
        with pytest.raises(EditError, match="guidance op 'negative'"):
            act()


@pytest.mark.parametrize("options", [{}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.5}])
def test_compress_takes_one_sensible_option(options):
    with pytest.raises(UsageError):
        value(2, 0).compress(**options)


@pytest.mark.parametrize("ratio", [1.0, 1e6])
def test_factors_are_balanced_and_survive_fp16(ratio):
    op = LowRank("unet", "m", ratio * edits.noise(64, 4, seed=0), edits.noise(4, 48, seed=1) / ratio)
    wanted = op.delta(torch.zeros(64, 48))
    pair = algebra.balanced(op)
    assert edits.relative(pair.delta(torch.zeros(64, 48)), wanted) < 1e-6
    assert torch.allclose(pair.up.norm(dim=0), pair.down.norm(dim=1), rtol=1e-4)
    half = (pair.up.half().float() @ pair.down.half().float()).reshape(64, 48)
    assert edits.relative(half, wanted) < 1e-3
    if ratio > 1:  # which is why they are balanced
        assert not edits.relative(op.up.half().float() @ op.down.half().float(), wanted) < 1e-3


def test_repeated_directions_cost_no_rank():
    op = LowRank("unet", "m", edits.noise(8, 2, seed=0), edits.noise(2, 6, seed=1))
    doubled = algebra.summed([op, op])[0]
    assert doubled.up.shape[1] == 4
    assert algebra.balanced(doubled).up.shape[1] == 2
    assert edits.relative(algebra.balanced(doubled).delta(torch.zeros(8, 6)), 2 * op.delta(torch.zeros(8, 6))) < 1e-6
