"""Real processes ended by SIGKILL: what is run again ends in the same edit, bit for bit, and no checkpoint is ever torn.

Three processes a method, one thread each: the first is killed from outside at a moment drawn from a seed, after its
first checkpoint appeared; the second goes on and dies with half a checkpoint written; the third ends the run and, beside
it, makes the uninterrupted one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from erasekit import io
from erasekit.training.checkpoint import DOCUMENT, FILE

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "methods"))

from test_conformance import QUICK  # noqa: E402

DRIVER = """
import json, os, signal, sys
from pathlib import Path

import safetensors.torch
import torch

from erasekit import api

torch.set_num_threads(1)
asked = json.loads(sys.argv[1])
place, real, calls = Path(asked["place"]), safetensors.torch.save_file, []


def dying(tensors, path, *rest):
    calls.append(path)
    real(tensors, path, *rest)
    if len(calls) == 2:
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


def progress(done, total, what):
    if (place / asked["file"]).exists():
        print(done, flush=True)


def erase(**options):
    return api.erase(asked["folder"], asked["targets"], anchor="dog", method=asked["method"], **asked["parameters"], **options)


if asked["act"] == "die writing":
    safetensors.torch.save_file = dying
erase(checkpoint=place, progress=progress).save(asked["out"])
if asked["act"] == "end":
    erase().save(asked["whole"])
"""
SLOWEST = 0.2  # seconds after the first checkpoint within which the first process is killed
LONG = {"steps": 30, "save_every": 2}  # longer than that, whatever the machine
TARGETS = {"mace": ["cat", "fox"]}
LAST = {"mace": "checkpoint.2.safetensors"}  # that of the last target: all dies while it is trained


def started(asked: dict[str, object], errors: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(asked)], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=errors.open("w"))  # fmt: skip


def ended(asked: dict[str, object], errors: Path) -> int:
    """The exit code of a process that nobody disturbs."""
    child = started(asked, errors)
    child.communicate(timeout=600)
    return child.returncode


def losses(place: Path) -> list[float]:
    """What the run's checkpoint holds; every tensor of it is read."""
    with safe_open(place, "pt") as opened:
        assert all(bool(torch.isfinite(opened.get_tensor(name)).all()) for name in opened.keys())  # noqa: SIM118
        return json.loads(opened.metadata()[DOCUMENT])["losses"]


def tensors(path: Path) -> dict[tuple[int, str, str], torch.Tensor]:
    return {(i, op.module, key): value for i, op in enumerate(io.load(path).ops) for key, value in op.tensors().items()}


@pytest.mark.slow  # quick twins, ended by an exception: `test_a_killed_run_goes_on_to_the_same_edit` of each method
@pytest.mark.parametrize("method", QUICK)
def test_a_killed_run_ends_in_the_same_edit(method: str, sd1_folder: Path, tmp_path: Path) -> None:
    place, errors = tmp_path / "run", tmp_path / "errors"
    place.mkdir()
    targets, last = TARGETS.get(method, ["cat"]), place / LAST.get(method, FILE)
    asked = {"folder": str(sd1_folder), "method": method, "parameters": QUICK[method] | LONG, "place": str(place),
             "targets": targets, "file": last.name,
             "out": str(tmp_path / "resumed.safetensors"), "whole": str(tmp_path / "whole.safetensors")}  # fmt: skip

    first = started(asked | {"act": "be killed"}, errors)
    assert first.stdout is not None and first.stdout.readline(), errors.read_text()
    time.sleep(random.Random(f"{method} 0").uniform(0, SLOWEST))
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL, f"it ended by itself: {errors.read_text()}"
    known = losses(last)
    assert 2 <= len(known) < LONG["steps"] and len(known) % 2 == 0

    before = set(place.glob(".*.part"))
    assert ended(asked | {"act": "die writing"}, errors) == -signal.SIGKILL, errors.read_text()
    assert len(set(place.glob(".*.part")) - before) == 1, "it died with half a checkpoint beside the whole one"
    after = losses(last)
    assert len(after) == len(known) + 2 and after[: len(known)] == known

    assert ended(asked | {"act": "end"}, errors) == 0, errors.read_text()
    resumed, whole = tensors(tmp_path / "resumed.safetensors"), tensors(tmp_path / "whole.safetensors")
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert io.load(tmp_path / "resumed.safetensors").self_check["training"]["steps"] == LONG["steps"] * len(targets)
    assert len(losses(last)) == LONG["steps"]
