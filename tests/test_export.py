"""Exports against the loaders: diffusers itself loads the files and must end with the edit's weights."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import edits
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file

from erasekit.edit import Adapter, Base, Dense, Edit, LowRank, Projection
from erasekit.errors import EditError, UsageError
from erasekit.export import export, save_folder

ALL_TEXT = [f"encoder.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in ("q", "k", "v")]

# What an edit may touch, and the component whose helper pair the format then needs.
CONTENTS = {
    "cross and text": (edits.KEYS, edits.TEXT),
    "text q, k, v": ([], ALL_TEXT),
    "text mlp": ([], edits.MLP),
    "text fc2 alone": ([], edits.MLP[1:]),
    "text q, k, v and mlp": ([], ALL_TEXT + edits.MLP),
    "text with out_proj": ([], ["encoder.layers.0.self_attn.out_proj", *edits.MLP]),
    "one cross module": (edits.KEYS[:1], []),
    "convolutions and feed-forward": (["conv_in", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"], []),
}


def edit_of(pipe, contents: str, family: str = "sd1") -> Edit:
    """An edit with another rank for every module."""
    unet, text = CONTENTS[contents]
    places = [("unet", name) for name in unet] + [("text_encoder", name) for name in text]
    ops = [
        edits.low_rank(pipe, component, name, rank=1 + i % 4, seed=3 * i, size=1.0)
        for i, (component, name) in enumerate(places)
    ]
    return edits.edit(pipe, *ops, family=family)


def load_strictly(pipe: StableDiffusionPipeline, path: Path, caplog) -> None:
    """`load_lora_weights` with peft's warnings and diffusers' and transformers' complaints as failures."""
    for name in ("diffusers", "transformers", "peft"):
        logging.getLogger(name).addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("error", UserWarning)
            pipe.load_lora_weights(path)
    finally:
        for name in ("diffusers", "transformers", "peft"):
            logging.getLogger(name).removeHandler(caplog.handler)
    parts = {key.split(".")[0] for key in load_file(path)}
    has = {
        "unet": any(part == "unet" or part.startswith("lora_unet") for part in parts),
        "text_encoder": any(part == "text_encoder" or part.startswith("lora_te") for part in parts),
    }
    for record in caplog.records:
        text = record.getMessage()
        component = "text_encoder" if "TextModel" in text else "unet"
        harmless = "No LoRA keys associated to" in text and not has[component]
        assert harmless or record.levelno < logging.WARNING, text


