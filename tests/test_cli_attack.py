"""`erasekit attack` and `erasekit attacks` as a newcomer uses them, on the embedded model with few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from erasekit import models
from erasekit.cli import attack_never, main
from erasekit.errors import UsageError
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
    command = ["attack", "seeds", "--edit", str(edit), "--out", str(tmp_path / "a"), *QUICK[:-1], "2"]
    assert main(command) == 0
    said = capfd.readouterr().out
    assert "worst case over all:" in said and "seed search" in said and "not checked: a low number" in said
    found = json.loads((tmp_path / "a/results.json").read_text())
    assert found["target"] == "cat" and found["worst"]["of"] == 2 and found["edit"] == "erasepro"
    before = (tmp_path / "a/results.json").read_bytes()
    assert main(command) == 0 and (tmp_path / "a/results.json").read_bytes() == before
    assert main([*command[:-1], "1"]) == 2
    assert "another run (other cases)" in capfd.readouterr().err
    assert found["kind"] == "object" and main([*command, "--target", "ink style", "--style"]) == 2
    said = capfd.readouterr().err.strip()
    assert "another run (other cases, target, kind of target): name another folder" in said and "\n" not in said
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


def test_a_model_that_never_knew_the_target_stands_beside_each_rung(
    edit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["attack", "prompts", "--edit", str(edit), "--out", str(tmp_path / "a"), *QUICK]

    def stopped(*given, **options):
        raise UsageError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(attack_never, "climbed", stopped)
        assert main([*command, "--without-model", "emoji"]) == 2 and "not now" in capfd.readouterr().err
    ladder = json.loads((tmp_path / "a/results.json").read_text())
    assert (ladder["worst"]["of"], "never_knew" in ladder, (tmp_path / "a/report.html").exists()) == (3, False, True)
    assert main([*command, "--without-model", "emoji"]) == 0  # stands in for one: without the edit
    said, found = capfd.readouterr().out, json.loads((tmp_path / "a/results.json").read_text())
    (rung,) = found["never_knew"]["rungs"]
    assert "never knew it" in said and (rung["label"], rung["tried"]) == ("prompts", 3)
    assert found["edit"] == "erasepro" and len(list((tmp_path / "a/never-knew").rglob("*.png"))) == 3
    assert main([*command, "--without-model", "nowhere"]) != 0 and "nowhere" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["prompts", "m-erasurebench"])
def test_a_model_that_knows_the_target_is_refused_before_any_is_loaded(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model-without-dog+ink-style"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    (folder / "without.json").write_text(json.dumps({"concepts": ["dog"], "styles": ["ink"]}))

    def load(*given, **options):
        raise UsageError("goes on to the models")

    monkeypatch.setattr(models, "load", load)
    command = ["attack", name, "--without-model", str(folder), "--out", str(tmp_path / "a")]
    assert main([*command, "--target", "cat"]) == 2
    said = capfd.readouterr().err.strip()
    assert "the model there was trained with 'cat', and without dog, ink: ask for one of these" in said and "\n" not in said
    for known in (["dog"], ["ink style", "--style"]):
        assert main([*command, "--target", *known]) == 2 and "goes on to the models" in capfd.readouterr().err


def test_a_style_with_the_word_is_the_style_in_sentences_for_styles(tmp_path: Path) -> None:
    command = ["attack", "prompts", "--target", "noto style", "--style", "--out", str(tmp_path / "a"), *QUICK]
    assert main(command) == 0
    outcomes = json.loads((tmp_path / "a/01-prompts/outcomes.json").read_text())
    assert [one["case"]["prompt"] for one in outcomes][:2] == ["a picture of a dog in noto style", "a house in noto style"]
    found = json.loads((tmp_path / "a/results.json").read_text())
    assert (found["target"], found["kind"], found["worst"]["hits"] > 0) == ("noto", "style", any(
        one["status"] == "success" for one in outcomes))  # fmt: skip
    assert main([*command[:3], "noto", *command[4:]]) == 0  # the same request, the same folder


def test_a_model_of_another_kind_gets_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *given, **options: type("FluxPipeline", (), {})())
    assert main(["attack", "prompts", "--target", "cat", "--out", str(tmp_path / "a")]) == 2
    assert "models of class FluxPipeline are not supported: use StableDiffusionPipeline" in capfd.readouterr().err


def test_attacks_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["attacks"]) == 0
    said = capfd.readouterr().out
    assert "--set seeds=1" in said and "seeds: the ladder seeds@1 (needs prompts)\n  plain prompts: prompts\n" in said
    assert "  seed search: prompts seeds=8\n" in said and "  relearning: relearn rate=0.0005 at=25;50 (apart)" in said
    assert main(["attacks", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert listed["relearn"]["access"] == ["weights", "gradients", "original", "images"]
    assert "original" in listed["weight-noise"]["access"] and "original" in listed["standard"]["access"]
    assert [rung["attack"] for rung in listed["seeds"]["rungs"]] == ["prompts"] * 2
    assert listed["prompts"]["access"] == ["prompts"] and "rounds" in listed["m-erasurebench"]["parameters"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["attack", "nonsense", "--target", "cat"], "unknown attack 'nonsense': use one of seeds"),
        (["attack", "nonsense", "--target", "cat"], "m-erasurebench"),
        (["attack", "prompts"], "name what should come back"),
        (["attack", "prompts", "--target", "unicorn dust"], "does not know 'unicorn dust'"),
        (["attack", "prompts", "--target", "cat", "--style"], "does not know the style 'cat': name one of"),
        (["attack", "m-erasurebench", "--target", "cat", "--style"], "does not know the style 'cat': name one of"),
        (["attack", "prompts", "--target", "noto style"], "it is a style, attack it with --style"),
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
