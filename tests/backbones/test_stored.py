"""Which files of a folder are read: the same by a fit, by `load` and by what says their precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import edits
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import erasekit
from erasekit import cli, models
from erasekit.backbones import _stored, backbone
from erasekit.errors import ModelError
from erasekit.evaluation.arms import model_sha256

UNET = "diffusion_pytorch_model"


def put(folder: Path, *names: str) -> Path:
    """A model folder with empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def index(folder: Path, *parts: str) -> Path:
    """The folder, its index naming these parts."""
    (folder / models.INDEX).write_text(json.dumps({part: ["diffusers", "Part"] for part in parts}))
    return folder


@pytest.mark.parametrize(("names", "variant"), [
    (("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"), None),
    (("unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"), "fp16"),
    (("unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",), "fp16"),
    (("unet/diffusion_pytorch_model-00001-of-00002.bf16.safetensors",), "bf16"),
    (("unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"), None),
    (("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"), "fp16"),
    (("unet/diffusion_pytorch_model.safetensors", "safety_checker/model.fp16.safetensors"), None),
    (("unet/diffusion_pytorch_model.bin",), None),
])  # fmt: skip
def test_a_variant_is_read_where_a_part_has_no_plain_file(names: tuple[str, ...], variant: str | None, tmp_path: Path) -> None:
    put(tmp_path, *names, "a_copy/diffusion_pytorch_model.ema.safetensors")  # no part of the pipeline
    assert _stored.variant(index(tmp_path, "safety_checker", "text_encoder", "unet")) == variant


def test_a_folder_of_a_variant_alone_is_erased_from_and_loaded(tmp_path: Path) -> None:
    tiny.sd1().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    edit = erasekit.erase(tmp_path, "cat", anchor="dog", method="uce")
    assert models.stored_dtype(tmp_path) == torch.float16
    with edit.applied(models.load(tmp_path)):
        pass
    lazy = backbone(tmp_path)
    assert lazy.denoiser().dtype == lazy.text_encoder().dtype == torch.float32


def test_of_two_precisions_the_one_that_is_loaded_counts(sd1_folder: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(sd1_folder, tmp_path / "m"))
    tiny.sd1(seed=1).to(torch.float16).save_pretrained(both, variant="fp16")
    assert sorted(path.name for path in (both / "unet").glob("*.safetensors"))[0] == f"{UNET}.fp16.safetensors"
    assert models.stored_dtype(both) == torch.float32
    assert backbone(both).fingerprint(backbone(both).sites("cross.k")[0]) == backbone(sd1_folder).fingerprint(
        backbone(sd1_folder).sites("cross.k")[0]
    )


def test_a_damaged_file_has_no_precision(sd1_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(sd1_folder, tmp_path / "m"))
    (copied / "unet" / f"{UNET}.safetensors").write_bytes(b"no model")
    with pytest.raises(ModelError, match="damaged"):
        models.stored_dtype(copied)


# -- all that is read, and nothing else -----------------------------------------------------------------------------


