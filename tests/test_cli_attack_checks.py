"""`erasekit attack --checks` and its page as a newcomer uses them, on the embedded model with few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from erasekit.cli import main


def test_checks_are_run_kept_printed_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit, out = tmp_path / "cat.safetensors", tmp_path / "attacked"
    assert main(["erase", "cat", "--anchor", "dog", "--out", str(edit)]) == 0
    command = ["attack", "prompts", "--edit", str(edit), "--steps", "2", "--cases", "3", "--out", str(out)]
    assert main(command) == 0
    assert "checks" not in json.loads((out / "results.json").read_text())
    assert "None was run" in (out / "report.html").read_text()
    capfd.readouterr()
    assert main([*command, "--checks"]) == 0  # on the same folder: what is done is kept
    found, said = json.loads((out / "results.json").read_text()), capfd.readouterr().out
    assert {one["check"]: one["status"] for one in found["checks"]}.keys() == {"randomness", "weak edit"}
    assert found["checks"][0]["status"] == "ok" and found["rungs"][0]["fell"] in (None, 1.0)
    assert "checks: 2, of which" in said and "report.html" in said and (out / "checks/plain/state.json").exists()
    assert "None was run" not in (out / "report.html").read_text()


def test_the_benchmark_has_controls_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["attack", "m-erasurebench", "--target", "cat", "--checks", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "has controls of its own" in capfd.readouterr().err and not (tmp_path / "out").exists()
