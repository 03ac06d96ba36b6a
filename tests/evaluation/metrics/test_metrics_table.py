"""The metrics' table: complete, light to import, and the same in the docs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from erasekit.errors import UsageError
from erasekit.evaluation.metrics import METRICS, get

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_every_metric_is_described() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name and metric.direction in ("up", "down", "none")
        assert metric.definition and metric.unit and metric.source


def test_a_name_may_carry_its_space() -> None:
    found = get("kid(emoji-clip-v1)")
    assert found.name == "kid(emoji-clip-v1)" and found.definition == METRICS["kid"].definition
    local = get("m1-local(emoji-clip-v1)")
    assert local.name == "m1-local(emoji-clip-v1)" and local.definition == METRICS["m1"].definition
    with pytest.raises(UsageError, match="unknown metric 'beauty'"):
        get("beauty")


def test_the_docs_say_the_same() -> None:
    rows = [line.strip("| \n").split(" | ") for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == list(METRICS)
    for row in rows:
        metric = METRICS[row[0].strip("`")]
        assert [cell.replace("\\|", "|") for cell in row[1:5]] == [
            metric.definition,
            metric.unit,
            metric.direction,
            metric.source,
        ]
        assert len(row) == 6 and len(row[5]) > 10


def test_the_table_is_light() -> None:
    code = "import sys, erasekit.evaluation.metrics; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
