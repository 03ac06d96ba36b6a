"""`erasekit attack` and `erasekit attacks` as a newcomer uses them, on the embedded model with few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from erasekit import models
from erasekit.cli import main
from erasekit.evaluation import arms

QUICK = ["--steps", "2", "--cases", "3"]


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edit") / "cat.safetensors"
    assert main(["erase", "cat", "--anchor", "dog", "--out", str(path)]) == 0
    return path


def test_a_ladder_gives_one_number_and_goes_on(
    edit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["attack", "seeds", "--edit", str(edit), "--out", str(tmp_path / "a"), *QUICK]
    assert main(command) == 0
    said = capfd.readouterr().out
    assert "worst case over all:" in said and "seed search" in said
    found = json.loads((tmp_path / "a/results.json").read_text())
    assert found["target"] == "cat" and found["worst"]["of"] == 3 and found["edit"] == "erasepro"
    before = (tmp_path / "a/results.json").read_bytes()
    assert main(command) == 0 and (tmp_path / "a/results.json").read_bytes() == before
    assert main([*command[:-1], "2"]) == 2
    assert "another run (other cases)" in capfd.readouterr().err
    assert found["kind"] == "object" and main([*command, "--style"]) == 2
    said = capfd.readouterr().err.strip()
    assert "another run (other kind of target): name another folder" in said and "\n" not in said
    assert (found["device"], found["precision"], "torch" in found["versions"]) == ("cpu", "float32", True)
    folder = models.resolve("emoji")
    assert main([*command, "--model", str(folder)]) == 0  # by another name, the same weights
    assert json.loads((tmp_path / "a/results.json").read_text()) == found | {"model": folder.name}
    load = models.load
    monkeypatch.setattr(models, "load", lambda name, **options: load(name, dtype=torch.bfloat16, **options))
    monkeypatch.setattr(arms, "versions", lambda: {"torch": "0"})
    capfd.readouterr()
    assert main(command) == 2 and "another run (other precision, library versions): name" in capfd.readouterr().err


def test_the_unedited_model_is_attacked_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", "prompts", "--target", "cat", "--set", "seeds=2", "--out", str(tmp_path / "a"), *QUICK]) == 0
    assert json.loads((tmp_path / "a/results.json").read_text())["edit"] is None


def test_a_model_of_another_kind_gets_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *given, **options: type("FluxPipeline", (), {})())
    assert main(["attack", "prompts", "--target", "cat", "--out", str(tmp_path / "a")]) == 2
    assert "models of class FluxPipeline are not supported: use StableDiffusionPipeline" in capfd.readouterr().err


def test_attacks_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["attacks"]) == 0 and "--set seeds=1" in capfd.readouterr().out
    assert main(["attacks", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert listed["prompts"]["access"] == ["prompts"] and "rounds" in listed["m-erasurebench"]["parameters"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["attack", "nonsense", "--target", "cat"], "unknown attack 'nonsense': use one of seeds"),
        (["attack", "nonsense", "--target", "cat"], "m-erasurebench"),
        (["attack", "prompts"], "name what should come back"),
        (["attack", "prompts", "--target", "unicorn dust"], "does not know 'unicorn dust'"),
        (["attack", "prompts", "--target", "cat", "--set", "sneeds=1"], "no parameter sneeds"),
        (["attack", "seeds", "--target", "cat", "--set", "seeds=1"], "is fixed"),
        (["attack", "prompts", "--target", "cat", "--cases", "0"], "--cases takes a number from 1 on"),
    ],
)
def test_bad_requests_get_one_line(words: list[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    said = capfd.readouterr().err.strip()
    assert says in said and "\n" not in said
    assert not (tmp_path / "out").exists()
