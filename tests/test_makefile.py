"""The Makefile sets up what a target needs, once, and leaves no half-made environment behind; over a Python that only notes
what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")

PYTHON = """#!/bin/sh
echo "$*" >> calls
case "$*" in
  "-c "*) exit ${OLD:-0} ;;
  "-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/erasekit; exit ${BROKEN:-0} ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    shutil.copy(Path(__file__).parent.parent / "Makefile", tmp_path)
    python = tmp_path / "py"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def make(place: Path, *words: str, python: str = "./py", **given: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}  # of `make test`
    return subprocess.run(["make", *words, f"PYTHON={python}"], cwd=place, env=own | given, capture_output=True, text=True)


def installed(place: Path) -> list[str]:
    lines = (place / "calls").read_text().splitlines()
    return [line.rpartition("-e ")[2] for line in lines if line.startswith("-m pip install")]


@pytest.mark.parametrize(("targets", "wanted"), [
    (("demo", "demo", "test", "test", "demo"), [".", ".[dev]"]),
    (("test", "demo"), [".[dev]"]),
])  # fmt: skip
def test_each_target_installs_what_it_needs_once(targets: tuple[str, ...], wanted: list[str], place: Path) -> None:
    for target in targets:
        assert make(place, target).returncode == 0
    assert installed(place) == wanted


@pytest.mark.parametrize(("python", "old"), [("./py", "1"), ("./none", "0")])
def test_a_python_too_old_is_said_before_anything_is_made(python: str, old: str, place: Path) -> None:
    result = make(place, "demo", python=python, OLD=old)
    assert result.returncode and f"{python} is no Python 3.11 or later: name one, as in make PYTHON=python3.12" in result.stderr
    assert not (place / ".venv").exists()
    assert make(place, "demo").returncode == 0


def test_an_environment_that_cannot_be_made_is_not_kept(place: Path) -> None:
    assert make(place, "demo", BROKEN="1").returncode and not (place / ".venv").exists()
    assert make(place, "demo").returncode == 0 and installed(place) == ["."]
