"""The edit file: back as it was, and nothing damaged or foreign taken for an edit."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import edits
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from erasekit import io
from erasekit.edit import Edit, fingerprint
from erasekit.errors import EditError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "edit.safetensors"
    edits.example().save(path)
    return path


# -- the format -------------------------------------------------------------------------------------------------


def test_an_edit_comes_back_as_it_was(saved):
    edit, back = edits.example(), Edit.load(saved)
    for op, other in zip(edit.ops, back.ops, strict=True):
        assert type(op) is type(other)
        assert op.settings() == other.settings()
        assert op.tensors().keys() == other.tensors().keys()
        for name, tensor in op.tensors().items():
            assert tensor.dtype == other.tensors()[name].dtype
            assert torch.equal(tensor, other.tensors()[name])
    same = ("base", "method", "parameters", "targets", "anchors", "retain", "seed", "versions", "history")
    assert all(getattr(edit, name) == getattr(back, name) for name in same)
    # Numbers that JSON has no word for become null; scalars of torch become Python's.
    assert back.self_check == {"modules": 2, "residual": 1e-7, "condition": None, "sites": [{"rank": 2}]}


def test_the_file_is_the_contract(saved):
    """Read with safetensors alone: keys `ops.<i>.<name>`, one JSON document under `erasekit`."""
    header = json.loads(saved.read_bytes()[8:][: int.from_bytes(saved.read_bytes()[:8], "little")])
    document = json.loads(header["__metadata__"]["erasekit"])
    assert document == io.read_header(saved)
    assert document["format"] == io.FORMAT == 1
    assert document["base"]["id"] == "tiny model"
    assert document["base"]["fingerprint"]["unet/a.to_k"]["sha256"] == fingerprint(torch.ones(3, 2))["sha256"]
    assert document["ops"][0] == {
        "kind": "low_rank", "component": "unet", "module": "a.to_k", "shapes": {"up": [4, 2], "down": [2, 5]},
    }  # fmt: skip
    keys = {f"ops.{i}.{name}" for i, op in enumerate(document["ops"]) for name in op["shapes"]}
    assert set(load_file(saved)) == keys
    assert {"method", "parameters", "targets", "anchors", "retain", "seed", "versions", "self_check"} <= set(document)


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    edits.example().save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_a_loaded_edit_does_not_depend_on_the_file(saved):
    back = Edit.load(saved)
    saved.write_bytes(b"")
    assert torch.equal(back.ops[0].up, edits.example().ops[0].up)


def test_an_applied_loaded_edit_is_the_edit(sd1, tmp_path):
    edit = edits.edit(sd1)
    edit.save(tmp_path / "e")
    with edit.applied(sd1):
        wanted = edits.weights(sd1)
    with Edit.load(tmp_path / "e").applied(sd1):
        assert edits.same(edits.weights(sd1), wanted)


def test_values_that_are_no_data_are_refused_and_leave_nothing(tmp_path):
    edit = Edit(edits.example().ops, edits.example().base, "uce", parameters={"f": object()})
    with pytest.raises(EditError, match="not plain values"):
        edit.save(tmp_path / "e")
    assert not list(tmp_path.iterdir())


def test_an_edit_that_changes_nothing_is_no_file(sd1, tmp_path):
    with pytest.raises(EditError, match="changes nothing"):
        (0.0 * edits.edit(sd1)).save(tmp_path / "e")
    assert not list(tmp_path.iterdir())


# -- what is refused --------------------------------------------------------------------------------------------


def refused(words: str, path: Path) -> None:
    """`load` and `read_header` both refuse in one line."""
    for read in (io.load, io.read_header):
        with pytest.raises(EditError, match=words) as caught:
            read(path)
        assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_refused_unopened(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e").write_bytes(pickle.dumps({"a": Bomb()}, protocol=protocol))
    refused("a pickle" if protocol >= 2 else "not a safetensors file", tmp_path / "e")
    assert not (tmp_path / "exploded").exists()


def test_torch_checkpoints_and_zips_are_refused_unopened(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "e.pt")
    refused("zip archive", tmp_path / "e.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused("a pickle", tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("edit.safetensors", b"x")
    refused("zip archive", tmp_path / "z")


def test_a_header_whose_length_looks_like_a_pickle_is_still_read(saved, tmp_path):
    """0x0280 bytes of header start with b"\\x80\\x02", which is also how pickles start."""
    document = json.dumps({"format": 99})
    for pad in range(0x280):
        header = json.dumps({"__metadata__": {"erasekit": document, "pad": "x" * pad}}).encode()
        if len(header) == 0x280:
            break
    (tmp_path / "e").write_bytes(len(header).to_bytes(8, "little") + header)
    refused("format version 99", tmp_path / "e")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1, -100])
def test_truncated_files_are_refused(saved, length):
    data = saved.read_bytes()
    saved.write_bytes(data[:length])
    with pytest.raises(EditError, match=r"damaged|not a safetensors file"):
        io.load(saved)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory, data):
    """Of any bit in the file: an error of ours, or (in the checksum's own key) the very same edit."""
    path = tmp_path_factory.mktemp("flip") / "e"
    edits.example().save(path)
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    try:
        back = io.load(path)
    except EditError as error:
        assert "\n" not in str(error)
        return
    assert io._document(back) == io._document(Edit.load(_fresh(path)))
    assert all(torch.equal(a, b) for a, b in zip(_tensors(back), _tensors(edits.example()), strict=True))


def _fresh(path: Path) -> Path:
    edits.example().save(path.with_name("fresh"))
    return path.with_name("fresh")


def _tensors(edit: Edit) -> list[torch.Tensor]:
    return [tensor for op in edit.ops for _, tensor in sorted(op.tensors().items())]


def rewritten(saved: Path, change) -> None:
    """The file with its document changed and no checksum, as another program might write it."""
    document = io.read_header(saved)
    tensors = load_file(saved)
    change(document, tensors)
    save_file(tensors, saved, {"erasekit": json.dumps(document)})


def test_a_file_without_checksum_is_read(saved):
    rewritten(saved, lambda document, tensors: None)
    assert io.load(saved).targets == edits.example().targets


def test_a_newer_format_says_update(saved):
    rewritten(saved, lambda document, tensors: document.update(format=2))
    refused("format version 2, this erasekit reads up to 1: update erasekit", saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda document, tensors: document.pop("ops"),
        lambda document, tensors: document.update(ops=[]),
        lambda document, tensors: document.update(ops=3),
        lambda document, tensors: document["ops"].pop(),
        lambda document, tensors: document["ops"].pop(1),
        lambda document, tensors: document["ops"][0].update(kind="magic"),
        lambda document, tensors: document["ops"][0].pop("module"),
        lambda document, tensors: document["ops"][0]["shapes"].update(up=[1, 2]),
        lambda document, tensors: document.update(base=None),
        lambda document, tensors: document.update(format="x"),
        lambda document, tensors: document.update(format=0),
        lambda document, tensors: tensors.pop("ops.0.up"),
        lambda document, tensors: tensors.update({"ops.9.up": torch.ones(1)}),
        lambda document, tensors: tensors["ops.0.up"].fill_(float("nan")),
    ],
)
def test_documents_that_make_no_sense_are_refused(saved, change):
    before = io.read_header(saved)
    rewritten(saved, change)
    if io_reads_the_same(saved, before):
        return  # the guidance op holds no tensor: without it the rest is a whole edit
    with pytest.raises(EditError) as caught:
        io.load(saved)
    assert "\n" not in str(caught.value)


def io_reads_the_same(path: Path, before: dict) -> bool:
    try:
        return len(io.load(path).ops) == len(before["ops"]) - 1
    except EditError:
        return False


def test_other_safetensors_files_are_no_edit(tmp_path):
    for i, metadata in enumerate((None, {"format": "pt"}, {"erasekit": "no json"}, {"erasekit": "[1]"})):
        save_file({"unet.x.lora_A.weight": torch.ones(1, 2)}, tmp_path / f"{i}", metadata)
        refused("holds no erasekit edit" if i < 2 else "damaged", tmp_path / f"{i}")
    bomb = b"[" * 100_000
    header = b'{"a":' + bomb
    (tmp_path / "deep").write_bytes(len(header).to_bytes(8, "little") + header)
    refused("damaged", tmp_path / "deep")


def test_missing_files_and_folders_are_named(tmp_path):
    refused("is a folder", tmp_path)
    refused("does not exist", tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    refused("cannot be read", tmp_path / "file" / "e")
