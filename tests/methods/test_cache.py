"""The cache of what retained prompts give: the same numbers bit for bit, found again only where they belong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.errors import EditError
from erasekit.methods import _cache
from erasekit.methods._cache import CacheWarning, State, cached, grown, text_digest
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


def test_the_folder_is_no_part_of_the_request(tmp_path: Path) -> None:
    one, other = EraseRequest.build("cat", retain_cache=tmp_path), EraseRequest.build("cat")
    assert one == other and hash(one) == hash(other) and str(tmp_path) not in repr(one)



class Sum:
    """Adds up its prompts' numbers and notes with which of them each batch began; `stop` is where it is killed."""

    def __init__(self, prompts: list[str], *, stop: int | None = None) -> None:
        self.prompts, self.stop = prompts, stop
        self.begun: list[int] = []

    def __call__(self, state: State, first: int) -> State:
        if first == self.stop:
            raise KeyboardInterrupt
        self.begun.append(first)
        return {"sum": state["sum"] + sum(map(len, self.prompts[first : first + 2]))}


def grow(model: object, folder: Path | None, count: int, *, stop: int | None = None) -> tuple[float, list[int]]:
    """The sum over the first `count` of the prompts, in batches of two, and the batches that were added for it."""
    add = Sum([f"fox{'x' * number}" for number in range(count)], stop=stop)
    start = {"sum": torch.zeros(1, dtype=torch.float64)}
    found = grown(backbone(model), add.prompts, "k", start, add, batch=2, folder=folder)
    return float(found["sum"]), add.begun


@pytest.fixture
def stride(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "STRIDE", 2)  # four prompts


def test_a_longer_list_goes_on_where_whole_batches_are_kept(sd1, stride: None, tmp_path: Path) -> None:
    plain = {count: grow(sd1, None, count)[0] for count in (6, 7, 8, 11)}
    assert grow(sd1, tmp_path, 6) == (plain[6], [0, 2, 4]) and len(list(tmp_path.iterdir())) == 1
    assert grow(sd1, tmp_path, 8) == (plain[8], [6])
    assert grow(sd1, tmp_path, 7) == (plain[7], [6]), "from the six, and not from the eight"
    assert grow(sd1, tmp_path, 11) == (plain[11], [8, 10])
    assert grow(sd1, tmp_path, 11) == (plain[11], []) and len(list(tmp_path.iterdir())) == 4


def test_an_odd_end_keeps_the_state_before_it(sd1, stride: None, tmp_path: Path) -> None:
    grow(sd1, tmp_path, 9)
    assert len(list(tmp_path.iterdir())) == 2, "after eight and after nine; the one after four is gone"
    assert grow(sd1, tmp_path, 10) == (grow(sd1, None, 10)[0], [8])


def test_a_killed_sum_goes_on(sd1, stride: None, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        grow(sd1, tmp_path, 11, stop=6)
    assert grow(sd1, tmp_path, 11) == (grow(sd1, None, 11)[0], [4, 6, 8, 10])


def test_a_damaged_beginning_falls_back_on_a_shorter_one(sd1, stride: None, tmp_path: Path) -> None:
    grow(sd1, tmp_path, 4)
    (short,) = tmp_path.iterdir()
    grow(sd1, tmp_path, 8)
    next(path for path in tmp_path.iterdir() if path != short).write_bytes(b"hello")
    with pytest.warns(CacheWarning, match="computed again"):
        assert grow(sd1, tmp_path, 10) == (grow(sd1, None, 10)[0], [4, 6, 8])


def test_a_full_disk_is_said_once_and_loses_nothing(sd1, stride: None, tmp_path: Path, monkeypatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise EditError(f"{path} cannot be written: no space left")

    monkeypatch.setattr(_cache, "write_whole", full)
    with pytest.warns(CacheWarning, match="no space left") as caught:
        assert grow(sd1, tmp_path, 11) == (grow(sd1, None, 11)[0], [0, 2, 4, 6, 8, 10])
    assert len(caught) == 1
