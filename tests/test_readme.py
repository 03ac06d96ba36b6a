"""The README's commands do what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import erasekit
from erasekit import cli, models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDER = "path/to/stable-diffusion"
SUITE = str(ROOT / "tests" / "small_suite.yaml")  # in place of a suite of minutes
EMOJI = Path(models.__file__).parent / "worlds" / "emoji" / "model" / "model_index.json"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_readme_has_what_is_tested_here() -> None:
    assert len(blocks("python")) == 2 and "emoji" in blocks("python")[0] and FOLDER in blocks("python")[1]
    assert {line.split()[0] for line in commands()} == {"make", "erasekit"}
    assert 8 <= len(blocks("python")[0].strip().splitlines()) <= 14, "about ten lines"


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {line.split()[1] for line in commands() if line.startswith("make")} <= set(targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_local_links_and_pictures_exist() -> None:
    missing = [link for link in re.findall(r"\]\((?!https?:)([^)]+)\)", README) if not (ROOT / link).exists()]
    assert missing == [] or (missing == ["docs/demo.png"] and not EMOJI.exists())


def run_ten_lines(model: str, folder: Path) -> None:
    exec(compile(blocks("python")[0].replace('"emoji"', repr(model)), "README.md", "exec"), {})
    assert {p.name for p in folder.iterdir()} == {"cat.safetensors", "after.png", "cat-lora.safetensors"}


def test_ten_lines_of_python_on_a_folder(sd1_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_ten_lines(str(sd1_folder), tmp_path)


@pytest.mark.skipif(not EMOJI.exists(), reason="the embedded model's weights are not in this checkout")
def test_ten_lines_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_ten_lines("emoji", tmp_path)


def test_a_stable_diffusion_folder(sd1_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[1].replace(FOLDER, str(sd1_folder)), "README.md", "exec"), {"erasekit": erasekit})
    assert [p.name for p in tmp_path.iterdir()] == ["artists.safetensors"]


def test_the_shell_commands(sd1_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keep.txt").write_text("fox\nowl\n")
    (tmp_path / "captions.txt").write_text("".join(f"a {a} and a {b}\n" for a in "bcdfg" for b in "hjklm"))
    for line in commands():
        if line.startswith("erasekit"):
            words = [word.replace(FOLDER, str(sd1_folder)) for word in shlex.split(line)[1:]]
            words += ["--steps", "1"] if words[0] in ("generate", "attack") else []
            words += ["--cases", "1"] if words[0] == "attack" else []
            words += ["--jobs", "1"] if words[0] == "evaluate" else []  # no processes that import torch
            words = [SUITE if word == "emoji/object" else word for word in words]
            assert cli.main(words) == 0, line
    made = {p.name for p in tmp_path.iterdir()}
    assert made == {"artists.safetensors", "pictures", "artists-lora.safetensors", "edited-model", "cat.safetensors",
                    "cat-report", ".erasekit-baseline", "attacked", "keep.txt", "captions.txt"}  # fmt: skip
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4
