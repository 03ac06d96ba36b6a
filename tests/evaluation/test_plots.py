"""Charts: to scale, well formed, readable without eyes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from synthetic import SITES

from erasekit.evaluation.page_style import STYLE
from erasekit.evaluation.plots import CORNERS, SHAPES, Bar, Point, bars, depth_chart, key, scatter, shape

BARS = [Bar("one & two", "base", (0.8, 0.7, 0.9), "80 %"), "a group", Bar("x" * 40, "never", (0.2, 0.0, 0.5), "20 %")]


def numbers(path: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", path)]


def test_bars_and_whiskers_are_to_scale() -> None:
    root = ET.fromstring(bars(BARS, title="t"))
    wide, narrow = (float(bar.get("width", 0)) for bar in root.iter("rect"))
    assert wide == pytest.approx(4 * narrow, rel=0.01)
    start = float(next(root.iter("rect")).get("x", 0))
    low, _, _, _, _, high, *_ = numbers(next(p for p in root.iter("path") if p.get("class") == "whisker").get("d", ""))
    assert (low - start) / wide == pytest.approx(0.7 / 0.8, abs=0.01)
    assert (high - start) / wide == pytest.approx(0.9 / 0.8, abs=0.01)
    assert "one & two 80 %" in root.get("aria-label", "") and root.get("role") == "img"


def test_points_lie_where_the_axes_say() -> None:
    corners = [Point(str(i), "base", (x, x, x), (y, y, y)) for i, (x, y) in enumerate([(0, 0), (1, 1), (0.25, 0.75)])]
    root = ET.fromstring(scatter(corners, x="x", y="y"))
    (x0, y0), (x1, y1), (x, y) = ((float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter("circle"))
    assert x1 > x0 and y1 < y0, "more is to the right and up"
    assert x == pytest.approx(x0 + 0.25 * (x1 - x0), abs=0.1) and y == pytest.approx(y0 + 0.75 * (y1 - y0), abs=0.1)
    ticks = {t.text: float(t.get("x", 0)) for t in root.iter("text") if t.get("text-anchor") == "middle"}
    assert ticks["25%"] == pytest.approx(x, abs=0.1)


def test_intervals_reach_both_ends() -> None:
    root = ET.fromstring(scatter([Point("p", "edit0", (0.5, 0.0, 1.0), (0.5, 0.0, 1.0))], x="x", y="y"))
    grid = [numbers(p.get("d", "")) for p in root.iter("path") if p.get("class") == "grid"]
    x_low, _, x_high, _, y_low, y_high = numbers(
        next(p for p in root.iter("path") if p.get("class") == "whisker").get("d", "")
    )
    assert (x_low, x_high) == (grid[0][0], grid[-1][0]) and (y_low, y_high) == (grid[0][4], grid[-1][4])


def test_every_mark_has_a_shape_and_a_colour_and_its_own_look() -> None:
    assert set(SHAPES.values()) - {"circle"} == set(CORNERS)
    for mark in SHAPES:
        assert f".{mark}{{--arm:" in STYLE and f"--{mark}:#" in STYLE
    drawn = [shape(mark, 0, 0) for mark in SHAPES if mark != "never"]  # that one is a ring by its style
    assert len(set(drawn)) == len(drawn)
    assert ET.fromstring(key([("a < b", "edit1")])).find(".//polygon") is not None


def test_depth_chart_has_a_bar_a_depth() -> None:
    root = ET.fromstring(depth_chart({"sites": SITES}))
    assert len(list(root.iter("rect"))) == 7 and depth_chart({}) == ""
