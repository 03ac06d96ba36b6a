"""Model folders with broken small files or weights of a wrong kind: one `ModelError` that names the file, by either way in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import erasekit
from erasekit import models
from erasekit.backbones import backbone
from erasekit.backbones._folder import check_tokenizer
from erasekit.errors import ModelError

TEXT, UNET, WORDS = "text_encoder/config.json", "unet/config.json", "tokenizer/tokenizer.json"
BROKEN = {  # file -> what is put there: text, or a change of its JSON object
    "no pipeline class": ("model_index.json", {"_class_name": []}),
    "a pipeline class of another kind": ("model_index.json", {"_class_name": {"a": 1}}),
    "an index that is a list": ("model_index.json", "[]"),
    "no object": (UNET, "[]"),
    "no JSON": (TEXT, "{"),
    "layers that are no number": (TEXT, {"num_hidden_layers": "x"}),
    "no layers": (TEXT, {"num_hidden_layers": 0}),
    "heads that are no number": (TEXT, {"num_attention_heads": [4]}),
    "an epsilon that is no number": (TEXT, {"layer_norm_eps": "small"}),
    "an empty tokenizer": (WORDS, "{}"),
    "a tokenizer without words": (WORDS, {"model": {"type": "BPE", "vocab": {}, "merges": []}}),
    "a tokenizer that is a list": (WORDS, "[]"),
}


def broken(folder: Path, to: Path, file: str, content: str | dict) -> Path:
    copied = Path(shutil.copytree(folder, to / "m"))
    path = copied / file
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    return copied


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_small_file_is_named(case: str, sd1_folder: Path, tmp_path: Path) -> None:
    file, content = BROKEN[case]
    copied = broken(sd1_folder, tmp_path, file, content)
    for way in (backbone, models.load):
        with pytest.raises(ModelError, match=str(copied / file)) as error:
            way(copied)
        assert "\n" not in str(error.value) and "again" in str(error.value)


def test_a_tokenizer_without_files_is_not_the_words_fault(sd1_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(sd1_folder, tmp_path / "m"))
    for path in (copied / "tokenizer").iterdir():
        path.unlink()
    for way in (lambda place: erasekit.erase(place, "cat", anchor="dog"), models.load):
        with pytest.raises(ModelError, match=r"tokenizer has neither tokenizer\.json nor vocab\.json"):
            way(copied)
    shutil.rmtree(copied / "tokenizer")
    with pytest.raises(ModelError, match="tokenizer has neither"):
        backbone(copied)


def test_the_older_tokenizer_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ModelError, match="neither"):
        check_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    check_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ModelError, match=r"vocab\.json holds no vocabulary"):
        check_tokenizer(tmp_path)


def test_a_tokenizer_that_does_not_fit_together_is_named(sd1_folder: Path, tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}
    copied = broken(sd1_folder, tmp_path, WORDS, {"model": model})
    with pytest.raises(ModelError, match="tokenizer holds no readable tokenizer"):
        backbone(copied)


WEIGHTS = {
    "a projection of another shape": ("text_encoder/model", "layers.1.self_attn.q_proj.weight", lambda t: t[:5, :5]),
    "an MLP of another width": ("text_encoder/model", "layers.0.mlp.fc2.weight", lambda t: t[:, :9]),
    "keys of another width": ("unet/diffusion_pytorch_model", "attn2.to_k.weight", lambda t: t[:, :9]),
    "integers": ("unet/diffusion_pytorch_model", "attn2.to_v.weight", lambda t: (100 * t).to(torch.int8)),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_weight_of_another_shape_or_kind_is_named_with_its_file(case: str, sd1_folder: Path, tmp_path: Path) -> None:
    part, ending, harm = WEIGHTS[case]
    copied = Path(shutil.copytree(sd1_folder, tmp_path / "m"))
    path = copied / f"{part}.safetensors"
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if n.endswith(ending))
    save_file(tensors | {name: harm(tensors[name]).contiguous()}, path)
    for method in ("erasepro", "uce"):
        with pytest.raises(ModelError) as error:
            erasekit.erase(copied, "cat", anchor="dog", method=method)
        assert name in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_packed_numbers_are_told_by_their_kind_and_not_by_their_shape(sd1, sd1_folder: Path, tmp_path: Path) -> None:
    """Four bits each, as bitsandbytes stores them."""
    copied = Path(shutil.copytree(sd1_folder, tmp_path / "m"))
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    path, module = copied / "unet" / "diffusion_pytorch_model.safetensors", sd1.unet.get_submodule(name)
    packed = torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8)
    save_file(load_file(path) | {f"{name}.weight": packed}, path)
    module.weight = torch.nn.Parameter(packed, requires_grad=False)
    for model in (copied, sd1):
        with pytest.raises(ModelError, match=r"holds uint8 numbers, which are not edited: give the model in float16"):
            backbone(model)


def test_heads_that_do_not_divide_the_width(sd1_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="5 attention heads"):
        backbone(broken(sd1_folder, tmp_path, TEXT, {"num_attention_heads": 5}))
