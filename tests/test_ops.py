"""A full difference of weight and bias: what training writes, through every verb."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from erasekit import algebra, io
from erasekit.edit import Base, Dense, Edit, fingerprint
from erasekit.errors import EditError

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"
NORM = "conv_norm_out"


def dense(pipe, name: str, *, seed: int = 0) -> Dense:
    module, draw = pipe.unet.get_submodule(name), torch.Generator().manual_seed(seed)
    parts = (torch.randn(part.shape, generator=draw) * 0.01 for part in (module.weight, module.bias))
    return Dense("unet", name, *parts)


def edit_of(pipe, *names: str) -> Edit:
    prints = {f"unet/{name}": fingerprint(pipe.unet.get_submodule(name).weight) for name in names}
    return Edit(tuple(dense(pipe, name) for name in names), Base("tiny", "sd1", prints), "test")


def test_weight_and_bias_go_on_and_come_off_bitwise(sd1, tmp_path: Path) -> None:
    """Also of a convolution (4-d) and of a norm (1-d), after saving and loading."""
    names = (LINEAR, NORM, "conv_in")
    before = {name: (sd1.unet.get_submodule(name).weight.clone(), sd1.unet.get_submodule(name).bias.clone()) for name in names}
    edit_of(sd1, *names).save(tmp_path / "edit.safetensors")
    edit = io.load(tmp_path / "edit.safetensors")
    with edit.applied(sd1, scale=2.0):
        for op in edit.ops:
            module = sd1.unet.get_submodule(op.module)
            assert torch.equal(module.weight, before[op.module][0] + 2 * op.difference)
            assert torch.equal(module.bias, before[op.module][1] + 2 * op.bias)
    for name in names:
        module = sd1.unet.get_submodule(name)
        assert torch.equal(module.weight, before[name][0]) and torch.equal(module.bias, before[name][1])


def test_sums_and_multiples_take_the_bias_along(sd1) -> None:
    op, other = dense(sd1, LINEAR), dense(sd1, LINEAR, seed=1)
    assert torch.equal(op.scaled(0.5).bias, op.bias * 0.5)
    (both,) = algebra.summed([op, other])
    assert torch.equal(both.bias, op.bias + other.bias) and torch.equal(both.difference, op.difference + other.difference)
    bare = Dense("unet", LINEAR, other.difference)
    assert torch.equal(algebra.summed([bare, op])[0].bias, op.bias) and algebra.summed([bare, bare])[0].bias is None
    only = Dense("unet", LINEAR, torch.zeros(2, 2), torch.ones(2))
    assert not algebra.is_zero(only) and algebra.is_zero(only.scaled(0))


def test_comfy_holds_the_bias_and_low_rank_forms_refuse_it(sd1, tmp_path: Path) -> None:
    edit = edit_of(sd1, LINEAR)
    edit.export(tmp_path / "comfy.safetensors", format="comfy")
    tensors = load_file(tmp_path / "comfy.safetensors")
    assert {name.rpartition(".")[2] for name in tensors} == {"diff", "diff_b"}
    assert torch.equal(next(t for name, t in tensors.items() if name.endswith("diff_b")), edit.ops[0].bias)
    with pytest.raises(EditError, match="changes a bias too"):
        edit.compress(rank=1)
    with pytest.raises(EditError, match="full difference"):
        edit.export(tmp_path / "lora.safetensors", format="peft")


def test_a_bias_that_the_module_lacks_is_refused(sd1) -> None:
    weight = sd1.unet.get_submodule(LINEAR).weight
    op = Dense("unet", LINEAR, torch.zeros_like(weight), torch.ones(3))
    with pytest.raises(EditError, match="has none"):
        op.check(weight, None)
    with pytest.raises(EditError, match="bias of shape"):
        op.check(weight, sd1.unet.get_submodule(LINEAR).bias)
    with pytest.raises(EditError, match="not a finite number"):
        Dense("unet", LINEAR, torch.zeros(2, 2), torch.tensor([float("nan"), 0]))
