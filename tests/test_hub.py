"""Models of the hub: what is fetched is what is read, and what lies in the cache already changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import tiny
import torch
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import filter_repo_objects

import erasekit
from erasekit import models
from erasekit.backbones import backbone
from erasekit.errors import ModelError, UsageError
from erasekit.evaluation.arms import model_sha256
from erasekit.evaluation.judges import folder as folders

NAME = "someone/model"
TEXT, UNET, VAE = "text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"


class Hub:
    """A hub of one model, the folder `repo`: what is asked for is copied into the folder `cache`."""

    def __init__(self, place: Path) -> None:
        self.repo, self.cache = place / "repo", place / "cache"

    def download(self, _: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        files = [path.relative_to(self.repo).as_posix() for path in self.repo.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.repo / file, self.cache / file)
        return str(self.cache)

    @property
    def weights(self) -> set[str]:
        """What was fetched of weights, without the ending."""
        found = self.cache.rglob("*.safetensors")
        return {path.relative_to(self.cache).as_posix().removesuffix(".safetensors") for path in found}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.download)
    return found


@pytest.fixture
def plain(hub: Hub, sd1_folder: Path) -> Path:
    """The repository with the plain weights of every part."""
    return Path(shutil.copytree(sd1_folder, hub.repo))


def halves(folder: Path) -> None:
    """Weights in fp16 beside what the folder has."""
    tiny.sd1().to(torch.float16).save_pretrained(folder, variant="fp16")


def erase():
    return erasekit.erase(NAME, "cat", anchor="dog", method="uce")


def test_a_closed_form_edit_fetches_what_it_reads(hub: Hub, plain: Path) -> None:
    halves(hub.repo)
    edit = erase()
    assert hub.weights == {TEXT, UNET}
    with edit.applied(erasekit.load(NAME)):
        pass
    assert hub.weights == {TEXT, UNET, VAE}
    assert model_sha256(models.resolve(NAME)) == model_sha256(plain), "known by the files that are read"


def test_the_autoencoder_is_fetched_when_training_asks_for_it(hub: Hub, plain: Path) -> None:
    model = backbone(NAME)
    model.denoiser(), model.noise_schedule()
    assert VAE not in hub.weights
    model.autoencoder()
    assert VAE in hub.weights


def test_a_model_of_fp16_weights_alone_is_fetched(hub: Hub) -> None:
    halves(hub.repo)
    edit = erase()
    assert hub.weights == {f"{TEXT}.fp16", f"{UNET}.fp16"}
    for _ in range(2):  # with and without the VAE in the cache
        with edit.applied(erasekit.load(NAME)):
            pass
        assert erase().base.fingerprint == edit.base.fingerprint


def test_a_part_without_plain_weights_is_fetched_in_fp16_and_the_others_once(hub: Hub, plain: Path) -> None:
    halves(hub.repo)
    (plain / f"{VAE}.safetensors").unlink()
    assert erasekit.load(NAME).vae.dtype == torch.float32
    assert hub.weights == {TEXT, UNET, f"{VAE}.fp16"}


def test_what_another_program_left_in_the_cache_changes_nothing(hub: Hub, plain: Path) -> None:
    halves(hub.repo)
    shutil.copytree(plain, hub.cache, ignore=lambda _, names: [name for name in names if name.endswith("model.safetensors")])
    assert hub.weights == {f"{TEXT}.fp16", f"{UNET}.fp16", f"{VAE}.fp16"}
    model = backbone(NAME)
    assert model.weight(model.sites("cross.k")[0]).dtype == torch.float32
    assert model_sha256(models.resolve(NAME)) == model_sha256(models.resolve(plain))


def test_weights_that_are_no_safetensors_are_said_with_a_remedy_for_the_hub(hub: Hub, plain: Path) -> None:
    (plain / f"{UNET}.safetensors").rename(plain / f"{UNET}.bin")
    for way in (backbone, erasekit.load):
        with pytest.raises(ModelError, match=r"no weights of unet as safetensors.*save_pretrained") as error:
            way(NAME)
        assert "\n" not in str(error.value)


def test_copies_of_parts_in_other_folders_are_left_there(hub: Hub, plain: Path) -> None:
    for part, copy in (("unet", "checkpoint-500/unet"), ("vae", "checkpoint-500/vae"), ("unet", "unet_ema")):
        shutil.copytree(plain / part, plain / copy)
    erase()
    assert hub.weights == {TEXT, UNET}
    erasekit.load(NAME)
    assert hub.weights == {TEXT, UNET, VAE}
    assert not {"checkpoint-500", "unet_ema"} & {path.name for path in hub.cache.iterdir()}


def test_of_a_class_that_is_not_supported_the_index_alone_is_fetched(hub: Hub, plain: Path) -> None:
    index = json.loads((plain / models.INDEX).read_text())
    (plain / models.INDEX).write_text(json.dumps(index | {"_class_name": "StableDiffusionXLPipeline"}))
    for way in (backbone, erasekit.load):
        with pytest.raises(UsageError, match="StableDiffusionXLPipeline are not supported: use StableDiffusionPipeline"):
            way(NAME)
    assert [path.name for path in hub.cache.iterdir()] == [models.INDEX]


@pytest.mark.parametrize("lost", [HTTPError, RuntimeError, OSError, ValueError])
def test_a_connection_that_is_lost_is_one_line(lost: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> str:
        raise lost("peer closed connection\nwithout a word")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    for way, what in ((models.resolve, "model"), (folders.download, "the judge's model")):
        with pytest.raises(ModelError, match=rf"cannot download {what} 'someone/model' \(peer closed connection\): ") as error:
            way(NAME)
        assert "\n" not in str(error.value)
