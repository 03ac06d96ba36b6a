"""Every key of an export against tables of names built here from the public SD 1.x config, and what ComfyUI adds."""

from __future__ import annotations

import itertools
from pathlib import Path

import edits
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from erasekit.edit import Base, Dense, Edit, LowRank, Projection


@pytest.fixture(scope="module")
def sd14() -> dict[str, torch.Size]:
    """Module name -> weight shape of the U-Net and the text encoder of SD 1.4, without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8, layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )  # fmt: skip
    shapes = {f"unet.{name}": m.weight.shape for name, m in unet.named_modules() if hasattr(m, "weight")}
    for i, part in itertools.product(range(12), ("q_proj", "k_proj", "v_proj", "out_proj")):
        shapes[f"text_encoder.encoder.layers.{i}.self_attn.{part}"] = torch.Size([768, 768])
    for i in range(12):
        shapes[f"text_encoder.encoder.layers.{i}.mlp.fc1"] = torch.Size([3072, 768])
        shapes[f"text_encoder.encoder.layers.{i}.mlp.fc2"] = torch.Size([768, 3072])
    return {name: shape for name, shape in shapes.items() if len(shape) >= 2}


def kohya_table() -> dict[str, tuple[int, ...]]:
    """kohya's base names of what a closed-form method edits in SD 1.x, written down place by place."""
    table = {}
    places = [("down_blocks", block, (0, 1), 320 * 2**block) for block in (0, 1, 2)]
    places += [("up_blocks", block, (0, 1, 2), 320 * 2 ** (3 - block)) for block in (1, 2, 3)]
    names = [(f"{side}_{block}", j, width) for side, block, inner, width in places for j in inner]
    for where, j, width in [*names, ("mid_block", 0, 1280)]:
        for part in ("to_k", "to_v"):
            table[f"lora_unet_{where}_attentions_{j}_transformer_blocks_0_attn2_{part}"] = (width, 768)
    for i, part in itertools.product(range(12), ("q_proj", "k_proj", "v_proj", "out_proj")):
        table[f"lora_te_text_model_encoder_layers_{i}_self_attn_{part}"] = (768, 768)
    for i in range(12):
        table[f"lora_te_text_model_encoder_layers_{i}_mlp_fc1"] = (3072, 768)
        table[f"lora_te_text_model_encoder_layers_{i}_mlp_fc2"] = (768, 3072)
    return table


def whole_edit(shapes: dict[str, torch.Size], kind: str) -> Edit:
    """An edit of every attn2 K and V, and of every q, k, v and MLP of the text encoder (with and without prefix)."""
    ops = []
    for i, (name, shape) in enumerate(shapes.items()):
        component, _, module = name.partition(".")
        if "out_proj" in name or (component == "unet" and not name.endswith(("attn2.to_k", "attn2.to_v"))):
            continue
        if component == "text_encoder" and i % 2:
            module = f"text_model.{module}"
        up, down = torch.ones(shape[0], 1), torch.ones(1, shape[1])
        ops.append(LowRank(component, module, up, down) if kind == "low" else Dense(component, module, (up @ down)))
    return Edit(tuple(ops), Base("sd14", "sd1", {}), "erasepro", targets=("cat",))


