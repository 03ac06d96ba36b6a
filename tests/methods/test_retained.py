"""The cache of what retained prompts give: the same numbers bit for bit, found again only where they belong."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from erasekit import solvers
from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.errors import EditError
from erasekit.methods._cross import silent
from erasekit.methods._features import last_subject
from erasekit.methods._retained import CacheWarning, cached, erasable, retained_last_subject, text_digest
from erasekit.methods.uce import UCE, UCEConfig

PROMPTS = ["fox", "a photo of the moon", "dog"]


class Counted:
    """A computation that counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> dict[str, Tensor]:
        self.runs += 1
        return {"a": torch.arange(12.0, dtype=torch.float64).reshape(3, 4).T, "b": torch.ones(2)}


def through(model: object, folder: Path, prompts=PROMPTS, kind: str = "k") -> int:
    """How many computations one call took."""
    compute = Counted()
    found = cached(backbone(model), prompts, kind, compute, folder=folder)
    assert torch.equal(found["a"], Counted()()["a"]) and found["a"].is_contiguous()
    return compute.runs


def test_the_second_time_is_read_and_only_the_same_thing_is(sd1, sd1_folder: Path, tmp_path: Path) -> None:
    assert through(sd1, tmp_path) == 1
    assert through(sd1, tmp_path) == 0 and through(sd1_folder, tmp_path) == 0
    sd1.tokenizer(["a", "b c"], padding="max_length", max_length=77)  # leaves its padding switched on
    assert through(sd1, tmp_path) == 0
    assert through(sd1, tmp_path, PROMPTS[::-1]) == through(sd1, tmp_path, PROMPTS[:2]) == 1
    assert through(sd1, tmp_path, kind="other") == 1
    assert through(tiny.sd1(seed=1), tmp_path) == through(tiny.sd2(), tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 6 and all(path.suffix == ".safetensors" for path in tmp_path.iterdir())


def test_a_file_of_older_transformers_gives_the_same_digest(sd1, sd1_folder: Path, tmp_path: Path) -> None:
    """Hub files prefix every name, and hold position numbers, which are integers."""
    older = Path(shutil.copytree(sd1_folder, tmp_path / "m"))
    path = older / "text_encoder" / "model.safetensors"
    held = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(path).items()}
    save_file(held | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    assert text_digest(backbone(older)) == text_digest(backbone(sd1)) == text_digest(backbone(sd1_folder))
    request = EraseRequest.build("cat", anchor="dog", retain=["fox"], retain_cache=tmp_path / "cache")
    UCE().fit(backbone(older), request, UCEConfig())
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_digest_sees_weights_settings_and_tokenizer(sd1) -> None:
    first = text_digest(backbone(sd1))
    model = backbone(sd1)
    model.tower.eps *= 2
    assert text_digest(model) != first
    model = backbone(sd1)
    model.tower.activation = torch.nn.functional.gelu
    assert text_digest(model) != first
    model = backbone(sd1)
    model.tokenizer = tiny.tokenizer(pad="!")
    assert text_digest(model) != first
    with torch.no_grad():
        sd1.text_encoder.get_parameter(next(n for n, _ in sd1.text_encoder.named_parameters() if "fc2.bias" in n))[
            0
        ] += 1
    assert text_digest(backbone(sd1)) != first


@pytest.mark.parametrize("harm", ["cut", "flip", "text"])
def test_a_damaged_file_is_computed_again_with_one_warning(harm: str, sd1, tmp_path: Path) -> None:
    through(sd1, tmp_path)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-9], "flip": data[:-1] + bytes([data[-1] ^ 1]), "text": b"hello"}[harm])
    with pytest.warns(CacheWarning, match="computed again") as caught:
        assert through(sd1, tmp_path) == 1
    assert len(caught) == 1 and path.read_bytes() == data and len(list(tmp_path.iterdir())) == 1
    assert through(sd1, tmp_path) == 0


def test_a_folder_that_cannot_be_is_refused_before_the_work(sd1, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    compute = Counted()
    with pytest.raises(EditError, match="cannot be written"):
        cached(backbone(sd1), PROMPTS, "k", compute, folder=tmp_path / "file")
    assert not compute.runs


def test_without_folder_or_prompts_nothing_is_written(sd1, tmp_path: Path) -> None:
    assert through(sd1, tmp_path, prompts=[]) == 1 and not list(tmp_path.iterdir())
    compute = Counted()
    cached(backbone(sd1), PROMPTS, "k", compute, folder=None)
    assert compute.runs == 1


@pytest.mark.parametrize("tokens", ["tail", "last"])
def test_uce_gives_the_same_edit_and_encodes_no_retained_prompt(tokens: str, sd1, tmp_path: Path) -> None:
    said: list[str] = []
    edits = []
    for cache in (None, tmp_path, tmp_path):
        said.clear()
        request = EraseRequest.build("cat", anchor="dog", retain=PROMPTS[:2], retain_cache=cache)
        edits.append(UCE().fit(backbone(sd1), request, UCEConfig(tokens=tokens), progress=lambda *a: said.append(a[2])))
        assert ("encoding the retained" in said) == (len(edits) < 3)
    for other in edits[1:]:
        assert other.describe() == edits[0].describe()
        for a, b in zip(edits[0].ops, other.ops, strict=True):
            assert all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())


def test_last_subject_features_come_back_bit_for_bit(sd1, tmp_path: Path) -> None:
    model = backbone(sd1)
    plain = last_subject(model, PROMPTS, progress=silent, what="")
    for _ in range(2):
        found = retained_last_subject(model, PROMPTS, folder=tmp_path, progress=silent)
        assert found.dtype == torch.float64 and torch.equal(found, plain)
    assert retained_last_subject(model, [], folder=tmp_path, progress=silent).shape == (32, 0)


def test_the_folder_is_no_part_of_the_request(tmp_path: Path) -> None:
    one, other = EraseRequest.build("cat", retain_cache=tmp_path), EraseRequest.build("cat")
    assert one == other and hash(one) == hash(other) and str(tmp_path) not in repr(one)


def test_erasable_is_the_share_that_a_lone_pair_closes() -> None:
    generator = torch.Generator().manual_seed(0)
    x, kept, w = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((9, 1), (9, 4), (5, 9)))
    metric = solvers.prior(0.7 * kept @ kept.T, ridge=0.5)
    gap = torch.ones(5, 1, dtype=torch.float64)
    closed = gap @ solvers.inverse(x, prior=metric, scale=2.0).rows @ x
    assert torch.allclose(closed, gap * erasable(x, metric, scale=2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert erasable(kept[:, :1], solvers.prior(1e9 * kept @ kept.T, ridge=0.5), scale=1.0) < 1e-6
    assert w.shape == (5, 9)
