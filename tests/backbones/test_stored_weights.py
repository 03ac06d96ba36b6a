"""How weights are read from files: what is large is not held in memory after its use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from erasekit.backbones import _weights
from erasekit.backbones._weights import FolderWeights
from erasekit.errors import ModelError

MAPS = Path("/proc/self/maps")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {"small.weight": torch.arange(6.0), "table.weight": torch.arange(8.0).reshape(4, 2)}
    part = tmp_path / "text_encoder"
    part.mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    save_file(tensors | {"broken.weight": torch.full((9,), torch.nan)}, part / "model.safetensors")
    return part


def mapped(folder: Path) -> int:
    """How many mappings of the folder's file this process holds."""
    return MAPS.read_text().count(str(folder / "model.safetensors"))


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells which files are mapped")
def test_a_large_tensor_is_unmapped_with_its_last_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_weights, "LARGE", 7)
    weights = FolderWeights("text_encoder", folder, "model")
    table = weights.get("table.weight")
    assert torch.equal(table, torch.arange(8.0).reshape(4, 2)) and mapped(folder)
    held = mapped(folder)
    again, row = weights.get("table.weight"), table[1].clone()
    del table, again
    assert mapped(folder) < held and row.tolist() == [2, 3]
    small = weights.get("small.weight")
    held = mapped(folder)
    del small
    assert mapped(folder) == held, "what is small shares one mapping, which stays"


def test_a_large_tensor_is_checked_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_weights, "LARGE", 7)
    with pytest.raises(ModelError, match=r"broken\.weight .*contains NaN"):
        FolderWeights("text_encoder", folder, "model").get("broken.weight")
