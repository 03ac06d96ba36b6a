"""Seconds, memory and bytes over the number of targets and of retained prompts, every point in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from measuring import Work, has_retain_cache
from shapes import concepts

LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "erasepro": ("erasepro", {"positions": "content"}),
    "uce": ("uce", {}),
    "uce, last tokens": ("uce", {"tokens": "last"}),
    "rece": ("rece", {}),
    "speed": ("speed", {}),
    "mace-refine": ("mace-refine", {}),
    "trce-text": ("trce-text", {}),
    "realera-text": ("realera-text", {}),
}
TARGETS, RETAINED = (1, 10, 100, 1000), (0, 100, 1000, 10_000, 30_000)
Run = Callable[[Work], dict[str, Any]]
Point = dict[str, Any]


def sweep(
    lines: list[str], run: Run, small: bool, *, known: Sequence[Point] = (), keep: Callable[[Point], None] | None = None
) -> list[Point]:
    """Every line over all points; `run` measures one call within the time limit, or says why it was skipped.

    What is among the points `known` is not measured again; `keep` gets every point as it comes.
    """
    before = {(p["line"], p["targets"], p["retained"]): p for p in known}
    targets, retained = ((1, 2), (0, 3)) if small else (TARGETS, RETAINED)
    points: list[Point] = []
    for line in lines:
        for count in targets:
            for kept in retained:
                found = before.get((line, count, kept)) or measure(points, line, count, kept, run)
                points.append({"line": line, "targets": count, "retained": kept} | found)
                print(told(points[-1]), flush=True)
                if keep:
                    keep(points[-1])
    return points


def measure(points: list[Point], line: str, count: int, kept: int, run: Run) -> dict[str, Any]:
    """One point: the plain call and, where the version can keep it, the call that finds the retained prompts' moment."""
    if (smaller := skipped_before(points, line, count, kept)) is not None:
        return {"skipped": f"{smaller['targets']} targets and {smaller['retained']} retained: {smaller['skipped']}"}
    method, parameters = LINES[line]
    given = (method, tuple(concepts(count)), tuple(concepts(kept, start=count)), None, parameters)
    if not (kept and has_retain_cache()):
        return run(Work(*given))
    with tempfile.TemporaryDirectory() as folder:
        cold = run(Work(*given, retain_cache=folder))
        return cold if "seconds" not in cold else cold | {"cached": run(Work(*given, retain_cache=folder))}


def skipped_before(points: list[Point], line: str, count: int, kept: int) -> Point | None:
    """The smallest point of this line, with no more of either, that took too long or failed."""
    return next(
        (p for p in points
         if p["line"] == line and p["targets"] <= count and p["retained"] <= kept and "skipped" in p),
        None,
    )  # fmt: skip


def told(point: Point) -> str:
    """The point as a line of text."""
    name = f"{point['line']}: {point['targets']} targets, {point['retained']} retained"
    if "seconds" not in point:
        return f"{name}: {reason(point)}"
    parts = " ".join(f"{part} {seconds:.2f}" for part, seconds in point["parts"].items())
    cached = point.get("cached", {}).get("seconds")
    again = "" if cached is None else f", {cached:.2f} s with the moment cached"
    size = f"{point['peak_rss_mb']} MB, edit {point['edit_bytes'] / 1e6:.1f} MB"
    return f"{name}: {point['seconds']:.2f} s ({parts}){again}, {size}"


def reason(found: dict[str, Any]) -> str:
    """Why there are no numbers: it took too long, erasekit refused, the process failed."""
    return next(str(found[key]) for key in ("skipped", "error", "failed") if key in found)
