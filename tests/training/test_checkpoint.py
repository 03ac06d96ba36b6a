"""Files of older versions, which compared parameters that decide nothing, are gone on from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import erasekit
from erasekit.errors import TrainingError
from erasekit.training.checkpoint import DOCUMENT, FILE, Checkpoint
from erasekit.training.settings import TrainingConfig

QUICK = {
    "esd": {"sampling_steps": 2},
    "ac": {"sampling_steps": 2, "images": 2, "batch": 2, "augment": False},
    "mace": {"sampling_steps": 1, "count": 1, "templates": "none"},
}
"""The methods that come to their checkpoint each in its own way, in short runs."""


def test_parameters_that_decide_nothing_are_not_compared(tmp_path: Path) -> None:
    older = {"method": "esd", "parameters": {"rate": 0.1, "recompute": True}}
    Checkpoint.at(tmp_path, older).save({"a": torch.ones(1)}, [1.0])
    now = {"method": "esd", "parameters": {"rate": 0.1}}
    found = Checkpoint.at(tmp_path, now, free={"recompute", "save_every"}).load()
    assert found is not None and found[1] == [1.0]
    for about, free in ((now, ()), ({"method": "esd", "parameters": {"rate": 0.2}}, ("recompute",))):
        with pytest.raises(TrainingError, match=r"another run \(other parameters\)"):
            Checkpoint.at(tmp_path, about, free=free).load()


@pytest.mark.parametrize("method", QUICK)
def test_a_run_of_an_older_version_is_gone_on_from(method: str, sd1, tmp_path: Path, monkeypatch) -> None:
    options = {"anchor": "dog", "method": method, "steps": 1, "checkpoint": tmp_path, **QUICK[method]}
    said: list[str] = []
    with monkeypatch.context() as older:
        older.setattr(TrainingConfig, "decisive", asdict)
        erasekit.erase(sd1, "cat", **options)
    with safe_open(tmp_path / FILE, "pt") as file:
        about = json.loads(file.metadata()[DOCUMENT])["about"]
    assert about["parameters"]["recompute"] is False and isinstance(about.get("sentences", ""), str)
    erasekit.erase(sd1, "cat", **options, recompute=True, progress=lambda *report: said.append(report[2]))
    assert not any(what.startswith(("training", "drawing")) for what in said), said