def deltas(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """Every delta that peft has on the pipeline."""
    return {
        f"{part}/{name}": layer.get_delta_weight("default_0").detach()
        for part in ("unet", "text_encoder")
        for name, layer in getattr(pipe, part).named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


FAMILIES = [*(("sd1", name) for name in CONTENTS),
            ("sd2", "cross and text"), ("sd2", "convolutions and feed-forward")]  # fmt: skip
"""Which helpers a format needs depends on the contents alone."""


@pytest.mark.parametrize(("family", "contents"), FAMILIES)
@pytest.mark.parametrize("format", ["peft", "kohya"])
def test_diffusers_loads_exactly_the_edit(family, format, contents, tmp_path, caplog):
    pipe = getattr(tiny, family)()
    edit = edit_of(pipe, contents, family)
    edit.export(tmp_path / "lora.safetensors", format=format)
    with edit.applied(pipe):
        wanted = tiny.image(pipe, latent=True)
    base = tiny.image(pipe, latent=True)
    load_strictly(pipe, tmp_path / "lora.safetensors", caplog)
    found = deltas(pipe)
    for op in edit.ops:
        assert edits.relative(found.pop(op.site), op.delta(pipe_weight(pipe, op))) < 1e-5
    helpers = {"peft": {"text mlp", "text fc2 alone"}, "kohya": {name for name, (_, text) in CONTENTS.items() if text}}
    helpers["kohya"] -= {"text with out_proj"}
    assert len(found) == (contents in helpers[format])
    assert all(not delta.any() for delta in found.values())
    assert edits.relative(tiny.image(pipe, latent=True), wanted) < 1e-5
    assert edits.relative(base, wanted) > 1e-4  # the comparison can fail
    pipe.unload_lora_weights()
    assert torch.equal(tiny.image(pipe, latent=True), base)


def pipe_weight(pipe, op) -> torch.Tensor:
    return edits.module(pipe, op.component, op.module).weight


def test_half_an_edit_is_half_the_delta_in_the_file(sd1, tmp_path, caplog):
    edit = edit_of(sd1, "cross and text")
    (0.5 * edit).export(tmp_path / "half.safetensors", format="peft")
    load_strictly(sd1, tmp_path / "half.safetensors", caplog)
    for op in edit.ops:
        assert edits.relative(deltas(sd1)[op.site], 0.5 * op.delta(pipe_weight(sd1, op))) < 1e-5


@pytest.mark.parametrize("format", ["peft", "kohya"])
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_gated_modules_are_exported_without_their_gate_and_the_file_says_so(family, format, tmp_path, caplog):
    pipe, path = getattr(tiny, family)(), tmp_path / "spm.safetensors"
    places = sorted(name for name, part in pipe.unet.named_modules() if ".attentions." in name and hasattr(part, "weight"))
    wanted = {}
    for i, name in enumerate(name for name in places if "norm" not in name):
        weight = edits.module(pipe, "unet", name).weight
        wanted[f"{name}.down"] = edits.noise(4, *weight.shape[1:], seed=i, size=1)
        wanted[f"{name}.up"] = edits.noise(weight.shape[0], 4, seed=i + 500, size=1)
    config = {"rank": 2, "alpha": 3.0, "gate": "transport", "targets": ["cat", "fox"], "tokens": [[1], [2]]}
    op = Adapter("unet", "", "spm", wanted | {"features": torch.ones(2, 77, 32)}, config)
    edit = Edit((op,), Base("tiny", family, {}), "spm", targets=("cat", "fox"), anchors=("", ""))
    edit.export(path, format=format)
    with safe_open(path, "pt") as file:
        assert "gate" in file.metadata()["erasekit_not_exported"]
    load_strictly(pipe, path, caplog)
    found = deltas(pipe)
    assert len(found) == len(wanted) / 2
    for site, delta in found.items():
        name = site.removeprefix("unet/")
        product = 3 / 2 * wanted[f"{name}.up"] @ wanted[f"{name}.down"].flatten(1)
        assert edits.relative(delta, product.reshape(delta.shape)) < 1e-5
    with pytest.raises(EditError, match=r"the spm adapter op on unet cannot be exported as comfy: .*kohya"):
        edit.export(tmp_path / "comfy.safetensors", format="comfy")
    plain = Edit((Adapter("unet", "", "spm", op.weights, config | {"gate": "off"}),), edit.base, "spm")
    plain.export(path, format=format)
    with safe_open(path, "pt") as file:
        assert "erasekit_not_exported" not in file.metadata()


# -- refusals ---------------------------------------------------------------------------------------------------

UP, DOWN = torch.ones(4, 1), torch.ones(1, 4)
NAME = "encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("op", "formats", "words"),
    [
        (Dense("unet", "m.to_k", UP @ DOWN), ("peft", "kohya"), r"dense op on unet/m.to_k .*comfy.*compress"),
        (Projection("unet", "m", UP @ DOWN), ("peft", "kohya", "comfy"), "projection op on unet/m .*erasekit apply"),
        (Adapter("unet", "m", "gate"), ("peft", "kohya", "comfy"), "adapter op on unet/m .*code"),
        (LowRank("text_encoder_3", "m", UP, DOWN), ("peft", "kohya", "comfy"), "text_encoder_3"),
        (LowRank("transformer", "m", UP, DOWN), ("kohya", "comfy"), "transformer.*peft"),
        (LowRank("text_encoder", "embeddings.token_embedding", UP, DOWN), ("peft", "kohya", "comfy"), "token_.*erasekit apply"),
        (Dense("text_encoder", "embeddings.token_embedding", UP), ("peft", "kohya", "comfy"), "token_.*erasekit apply"),
        (Dense("text_encoder", "encoder.layers.0.layer_norm1", UP), ("peft", "kohya", "comfy"), "layer_norm1.*erasekit apply"),
        (LowRank("text_encoder_2", "text_projection", UP, DOWN), ("peft", "kohya", "comfy"), "text_projection"),
        (LowRank("unet", "mid_block.norm1", UP, DOWN), ("peft", "kohya"), "norm1.*export `comfy`"),
    ],
)
def test_ops_that_a_format_cannot_hold_are_named(op, formats, words, tmp_path):
    good = LowRank("text_encoder", NAME, UP, DOWN)
    for format in formats:
        with pytest.raises(EditError, match=words) as caught:
            Edit((good, op), Base("x", "sd1", {}), "test").export(tmp_path / "e", format=format)
        assert "\n" not in str(caught.value) and f"exported as {format}" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_zero_edits_and_unknown_formats_are_refused(sd1, tmp_path):
    for format in ("peft", "kohya", "comfy"):
        with pytest.raises(EditError, match="changes nothing"):
            export(0.0 * edits.edit(sd1), tmp_path / "e", format)
    with pytest.raises(EditError, match="of a flux model cannot be exported as kohya"):
        export(edits.edit(sd1, family="flux"), tmp_path / "e", "kohya")
    with pytest.raises(UsageError, match="choose peft, kohya, comfy"):
        export(edits.edit(sd1), tmp_path / "e", "onnx")
    with pytest.raises(UsageError, match="erasekit apply"):
        export(edits.edit(sd1), tmp_path / "e", "diffusers")
    with pytest.raises(EditError, match="is a folder"):
        export(edits.edit(sd1), tmp_path, "peft")
    assert not list(tmp_path.iterdir())


# -- a diffusers folder -----------------------------------------------------------------------------------------


def test_a_folder_holds_the_fused_model_and_the_pipeline_stays(sd1, tmp_path):
    edit, before = edits.edit(sd1), edits.weights(sd1)
    with edit.applied(sd1):
        wanted = edits.weights(sd1)
    save_folder(edit, sd1, tmp_path / "fused")
    assert edits.same(edits.weights(sd1), before)
    back = StableDiffusionPipeline.from_pretrained(tmp_path / "fused", safety_checker=None)
    assert edits.same(edits.weights(back), wanted)
    with pytest.raises(EditError, match="not an empty folder"):
        save_folder(edit, sd1, tmp_path / "fused")
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]
    assert not [path for path in (tmp_path / "fused").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_nothing_is_left_of_a_folder_that_failed(sd1, tmp_path, monkeypatch):
    monkeypatch.setattr(sd1, "save_pretrained", lambda folder: (Path(folder) / "x").write_text("x") and 1 / 0)
    before = edits.weights(sd1)
    with pytest.raises(ZeroDivisionError):
        save_folder(edits.edit(sd1), sd1, tmp_path / "fused")
    assert not list(tmp_path.iterdir())
    assert edits.same(edits.weights(sd1), before)
