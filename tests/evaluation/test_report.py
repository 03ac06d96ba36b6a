"""Grid, chart and page from made-up numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from erasekit.evaluation.grid import GridRow, grid
from erasekit.evaluation.report import Measure, Report, Row, html, percent
from erasekit.evaluation.selfcheck import Depth, by_depth, chart, facts
from erasekit.evaluation.statistics import Share

RED, BLUE = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
CHECK = {
    "modules": 3, "residual": 2e-7, "relative_update": 0.3, "retained_drift": 0.0, "sites": [
        {"site": "a", "group": "cross.k", "depth": 1, "residual": 1e-9, "residual_cast": 1e-7, "relative_update": 0.1},
        {"site": "b", "group": "text.q", "depth": 0, "residual": 1e-9, "residual_cast": 2e-7, "relative_update": 0.3},
        {"site": "c", "group": "text.k", "depth": 0, "residual": 1e-9, "residual_cast": 1e-8, "relative_update": 0.2},
    ],
}  # fmt: skip


def test_grid_shows_both_sides_in_order() -> None:
    picture = grid([GridRow("one", [RED, RED], [BLUE, BLUE], "group"), GridRow("two", [BLUE] * 2, [RED] * 2)], title="t")
    colours = [picture.getpixel((x, y)) for y in (86 + 26 + 40, 86 + 26 + 84 + 40) for x in (360, picture.width - 60)]
    assert colours == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 0, 0)]


def test_grid_refuses_uneven_rows() -> None:
    with pytest.raises(ValueError, match="same number"):
        grid([GridRow("one", [RED], [BLUE, BLUE])], title="t")


def test_depths_are_in_order_with_the_worst_of_each() -> None:
    assert by_depth(CHECK) == [Depth("text 0", 2, 2e-7, 0.3), Depth("cross", 1, 1e-7, 0.1)]
    assert dict(facts(CHECK))["modules edited"] == "3"
    assert by_depth({}) == [] and facts({}) == []


def test_chart_is_well_formed_and_to_scale() -> None:
    root = ET.fromstring(chart(by_depth(CHECK)))
    heights = [float(rect.get("height")) for rect in root.iter("rect")]
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.01)
    assert ET.fromstring(chart([])).tag == "svg"


def test_page_escapes_and_shows_the_intervals() -> None:
    measure = Measure("<cat> found", Share(8, 8), Share(0, 8), "gone")
    page = html(Report("A & B", "lead", [measure], [Row("g", "a <b>cat</b>", [RED], [BLUE], [measure])],
                       facts(CHECK), by_depth(CHECK), ["limit < 1"]))  # fmt: skip
    assert "a &lt;b&gt;cat&lt;/b&gt;" in page and "&lt;cat&gt; found" in page and "A &amp; B" in page
    assert percent(Share(0, 8)) in page and percent(Share(0, 8)).startswith("0% (0")
