"""The JSON of closed_form.py: what earlier calls measured stays, and every new number is written at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sweep import UNFILLED
from tasks import bars

from erasekit.errors import UsageError
from erasekit.files import write_whole

Point = dict[str, Any]
PLACE = ("shape", "line", "targets", "retained")


class Kept:
    """One file of one environment; a shape's task and a point of the sweep replace what the file had of them.

    Raises `UsageError` where the file's numbers are another environment's or of other sizes: they would stand side by side.
    """

    def __init__(self, path: Path, environment: dict[str, object], *, small: bool) -> None:
        self.path, self.environment, self.small = path, environment, small
        found = json.loads(path.read_text()) if path.exists() else {"environment": environment, "small": small}
        if (found["environment"], found.get("small", False)) != (environment, small):
            raise UsageError(f"{path} has the numbers of another environment or of other sizes: give another --out, "
                             "or delete it")  # fmt: skip
        self.results: dict[str, dict[str, Any]] = found.get("results", {})
        self.points: list[Point] = found.get("sweep", [])

    def whole(self) -> dict[str, Any]:
        """All that the file holds; the bars are for the real sizes."""
        found = [] if self.small else bars(self.results)
        return {"environment": self.environment, "small": self.small, "results": self.results, "bars": found,
                "sweep": self.points}  # fmt: skip

    def task(self, shape: str, task: str, run: dict[str, Any]) -> None:
        """Keeps one task's run."""
        self.results.setdefault(shape, {})[task] = run
        self.write()

    def point(self, point: Point) -> None:
        """Keeps one point of the sweep."""
        if point in self.points:
            return
        self.points = [p for p in self.points if place(p) != place(point)] + [point]
        self.write()

    def measured(self, shape: str, limit: float) -> list[Point]:
        """The points with those of their calls that need not be measured again: the plain one, the one that found what is
        retained in the cache (`cached`), each where it has numbers or took over this very limit."""
        own = [p for p in self.points if p.get("shape") == shape]
        return [point for p in own if (point := _settled(p, limit)).keys() - PLACE]

    def write(self) -> None:
        write_whole(self.path, (json.dumps(self.whole(), indent=1) + "\n").encode())


def place(point: Point) -> tuple[Any, ...]:
    """Which point of which sweep it is."""
    return tuple(point.get(key) for key in PLACE)


def _settled(point: Point, limit: float) -> Point:
    """The point's place, and those of its calls that are done."""

    def done(call: Point) -> bool:
        return "seconds" in call or call.get("skipped") in (f"over {limit:g} s", UNFILLED)

    plain = {key: value for key, value in point.items() if key != "cached" and (key in PLACE or done(point))}
    return plain | ({"cached": point["cached"]} if done(point.get("cached", {})) else {})
