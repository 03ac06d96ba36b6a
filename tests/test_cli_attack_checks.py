"""`erasekit attack --checks` and its page as a newcomer uses them, on the embedded model with few steps."""

from __future__ import annotations

import json
from pathlib import Path

import attacked
import pytest

from erasekit.attacks import checks
from erasekit.attacks.folder import kept_beside
from erasekit.cli import main
from erasekit.errors import UsageError


def test_checks_are_run_kept_printed_and_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, out = tmp_path / "cat.safetensors", tmp_path / "attacked"
    assert main(["erase", "cat", "--anchor", "dog", "--out", str(edit)]) == 0
    command = ["attack", "synonyms", "--edit", str(edit), "--steps", "2", "--cases", "2", "--out", str(out)]
    assert main(command) == 0
    assert "checks" not in json.loads((out / "results.json").read_text())
    assert "None was run" in (out / "report.html").read_text()
    capfd.readouterr()
    assert main([*command, "--checks"]) == 0  # on the same folder: what is done is kept
    found, said = json.loads((out / "results.json").read_text()), capfd.readouterr().out
    assert {one["check"]: one["status"] for one in found["checks"]}.keys() == {"randomness", "weak edit", "hidden cases"}
    assert found["checks"][0]["status"] == "ok" and found["rungs"][0]["fell"] in (None, 1.0)
    summary = f"checks: {len(found['checks'])}, of which"
    assert summary in said and "report.html" in said and (out / "checks/plain/state.json").exists()
    assert "None was run" not in (out / "report.html").read_text()
    whole = [(out / name).read_bytes() for name in ("results.json", "report.html")]
    assert main(command) == 0 and summary in capfd.readouterr().out  # without: those of the same numbers stay

    def stopped(*given, **options):
        raise UsageError("not now")

    monkeypatch.setattr(checks, "checked", stopped)
    assert main([*command, "--checks"]) == 2 and "not now" in capfd.readouterr().err
    assert [(out / name).read_bytes() for name in ("results.json", "report.html")] == whole


def test_what_belongs_to_other_numbers_is_not_carried_over(tmp_path: Path) -> None:
    place, made = attacked.folder(tmp_path / "a"), {"never_knew": {"rungs": []}, "checks": [{"check": "twins"}]}
    path = place / "results.json"
    found = json.loads(path.read_text())
    assert kept_beside(place, found) == {}
    path.write_text(json.dumps(found | made))
    assert kept_beside(place, found) == kept_beside(place, found | {"model": "by another name"}) == made
    assert kept_beside(place, found | {"edit_sha256": "other"}) == kept_beside(place, found | {"rungs": []}) == {}
    path.write_text("{")
    assert kept_beside(place, found) == kept_beside(tmp_path, found) == {}


def test_the_benchmark_has_controls_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["attack", "m-erasurebench", "--target", "cat", "--checks", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "has controls of its own" in capfd.readouterr().err and not (tmp_path / "out").exists()
