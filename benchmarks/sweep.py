"""Seconds, memory and bytes over the number of targets and of retained prompts, every point in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

from measuring import Work
from shapes import concepts, words


@dataclass(frozen=True)
class Line:
    """A method as it is asked at every point; without `anchor` its own."""

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    names: Callable[[int], list[str]] = concepts
    anchor: str | None = None


WORD = words(1, start=5000)[0]
LINES: dict[str, Line] = {
    "erasepro": Line("erasepro", names=words, anchor=WORD),  # names of one token: of longer ones it rightly refuses many
    "erasepro:crowd": Line("erasepro:crowd", names=words, anchor=WORD),
    "uce": Line("uce"),
    "uce, last tokens": Line("uce", {"tokens": "last"}),
    "rece": Line("rece"),
    "speed": Line("speed"),
    "mace-refine": Line("mace-refine"),
    "trce-text": Line("trce-text"),
    "realera-text": Line("realera-text"),
}
TARGETS, RETAINED = (1, 10, 100, 1000), (0, 100, 1000, 10_000, 30_000)
MOMENTS = dict.fromkeys(("uce", "rece", "realera-text"), "all rows")
"""The lines that find each other's second moment in the cache."""
UNFILLED = "filling the cache takes over the limit that is set for it"
Run = Callable[[Work], dict[str, Any]]
Point = dict[str, Any]


def sweep(
    lines: list[str], run: Run, small: bool, *, fill: Run | None = None, known: Sequence[Point] = (),
    keep: Callable[[Point], None] | None = None, folder: Path | None = None,
) -> list[Point]:  # fmt: skip
    """Every line over all points; `run` measures one call within the time limit, or says why it was skipped.

    `fill` makes a call with a limit of its own: it puts what a line computes from a list of retained prompts into the cache
    that all lines share, once a list; where it says why it was skipped, so does every call that needs as much of the same.
    The cache is `folder`, by default one that is removed; a sum that it has of the beginning of a list is not made again.
    A call that is among the points `known` is not made again, whether the plain one or the one
    with the cache; `keep` gets every point as it comes.
    """
    before = {(p["line"], p["targets"], p["retained"]): p for p in known}
    targets, retained = ((1, 2), (0, 3)) if small else (TARGETS, RETAINED)
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = Cache(str(folder or temporary), fill or run)
        for line, count, kept in product(lines, targets, retained):
            found = measure(points, line, count, kept, run, cache, before.get((line, count, kept), {}))
            points.append({"line": line, "targets": count, "retained": kept} | found)
            print(told(points[-1]), flush=True)
            if keep:
                keep(points[-1])
    return points


@dataclass(frozen=True)
class Cache:
    """The retain cache of a whole sweep; `long`: from how many retained prompts on filling takes too long, by what is kept."""

    folder: str
    fill: Run
    filled: set[tuple[str, int]] = field(default_factory=set)
    long: dict[str, int] = field(default_factory=dict)

    def call(self, run: Run, line: str, count: int, kept: int) -> dict[str, Any]:
        """The call that finds everything cached, filled by one target's, which asks for the same list; or that filling takes
        too long."""
        moment = MOMENTS.get(line, line)
        if (line, kept) not in self.filled and kept < self.long.get(moment, kept + 1):
            self.filled.add((line, kept))
            if "skipped" in self.fill(asked(line, 1, kept, retain_cache=self.folder)):
                self.long[moment] = kept
        if kept >= self.long.get(moment, kept + 1):
            return {"skipped": UNFILLED}
        return run(asked(line, count, kept, retain_cache=self.folder))


def asked(line: str, count: int, kept: int, *, retain_cache: str | None = None) -> Work:
    """The call of a point; what is retained depends on `kept` alone."""
    how = LINES[line]
    every, beyond = set(how.names(max(TARGETS))), max(TARGETS)
    # A retained concept that begins with a target's word has the target's column: an exact method refuses both.
    apart = (one for one in concepts(2 * kept, start=beyond) if one.split()[0] not in every)
    retained = tuple(islice(apart, kept))
    return Work(how.method, tuple(how.names(count)), retained, how.anchor, how.parameters, retain_cache)


def measure(
    points: list[Point], line: str, count: int, kept: int, run: Run, cache: Cache, known: Point
) -> dict[str, Any]:
    """One point: the plain call and, where the method keeps it, the call that finds the retained prompts' moment; each as it
    is in `known`, where it is."""
    found = {key: value for key, value in known.items() if key != "cached"}
    if found.keys().isdisjoint(("seconds", "skipped")):
        smaller = skipped_before(points, line, count, kept)
        why = smaller and f"{smaller['targets']} targets and {smaller['retained']} retained: {smaller['skipped']}"
        found |= {"skipped": why} if why else run(asked(line, count, kept))
    if "cached" in known:
        return found | {"cached": known["cached"]}
    if kept and caches(line) and not cached_too_long(points, line, count):
        found |= {"cached": cache.call(run, line, count, kept)}
    return found


def caches(line: str) -> bool:
    """Whether the line's method keeps what it computes from the retained prompts."""
    from erasekit.methods import CACHING  # not at the top: a measured process times its own imports

    return LINES[line].method.partition(":")[0] in CACHING


def cached_too_long(points: list[Point], line: str, count: int) -> bool:
    """Whether no more targets of this line took too long with nothing retained, or with what is retained cached."""
    own = [p for p in points if p["line"] == line and p["targets"] <= count]
    ends = [p if not p["retained"] else p.get("cached", {}) for p in own]
    return any(end.get("skipped", UNFILLED) != UNFILLED for end in ends)


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
    cached = point.get("cached", {}).get("seconds")
    again = "" if cached is None else f", {cached:.2f} s with the moment cached"
    if "seconds" not in point:
        return f"{name}: {reason(point)}{again}"
    parts = " ".join(f"{part} {seconds:.2f}" for part, seconds in point["parts"].items())
    size = f"{point['peak_rss_mb']} MB, edit {point['edit_bytes'] / 1e6:.1f} MB"
    return f"{name}: {point['seconds']:.2f} s ({parts}){again}, {size}"


def reason(found: dict[str, Any]) -> str:
    """Why there are no numbers: it took too long, erasekit refused, the process failed."""
    return next(str(found[key]) for key in ("skipped", "error", "failed") if key in found)
