"""The public names, models by name, and the one call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import erasekit
from erasekit import ModelError, UsageError, models


def weights(pipe) -> dict[str, torch.Tensor]:
    return {f"{part}/{name}": tensor.clone() for part in ("text_encoder", "unet", "vae")
            for name, tensor in getattr(pipe, part).state_dict().items()}  # fmt: skip


def test_every_public_name_exists() -> None:
    assert set(erasekit.__all__) <= set(dir(erasekit))
    for name in erasekit.__all__:
        assert callable(getattr(erasekit, name))
    with pytest.raises(AttributeError, match="magic"):
        _ = erasekit.magic


def test_erase_leaves_the_pipeline_bitwise(sd1) -> None:
    before = weights(sd1)
    edit = erasekit.erase(sd1, "cat", anchor="dog", retain=["fox"])
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(sd1).items())
    assert (edit.targets, edit.anchors, edit.retain, edit.method) == (("cat",), ("dog",), ("fox",), "erasepro")


@pytest.mark.parametrize("method", ["erasepro", "uce"])
def test_folder_and_pipeline_give_the_same_edit(method: str, sd1, sd1_folder: Path) -> None:
    one = erasekit.erase(sd1, ["cat", "the fox"], anchor="dog", method=method)
    two = erasekit.erase(sd1_folder, ["cat", "the fox"], anchor="dog", method=method)
    assert len(one.ops) == len(two.ops) and one.base.fingerprint == two.base.fingerprint
    for a, b in zip(one.ops, two.ops, strict=True):
        assert all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())


def test_parameters_and_progress_reach_the_method(sd1) -> None:
    said: list[tuple[int, int, str]] = []
    edit = erasekit.erase(sd1, "cat", anchor="dog", method="uce", lamb=0.25, progress=lambda *facts: said.append(facts))
    assert edit.parameters["lamb"] == 0.25 and said and said[-1][0] == said[-1][1]
    with pytest.raises(UsageError, match="magic"):
        erasekit.erase(sd1, "cat", anchor="dog", method="uce", magic=1)
    with pytest.raises(UsageError, match="unknown method"):
        erasekit.erase(sd1, "cat", anchor="dog", method="magic")


def test_a_family_that_a_method_does_not_know(sd1, monkeypatch: pytest.MonkeyPatch) -> None:
    from erasekit.methods.uce import UCE

    monkeypatch.setattr(UCE, "families", ("sd9",))
    with pytest.raises(UsageError, match="sd9"):
        erasekit.erase(sd1, "cat", anchor="dog", method="uce")


def test_resolve(tmp_path: Path, sd1_folder: Path) -> None:
    assert models.resolve(sd1_folder) == models.resolve(str(sd1_folder)) == sd1_folder
    for name in ("magic", str(tmp_path / "none"), "a/b/c", str(tmp_path)):
        with pytest.raises(ModelError):
            models.resolve(name)
    (tmp_path / "file.ckpt").write_text("")
    with pytest.raises(ModelError, match=r"model_index\.json"):
        models.resolve(tmp_path / "file.ckpt")


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"someone/model.*network"):
        models.resolve("someone/model")


def test_a_hub_id_fetches_one_copy_of_the_weights(monkeypatch: pytest.MonkeyPatch, sd1_folder: Path) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, list[str]] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **given: asked.update(given) or str(sd1_folder))
    assert models.resolve("someone/model") == sd1_folder
    files = ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
             "unet/diffusion_pytorch_model.bin", "text_encoder/model.safetensors", "tokenizer/merges.txt", "v1-5.ckpt",
             "v1-5.safetensors", "safety_checker/model.safetensors", "unet/config.json", "README.md",
             "checkpoint-500/unet/diffusion_pytorch_model.safetensors"]  # fmt: skip
    kept = set(filter_repo_objects(files, **asked))
    assert kept == {files[0], files[1], files[4], files[5], files[9]}


def test_load(sd1_folder: Path) -> None:
    pipe = erasekit.load(sd1_folder)
    assert pipe.unet.dtype == torch.float32 and not pipe.unet.training and pipe.safety_checker is None
    assert pipe.name_or_path == sd1_folder.name, "no path of this machine reaches an edit file"
    assert erasekit.load(str(sd1_folder), dtype=torch.bfloat16).text_encoder.dtype == torch.bfloat16


def test_defaults_and_stored_dtype(sd1, tmp_path: Path) -> None:
    assert models.defaults(tmp_path) == {"steps": 30, "guidance": 7.5}
    (tmp_path / "defaults.json").write_text(json.dumps({"steps": 20, "guidance": 2.5, "more": 1}))
    assert models.defaults(tmp_path) == {"steps": 20, "guidance": 2.5}
    (tmp_path / "defaults.json").write_text("[")
    with pytest.raises(ModelError, match=r"defaults\.json"):
        models.defaults(tmp_path)
    sd1.to(torch.float16).save_pretrained(tmp_path / "half")
    assert models.stored_dtype(tmp_path / "half") == torch.float16
    shutil.rmtree(tmp_path / "half" / "unet")
    with pytest.raises(ModelError, match="half"):
        models.load(tmp_path / "half")
