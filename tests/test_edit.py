"""An edit on a pipeline: exactly W + delta, off again bit for bit, refused where it does not belong."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch

import erasekit
from erasekit import attach
from erasekit.backbones import backbone
from erasekit.edit import Adapter, Base, Dense, Edit, Guidance, LowRank, Projection, fingerprint
from erasekit.errors import BaseMismatchError, EditError, ModelError, UsageError

# -- on a pipeline ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.sd1, tiny.sd2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_applied_weights_are_w_plus_delta_and_removal_is_bitwise(make, dtype):
    edit = edits.edit(make())  # fitted on the float32 model, recognised in the others
    pipe = make().to(dtype)
    before = edits.weights(pipe)
    with edit.applied(pipe, scale=0.5):
        for op in edit.ops:
            weight = edits.module(pipe, op.component, op.module).weight
            wanted = before[f"{op.component}/{op.module}.weight"].float() + 0.5 * (op.up @ op.down)
            assert torch.equal(weight, wanted.to(dtype))
        edited = edits.weights(pipe)
        names = {f"{op.component}/{op.module}.weight" for op in edit.ops}
        assert {name for name in before if not torch.equal(before[name], edited[name])} == names
    assert edits.same(edits.weights(pipe), before)


def test_the_edit_changes_the_image_and_removal_brings_it_back(sd1):
    before = tiny.image(sd1)
    handle = edits.edit(sd1).apply(sd1)
    assert (tiny.image(sd1) - before).abs().max() > 1e-3
    handle.remove()
    assert torch.equal(tiny.image(sd1), before)
    handle.remove()  # a second time does nothing
    assert torch.equal(tiny.image(sd1), before)


def test_scale_zero_is_the_base_bitwise(sd1):
    before = edits.weights(sd1)
    with edits.edit(sd1).applied(sd1, scale=0):
        assert edits.same(edits.weights(sd1), before)


def test_weights_come_back_after_an_exception(sd1):
    before = edits.weights(sd1)
    with pytest.raises(KeyboardInterrupt), edits.edit(sd1).applied(sd1):
        raise KeyboardInterrupt
    assert edits.same(edits.weights(sd1), before)


def test_fuse_leaves_the_edited_weights_and_no_handle(sd1):
    edit = edits.edit(sd1)
    with edit.applied(sd1):
        applied = edits.weights(sd1)
    edit.fuse(sd1)
    assert edits.same(edits.weights(sd1), applied)
    with pytest.raises(BaseMismatchError):  # what was fused is the base no longer
        edit.apply(sd1)


def test_nested_edits_add_up_and_come_off_in_reverse_order(sd1):
    before = edits.weights(sd1)
    a, b = edits.edit(sd1), edits.edit(sd1, edits.dense(sd1, "unet", edits.KEYS[0]))
    first, second = a.apply(sd1), b.apply(sd1)
    nested = edits.weights(sd1)
    with pytest.raises(EditError, match="on top of this one at unet/"):
        first.remove()
    assert edits.same(edits.weights(sd1), nested)
    with pytest.raises(EditError, match="before fusing"):
        b.fuse(sd1)
    second.remove()
    first.remove()
    assert edits.same(edits.weights(sd1), before)
    with (a + b).applied(sd1):
        assert all(torch.allclose(value, nested[name], atol=1e-6) for name, value in edits.weights(sd1).items())


def test_edits_of_different_modules_come_off_in_any_order(sd1):
    before = edits.weights(sd1)
    first, second = (edits.edit(sd1, edits.dense(sd1, "unet", name)).apply(sd1) for name in edits.KEYS)
    first.remove()
    second.remove()
    assert edits.same(edits.weights(sd1), before)


@pytest.mark.parametrize("name", [edits.TEXT[0], "text_model." + edits.TEXT[0]])
def test_text_modules_are_found_with_and_without_their_prefix(sd1, name):
    op = edits.low_rank(sd1, "text_encoder", edits.TEXT[0], rank=1)
    renamed = LowRank("text_encoder", name, op.up, op.down)
    prints = {f"text_encoder/{name}": fingerprint(edits.module(sd1, "text_encoder", edits.TEXT[0]).weight)}
    with Edit((renamed,), Base("tiny", "sd1", prints), "test").applied(sd1):
        pass
    wrapped = torch.nn.Module()  # as in CLIPTextModelWithProjection
    wrapped.text_model = sd1.text_encoder
    assert attach.find_module(type("Pipe", (), {"text_encoder": wrapped}), renamed) is sd1.text_encoder.get_submodule(
        edits.TEXT[0]
    )


def test_projection_is_left_w_right_and_its_bias_is_added(sd1):
    name = edits.TEXT[0]
    layer = edits.module(sd1, "text_encoder", name)
    left, right, bias = edits.noise(32, 32, seed=1), edits.noise(32, 32, seed=2), edits.noise(32, seed=3)
    weight, old_bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    with edits.edit(sd1, Projection("text_encoder", name, left, right, bias)).applied(sd1):
        assert torch.allclose(layer.weight, left @ weight @ right, atol=1e-6)
        assert torch.equal(layer.bias, old_bias + bias)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, old_bias)


def test_convolutions_are_edited_by_low_rank_factors(sd1):
    op = edits.low_rank(sd1, "unet", "conv_in", rank=3)
    wanted = sd1.unet.conv_in.weight + torch.einsum("or,rikl->oikl", op.up, op.down)
    with edits.edit(sd1, op).applied(sd1):
        assert torch.allclose(sd1.unet.conv_in.weight, wanted, atol=1e-6)


# -- refusals: one line, and the model untouched ----------------------------------------------------------------


def refused(error, words, edit, pipe, **options):
    before = edits.weights(pipe)
    with pytest.raises(error, match=words) as caught:
        edit.apply(pipe, **options)
    assert "\n" not in str(caught.value)
    after = edits.weights(pipe)
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


def test_another_base_is_refused_with_its_modules_unless_forced(sd1):
    edit = edits.edit(tiny.sd1(seed=1))
    refused(BaseMismatchError, r"4 of 4 modules differ, unet/down_blocks.* and 1 more; .*force", edit, sd1)
    with edit.applied(sd1, force=True):
        pass


def test_another_rounding_of_the_base_is_refused_with_both_precisions(sd1):
    edit = edits.edit(tiny.sd1().to(torch.float16))
    refused(BaseMismatchError, r"that model in float16 or float32 \(these weights are bfloat16", edit, sd1.to(torch.bfloat16))
    with edit.applied(tiny.sd1()):
        pass


def test_a_compiled_part_takes_edits_of_weights_and_refuses_code(sd1):
    plain, weight = edits.edit(sd1), edits.module(sd1, "unet", edits.KEYS[0]).weight
    before = weight.detach().clone()
    sd1.unet, sd1.text_encoder = torch.compile(sd1.unet), torch.compile(sd1.text_encoder)
    found = erasekit.erase(sd1, "cat", anchor="dog")
    assert [op.site for op in found.ops] == [op.site for op in erasekit.erase(tiny.sd1(), "cat", anchor="dog").ops]
    for edit in (plain, found):
        with edit.applied(tiny.sd1()):
            pass
        with edit.applied(sd1):
            assert not torch.equal(weight, before)
    assert backbone(sd1).denoiser() is sd1.unet._orig_mod and backbone(sd1).text_encoder() is sd1.text_encoder._orig_mod
    coded = Edit((Adapter("unet", edits.KEYS[0], "spm", {"a": torch.ones(1)}, {}),), plain.base, "test")
    with pytest.raises(EditError, match=r"a compiled unet does not run: set pipe\.unet = pipe\.unet\._orig_mod first"):
        coded.apply(sd1)


def test_a_part_compiled_in_place_takes_edits_of_weights_and_refuses_code(sd1):
    plain = edits.edit(sd1)
    sd1.unet.mid_block.compile()
    with plain.applied(sd1):
        pass
    coded = Edit((Adapter("unet", edits.KEYS[0], "spm", {"a": torch.ones(1)}, {}),), plain.base, "test")
    with pytest.raises(EditError, match="a compiled unet does not run: load the pipeline again"):
        coded.apply(sd1)


def test_one_changed_weight_is_noticed(sd1):
    edit = edits.edit(sd1)
    with torch.no_grad():
        edits.module(sd1, "unet", edits.KEYS[1]).weight[0, 0] += 1e-6
    refused(BaseMismatchError, "1 of 4 modules differ, unet/mid_block", edit, sd1)


def test_an_edit_without_fingerprints_is_refused(sd1):
    edit = edits.edit(sd1)
    refused(BaseMismatchError, "4 of 4", Edit(edit.ops, Base("x", "sd1", {}), "test"), sd1)


def test_nan_in_the_weights_is_an_error_also_when_forced(sd1):
    edit = edits.edit(sd1)
    with torch.no_grad():
        edits.module(sd1, "unet", edits.KEYS[1]).weight[0, 0] = float("nan")
    refused(ModelError, "unet/mid_block.*NaN", edit, sd1, force=True)


def test_missing_component_module_and_shape_are_named(sd1):
    up, down = torch.ones(32, 1), torch.ones(1, 32)
    ops = {
        "no 'transformer'": LowRank("transformer", "x", up, down),
        "no weight for the low_rank op on unet/nowhere.to_k": LowRank("unet", "nowhere.to_k", up, down),
        "no weight for the dense op on unet/down_blocks": Dense("unet", "down_blocks.0", up),
        r"shape \(7, 32\), the model's is \(32, 32\)": LowRank("unet", edits.KEYS[0], torch.ones(7, 1), down),
        "bias, and the model's module has none": Projection("unet", edits.KEYS[0], bias=torch.ones(32)),
    }
    good = edits.edit(sd1)
    for words, op in ops.items():
        refused(EditError, words, Edit((*good.ops, op), good.base, "test"), sd1, force=True)


def test_a_change_that_overflows_the_dtype_is_refused_and_rolled_back(sd1):
    sd1.to(torch.float16)
    op = Dense("unet", edits.KEYS[1], torch.full((64, 32), 1e6))
    refused(EditError, "does not fit into torch.float16", edits.edit(sd1, *edits.edit(sd1).ops[:1], op), sd1)


def test_code_that_is_not_known_is_refused_by_name(sd1):
    adapter = Adapter("unet", edits.KEYS[0], "gate", {"a": torch.ones(1)}, {"n": 1})
    known = edits.edit(sd1)
    refused(EditError, r"adapter op on unet/.* adapter 'gate', unknown", Edit((adapter,), known.base, "test"), sd1)
    guidance = Edit((*known.ops, Guidance("negative", {}, {})), known.base, "test")
    refused(EditError, "guidance 'negative', unknown", guidance, sd1)
    with pytest.raises(EditError, match="cannot be fused"):
        guidance.fuse(sd1)


def test_fused_projections_are_refused(sd1):
    """They are read from a copy: the edit would do nothing, and nobody would know."""
    sd1.unet.fuse_qkv_projections()
    refused(EditError, "unfuse_qkv_projections", edits.edit(sd1), sd1)
    sd1.unet.unfuse_qkv_projections()
    with edits.edit(sd1).applied(sd1):
        pass


def test_known_code_is_attached_and_detached(sd1, monkeypatch):
    calls = []

    def negative(pipe, op, scale):
        calls.append((pipe, op.config["strength"], scale))
        return lambda: calls.append("off")

    monkeypatch.setitem(attach.GUIDANCES, "negative", negative)
    edit = Edit((Guidance("negative", {}, {"strength": 2}),), Base("tiny", "sd1", {}), "test")
    with edit.applied(sd1, scale=0.5):
        assert calls == [(sd1, 2, 0.5)]
    assert calls[1:] == ["off"]


def test_ops_refuse_what_they_cannot_be():
    for make in (
        lambda: LowRank("unet", "m", torch.ones(4, 2), torch.ones(3, 4)),
        lambda: Dense("unet", "m", torch.tensor([float("nan")])),
        lambda: Dense("unet", "m", torch.tensor([1])),
        lambda: Projection("unet", "m"),
        lambda: Projection("unet", "m", left=torch.ones(2, 3)),
    ):
        with pytest.raises(EditError, match="unet/m"):
            make()
    with pytest.raises(EditError, match="no op"):
        Edit((), Base("tiny", "sd1", {}), "test")
    with pytest.raises(UsageError, match="finite"):
        Edit((Dense("unet", "m", torch.ones(1)),), Base("tiny", "sd1", {}), "test") * float("inf")


def test_description_is_plain_and_complete(sd1):
    import json

    found = json.loads(json.dumps(edits.edit(sd1).describe()))
    assert found["rank_max"] == 3
    assert found["bytes"] == sum(t.numel() * 4 for op in edits.edit(sd1).ops for t in (op.up, op.down))
    assert found["ops"][0] == {
        "kind": "low_rank", "component": "unet", "module": edits.KEYS[0], "shapes": {"up": [32, 2], "down": [2, 32]},
    }  # fmt: skip
    assert {"modules", "residual", "relative_update", "retained_drift"} <= set(found["self_check"])