def test_shards_and_their_index_are_read_and_the_other_variants_are_not(tmp_path: Path) -> None:
    shards = [f"unet/{UNET}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    read = ["unet/config.json", f"unet/{UNET}.safetensors.index.json", *shards, "tokenizer/merges.txt"]
    put(tmp_path, *read, f"unet/{UNET}.fp16.safetensors", f"unet/{UNET}.safetensors.index.fp16.json", "unet/._config.json",
        f"unet/{UNET}.bin", f"unet/{UNET}.bin.index.json", "safety_checker/model.safetensors", "a_copy/model.safetensors",
        "unet/README.md")  # fmt: skip
    index(tmp_path, "unet", "tokenizer", "safety_checker", "scheduler")
    table = {"weight_map": {"a": Path(shards[0]).name, "b": Path(shards[1]).name}}
    (tmp_path / read[1]).write_text(json.dumps(table))
    assert {str(path.relative_to(tmp_path)) for path in _stored.files(tmp_path)} == {models.INDEX, *read}
    (tmp_path / shards[1]).unlink()
    with pytest.raises(ModelError, match=rf"{shards[1]} is missing"):
        _stored.files(tmp_path)


def test_a_model_is_known_by_the_files_that_are_read(sd1_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(sd1_folder, tmp_path / "m"))
    put(copied, f"unet/{UNET}.bin", f"unet/{UNET}.fp16.safetensors", "safety_checker/model.safetensors", "notes/a.txt")
    assert model_sha256(copied) == model_sha256(sd1_folder)
    with (copied / "unet" / "config.json").open("a") as file:
        file.write(" ")
    assert model_sha256(copied) != model_sha256(sd1_folder)


def test_small_files_that_are_not_read_may_be_broken(sd1_folder: Path, tmp_path: Path) -> None:
    source = put(guarded(sd1_folder, tmp_path / "m", "config.json", "model.safetensors"), "unet/._config.json")
    assert not (source / "safety_checker" / "config.json").read_text()  # no JSON
    assert models.load(source).safety_checker is None


@pytest.mark.parametrize(
    ("part", "stem", "pickled"), [("unet", UNET, f"{UNET}.bin"), ("text_encoder", "model", "pytorch_model.bin")]
)
def test_weights_as_a_pickle_alone_are_refused_by_every_way_in(
    part: str, stem: str, pickled: str, sd1_folder: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(sd1_folder, tmp_path / "m"))
    plain = copied / part / f"{stem}.safetensors"
    torch.save(load_file(plain), copied / part / pickled)
    models.load(copied)  # what lies beside is not opened
    plain.unlink()
    for way in (backbone, models.load):
        with pytest.raises(ModelError, match=rf"{part}/{pickled} is a pickle, which is not read") as error:
            way(copied)
        assert "\n" not in str(error.value)


# -- what `load` leaves out is not lost ---------------------------------------------------------------------------


def guarded(folder: Path, to: Path, *files: str) -> Path:
    """The model with a safety checker of these files."""
    copied = Path(shutil.copytree(folder, to))
    index = json.loads((copied / models.INDEX).read_text())
    entry = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index |= {"safety_checker": entry, "requires_safety_checker": True}
    (copied / models.INDEX).write_text(json.dumps(index))
    for name in files:
        put(copied, f"safety_checker/{name}")
        if name.endswith(".safetensors"):
            save_file({"a": torch.ones(2)}, copied / "safety_checker" / name)
    return copied


@pytest.mark.parametrize(("files", "kept"), [
    (("config.json", "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"), {"config.json", "model.safetensors"}),
    (("config.json", "model.fp16.safetensors"), {"config.json", "model.safetensors"}),
    (("config.json", "pytorch_model.bin"), {"config.json", "pytorch_model.bin"}),
    ((), set()),
])  # fmt: skip
def test_apply_keeps_the_safety_checker_or_says_that_it_cannot(
    files: tuple[str, ...], kept: set[str], sd1, sd1_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = guarded(sd1_folder, tmp_path / "m", *files), tmp_path / "out"
    (source / "safety_checker" / "config.json").write_text("{}") if files else None
    edits.edit(sd1).save(tmp_path / "e.safetensors")
    capfd.readouterr()
    assert cli.main(["apply", str(tmp_path / "e.safetensors"), "--model", str(source), "--out", str(out)]) == 0
    said, index = capfd.readouterr().err.splitlines(), json.loads((out / models.INDEX).read_text())
    assert {path.name for path in (out / "safety_checker").glob("*")} == kept
    assert index["requires_safety_checker"] == bool(files)
    if files:
        assert not said and index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    else:
        assert len(said) == 1 and said[0].startswith("erasekit: warning:") and "without the safety_checker" in said[0]
        assert index["safety_checker"] == [None, None]
    assert models.load(out).safety_checker is None


def test_apply_fetches_the_safety_checker_of_a_hub_model(
    sd1, sd1_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    source, asked = guarded(sd1_folder, tmp_path / "m", "config.json", "model.safetensors"), []

    def fetched(name: str, **given: list[str]) -> str:
        asked.append("safety_checker/model*.safetensors" in given["allow_patterns"])
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    edits.edit(sd1).save(tmp_path / "e.safetensors")
    words = ["apply", str(tmp_path / "e.safetensors"), "--model", "someone/model", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0 and True in asked
    assert (tmp_path / "out" / "safety_checker" / "model.safetensors").is_file()


def test_a_model_is_named_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    names = {"emoji": "emoji", "someone/model": "someone/model", "own/model": "model", "own/../own/model/": "model",
             str(tmp_path / "gone" / "sd"): "sd", "~/models/sd": "sd", ".": tmp_path.name}  # fmt: skip
    assert {name: models.public_name(name) for name in names} == names
    assert models.public_name(tmp_path / "own") == "own"
