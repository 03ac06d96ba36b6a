"""The benchmark scripts run on tiny shapes, and UCE there gives what the textbook loop gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(script: str, *options: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *options], check=True, env=environment, capture_output=True
    )


def test_closed_form_equals_the_textbook_loop(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run("closed_form.py", "--small", "--cache", str(tmp_path), "--only", "uce", "--out", str(out))
    found = json.loads(out.read_text())["results"]["uce"]
    assert found["relative_difference"]["update"] < 1e-5
    assert found["uce"]["edit_bytes"] > 0 and found["uce"]["peak_rss_mb"] < 1500


def test_startup_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "startup.json"
    run("startup.py", "--small", "--out", str(out))
    assert set(json.loads(out.read_text())["results"]) == {"python -c pass", "import erasekit", "erasekit --help"}
