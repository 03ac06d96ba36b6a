"""ErasePro's knobs on the page: the pictures' tables beside the features', what is not drawn yet, and the plots."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import knobs_plots  # noqa: E402
import knobs_tables  # noqa: E402
from knobs_measure import point  # noqa: E402
from knobs_settings import KNOBS, Knob  # noqa: E402


def measure(hits: int, images: int = 10) -> dict:
    return {"hits": hits, "images": images, "share": hits / images if images else 0.0, "interval95": [0.1, 0.9]}


@pytest.fixture
def results() -> dict:
    """Features and pictures of the four quadrants, one of them refused; nothing else."""
    measures = {"target found": measure(2), "target unedited": measure(9), "anchor in its place": measure(0, 0),
                "anchor asked for": measure(0, 0), "others right": measure(8), "others unedited": measure(10)}  # fmt: skip
    settings = KNOBS["quadrants"].settings
    rows = [{"label": s.label, "line": s.line, "refused": 0, "mean": {"gap": 0.25, "drift": 0.5}, "sd": {"gap": 0.1}}
            for s in settings]  # fmt: skip
    points = {point(s): {"measures": measures, "refused": 0} for s in settings[:-1]}
    points[point(settings[-1])] = {"measures": {}, "refused": 2}
    made = {"judge": "eye", "targets": ["cat"], "asked": {"prompts": 6, "seeds": 2, "others": 12}}
    return {"model": "m", "targets": 1, "pairs": [["cat", "dog"]], "sentences": 1, "unrelated": 1,
            "knobs": {"quadrants": rows}, "pictures": {"made": made, "points": points}}  # fmt: skip


def test_a_knob_has_a_second_table_and_the_page_says_what_is_not_drawn(results, tmp_path) -> None:
    found = knobs_tables.blocks(results)
    features, pictures = found["quadrants"].split("\n\n")
    assert "| gap | drift |" in features and pictures.count("\n") == 6
    assert "| 20.0% (10.0% to 90.0%, n = 10) | 90.0% |  |  | 80.0% (10.0% to 90.0%, n = 10) | 100.0% |" in pictures
    assert pictures.splitlines()[-1] == "| UCE | as published |  |  |  |  |  |  | 2 |"
    assert "cat" in found["pictures"] and "Number of templates" in found["pictures"]
    assert KNOBS["quadrants"].title not in found["pictures"]
    assert "Model m (it is not known with which weights)" in found["run"]
    assert "Model m (sha256 3c3c3c3c3c3c)" in knobs_tables.blocks(results | {"model_sha256": "3c" * 32})["run"]
    assert found["prefix"] == found["conflicts"] == knobs_tables.NOT_YET, "no table of an earlier run stays on the page"
    before = knobs_tables.blocks(results | {"pictures": None})
    assert "found" not in before["quadrants"] and before["pictures"].startswith("Not run yet")
    (tmp_path / "page").mkdir()
    for name in ("quadrants", "prefix"):
        (tmp_path / "page" / f"{name}.svg").write_text("")
    shown = knobs_tables.with_plots(found, tmp_path / "page.md")
    assert shown["quadrants"].endswith("](page/quadrants.svg)") and shown["run"] == found["run"]
    assert shown["prefix"] == knobs_tables.NOT_YET, "the curve is of an earlier run"


@pytest.mark.parametrize("axis", ["", "templates"])
def test_a_plot_has_a_panel_for_each_measure_that_there_is(results, axis) -> None:
    settings = KNOBS["quadrants"].settings
    knob = Knob("A < B", settings, axis=axis)
    points = knobs_tables.judged(results, knob)
    plain, full = (knobs_plots.svg(knob, results["knobs"]["quadrants"], p) for p in ({}, points))
    assert plain.count("<circle") == 2 * 5 and full.count("<circle") == 2 * 5 + 2 * 4, "no anchor, and one was refused"
    assert "others right" in full and "others right" not in plain and "anchor in its place" not in full
    assert "A &lt; B" in full and full.count("<polyline") == (12 if axis else 0)
    assert knobs_plots.svg(knob, [], points).count("<circle") == 2 * 4
