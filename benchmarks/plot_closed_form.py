"""Draws the JSON of benchmarks/closed_form.py as SVG: seconds by phase, the bars, the sweep.

    python benchmarks/plot_closed_form.py [FILE] [--out FOLDER]

FILE is results/closed_form.json by default, FOLDER where FILE stands. Writes FILE's name with -tasks.svg, -ratios.svg
and, where a sweep was run, -sweep-SHAPE.svg. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "closed_form.json"
PHASES = {
    "read": "#8da0b3", "encode": "#3b75af", "solve": "#c8553d", "fingerprint": "#b9b08a", "write": "#5f6b57"
}  # fmt: skip
SERIES = ("#3b75af", "#c8553d", "#4f8a5b", "#7d5ba6")
STYLE = "font-family:system-ui,sans-serif;font-size:12px;fill:#222"


def tasks_chart(results: dict[str, Any]) -> str:
    """One stacked bar a task: seconds by phase, their sum, and the peak memory as text."""
    rows = [
        (f"{shape} {task}", run["ours"])
        for shape, runs in models(results)
        for task, run in runs.items()
        if "ours" in run
    ]
    longest = max((ours["seconds"] for _, ours in rows), default=1.0)
    parts = [legend(PHASES.items(), 130, 6)]
    for line, (name, ours) in enumerate(rows):
        y, x = 34 + 24 * line, 130.0
        parts.append(text(124, y + 12, name, anchor="end"))
        for phase, colour in PHASES.items():
            width = 420 * ours["parts"].get(phase, 0.0) / longest
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>')
            x += width
        parts.append(text(x + 6, y + 12, f"{ours['seconds']:.2f} s, peak {ours['peak_rss_mb']} MB"))
    return svg(720, 40 + 24 * len(rows), "Seconds of an edit by phase", parts)


def ratios_chart(results: dict[str, Any]) -> str:
    """How many times faster than the textbook form, on a logarithmic axis, with the bar of 20."""
    tasks = [(task, run) for _, runs in models(results) for task, run in runs.items() if "ratios" in run]
    rows = [
        (f"{task}, {kind.replace('_', ' ')}", ratio) for task, run in tasks for kind, ratio in run["ratios"].items()
    ]
    top = math.log10(max([100.0, *(ratio for _, ratio in rows)]))

    def place(ratio: float) -> float:
        return 190 + 400 * max(0.0, math.log10(max(ratio, 1.0))) / top

    parts = []
    for line, (name, ratio) in enumerate(rows):
        y = 14 + 24 * line
        parts.append(text(184, y + 12, name, anchor="end"))
        parts.append(f'<rect x="190" y="{y}" width="{place(ratio) - 190:.1f}" height="16" fill="{SERIES[0]}"/>')
        parts.append(text(place(ratio) + 6, y + 12, f"{ratio:g} x"))
    bottom = 14 + 24 * len(rows)
    parts.append(f'<path d="M{place(20):.1f} 8V{bottom}" stroke="{SERIES[1]}" stroke-dasharray="4 3" fill="none"/>')
    parts.append(text(place(20), bottom + 14, "20 x", anchor="middle"))
    return svg(720, bottom + 22, "Times faster than the textbook form", parts)


def sweep_chart(points: list[dict[str, Any]]) -> str:
    """One panel a line of the sweep: seconds over the retained prompts (logarithmic both), one curve a target count;
    dashed, with hollow marks: with the retained prompts' moment cached."""
    lines = sorted({point["line"] for point in points})
    counts = sorted({point["targets"] for point in points})
    colours = [(f"{count:,} targets", SERIES[i % len(SERIES)]) for i, count in enumerate(counts)]
    parts = [legend(colours, 60, 6)]
    for number, line in enumerate(lines):
        x, y = 60 + 330 * (number % 2), 46 + 220 * (number // 2)
        parts.append(panel(line, [point for point in points if point["line"] == line], counts, x, y))
    return svg(720, 50 + 220 * -(-len(lines) // 2), "Seconds over the number of retained prompts", parts)


def panel(name: str, points: list[dict[str, Any]], counts: list[int], x: float, y: float) -> str:
    """One line's curves in a box of 270 x 160."""
    retained = sorted({point["retained"] for point in points})
    parts = [f'<rect x="{x}" y="{y}" width="270" height="160" fill="none" stroke="#bbb"/>', text(x, y - 5, name)]

    def place(kept: int, seconds: float) -> tuple[float, float]:
        step = 250 / max(1, len(retained) - 1)
        return x + 10 + step * retained.index(kept), y + 160 - 160 * (math.log10(max(seconds, 0.1)) + 1) / 4

    for kept in retained:
        parts.append(text(place(kept, 1)[0], y + 175, f"{kept:,}", anchor="middle"))
    for seconds in (0.1, 1, 10, 100, 1000):
        parts.append(text(x - 5, place(retained[0], seconds)[1] + 4, f"{seconds:g} s", anchor="end"))
    for i, count in enumerate(counts):
        own = sorted((p for p in points if p["targets"] == count), key=lambda p: p["retained"])  # measured in any order
        plain = [place(p["retained"], p["seconds"]) for p in own if "seconds" in p]
        cached = [place(p["retained"], p["cached"]["seconds"]) for p in own if "seconds" in p.get("cached", {})]
        parts += [curve(plain, SERIES[i % len(SERIES)]), curve(cached, SERIES[i % len(SERIES)], dashed=True)]
    return "".join(parts)


def curve(places: list[tuple[float, float]], colour: str, dashed: bool = False) -> str:
    if not places:
        return ""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    fill = f'fill="white" stroke="{colour}"' if dashed else f'fill="{colour}"'
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" {fill}/>' for x, y in places)
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>{dots}'


def models(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The shapes that have a model folder, with their tasks."""
    return [(shape, runs) for shape, runs in results.items() if shape != "sdxl"]


def legend(items: Iterable[tuple[str, str]], x: float, y: float) -> str:
    parts = []
    for name, colour in items:
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>{text(x + 17, y + 10, name)}')
        x += 36 + 7 * len(name)
    return "".join(parts)


def text(x: float, y: float, words: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def svg(width: float, height: float, title: str, parts: list[str]) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'style="{STYLE}" role="img"><title>{escape(title)}</title>'
            f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n')  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--out", type=Path, help="the folder (default: the file's)")
    options = parser.parse_args()
    if not options.file.exists():
        raise SystemExit(f"{options.file} is missing: run benchmarks/closed_form.py first")
    found = json.loads(options.file.read_text())
    charts = {"tasks": tasks_chart(found["results"]), "ratios": ratios_chart(found["results"])}
    for shape in dict.fromkeys(point.get("shape", "sd14") for point in found["sweep"]):
        charts[f"sweep-{shape}"] = sweep_chart([p for p in found["sweep"] if p.get("shape", "sd14") == shape])
    folder = options.out or options.file.parent
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        path = folder / f"{options.file.stem}-{name}.svg"
        path.write_text(chart)
        print(path)


if __name__ == "__main__":
    main()
