"""The committed numbers are of the weights that are shipped, and the page of the knobs has them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from erasekit import models
from erasekit.evaluation.arms import model_sha256

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/erasepro.md"
sys.path.insert(0, str(ROOT / "benchmarks"))

import knobs_tables  # noqa: E402


@pytest.fixture(scope="module")
def shipped() -> str:
    return model_sha256(models.resolve("emoji"))


def committed(name: str) -> dict:
    if not (path := RESULTS / name).exists():
        pytest.skip(f"there is no {name}")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["emoji_features.json", "emoji_erasure/results.json", "erasepro_knobs.json"])
def test_numbers_are_of_the_shipped_weights(name: str, shipped: str) -> None:
    found = committed(name)
    assert found.get("made", found).get("model_sha256") == shipped, f"measure {name} anew: it is of other weights"


def test_the_page_of_the_knobs_has_the_committed_numbers() -> None:
    text, blocks = PAGE.read_text(), knobs_tables.blocks(committed("erasepro_knobs.json"))
    blocks = knobs_tables.with_plots(blocks, PAGE)
    stale = [name for name, block in blocks.items() if f"<!-- knob:{name} -->\n{block}\n<!-- /knob -->" not in text]
    assert not stale, "run benchmarks/erasepro_knobs.py --again --docs docs/erasepro.md"