def bases(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Base (text before the first dot, as A1111 and sd-scripts split) -> part -> tensor."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        base, _, part = key.partition(".")
        found.setdefault(base, {})[part] = tensor
    return found


def test_kohya_names_are_those_of_the_public_model(sd14, tmp_path):
    edit = whole_edit(sd14, "low")
    edit.export(tmp_path / "k.safetensors", format="kohya")
    table, found = kohya_table(), bases(tmp_path / "k.safetensors")
    assert set(found) <= set(table)
    assert len(found) == len(edit.ops) + 1 == 32 + 12 * 5 + 1  # the zero out_proj pair
    for base, parts in found.items():
        assert set(parts) == {"lora_down.weight", "lora_up.weight"}  # a pair, and no alpha
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        assert (up.shape[0], down.shape[1]) == table[base]
        assert up.shape[1] == down.shape[0]
        rows, columns = table[base]  # of a delta of ones
        total = 0 if "out_proj" in base else rows * columns
        assert float((up.sum(0) * down.sum(1)).sum()) == pytest.approx(total, rel=1e-4)


def test_comfy_names_and_differences(sd14, tmp_path):
    shapes = {name: shape for i, (name, shape) in enumerate(sd14.items()) if "attn2" in name or ".layers.3." in name}
    edit = whole_edit(shapes, "dense")
    edit.export(tmp_path / "c.safetensors", format="comfy")
    table, found = kohya_table(), bases(tmp_path / "c.safetensors")
    assert set(found) <= set(table)
    assert len(found) == len(edit.ops) == 32 + 5
    assert all(set(parts) == {"diff"} and (*parts["diff"].shape,) == table[base] for base, parts in found.items())


def test_peft_names_are_those_of_the_public_model(sd14, tmp_path):
    edit = whole_edit(sd14, "low")
    edit.export(tmp_path / "p.safetensors", format="peft")
    known = {name.replace("text_encoder.", "text_encoder.text_model.") for name in sd14}
    keys = set(load_file(tmp_path / "p.safetensors"))
    assert {key.removesuffix(".weight").removesuffix(".lora_A").removesuffix(".lora_B") for key in keys} <= known
    assert len(keys) == 2 * len(edit.ops)


def test_comfy_differences_added_to_the_model_are_the_edit(sd1, tmp_path):
    """What ComfyUI does: look the base up in a map of the model, add `.diff` to the weight, `.diff_b` to the bias."""
    edit = edits.edit(
        sd1,
        edits.low_rank(sd1, "unet", "conv_in", rank=2),
        edits.dense(sd1, "unet", "conv_norm_out"),
        edits.dense(sd1, "unet", edits.KEYS[0]),
        edits.low_rank(sd1, "unet", edits.KEYS[1], rank=2),
        edits.dense(sd1, "text_encoder", edits.TEXT[0]),
        Projection("text_encoder", edits.TEXT[0], bias=torch.ones(32)),
    )
    with edit.applied(sd1):
        wanted = edits.weights(sd1)
    edit.export(tmp_path / "c.safetensors", format="comfy")
    names = {"lora_unet_" + name.replace(".", "_"): m for name, m in sd1.unet.named_modules()}
    names |= {"lora_te_text_model_" + name.replace(".", "_"): m for name, m in sd1.text_encoder.named_modules()}
    with torch.no_grad():
        for base, parts in bases(tmp_path / "c.safetensors").items():
            for part, tensor in parts.items():
                getattr(names[base], {"diff": "weight", "diff_b": "bias"}[part]).add_(tensor)
    assert all(torch.allclose(value, wanted[name], atol=1e-6) for name, value in edits.weights(sd1).items())


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("sd1", {"ss_base_model_version": "sd_v1", "ss_v2": "False"}),
        ("sd2", {"ss_v2": "True"}),
        ("sdxl", {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}),
    ],
)
def test_kohya_metadata_names_the_family(family, wanted, sd1, tmp_path):
    edits.edit(sd1, family=family).export(tmp_path / "k.safetensors", format="kohya")
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        metadata = file.metadata()
        prefixes = {key.split("_text_model")[0] for key in file.keys() if key.startswith("lora_te")}  # noqa: SIM118
    assert wanted.items() <= metadata.items()
    assert metadata["ss_output_name"] == "erasekit-erasepro-cat"
    assert "erasekit" not in metadata  # an export is not taken for an edit
    assert prefixes == {"lora_te1" if family == "sdxl" else "lora_te"}


def test_sdxls_second_encoder_has_its_own_names(tmp_path):
    op = LowRank("text_encoder_2", edits.TEXT[0], torch.ones(4, 1), torch.ones(1, 4))
    edit = Edit((op,), Base("x", "sdxl", {}), "test")
    edit.export(tmp_path / "k", format="kohya")
    assert all(key.startswith("lora_te2_text_model_encoder_layers_0_self_attn_") for key in load_file(tmp_path / "k"))
    edit.export(tmp_path / "p", format="peft")
    assert all(key.startswith("text_encoder_2.text_model.encoder.layers.0.") for key in load_file(tmp_path / "p"))
