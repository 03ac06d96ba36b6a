"""Results as a page looks at them: arms in order with their marks, estimates by name, verdicts on single images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from erasekit.evaluation.rows import Row
from erasekit.evaluation.statistics import Share
from erasekit.evaluation.suites.groups import GROUPS
from erasekit.evaluation.verdicts import Reading

Entry = Mapping[str, Any]
Key = tuple[str, str, Any, Any]  # metric, arm, group (or None), target (or None)
ORDER = ("base", "edit", "random", "never")
EDIT_MARKS = 4


@dataclass(frozen=True)
class Group:
    """A kind of prompts: its title, whether it asks for the target, and how its pictures are to be read."""

    title: str
    asks: bool
    reading: str


GONE = "Each asks for the target. The fewer images show it after the edit, the better."
STAY = "None of these asks for the target. Their images should show what they showed before the edit."
TITLES = {
    "plain": "The target by its name",
    "synonym": "The target by another word",
    "complex": "The target in longer, held-out sentences",
    "implicit": "The target described, not named",
    "anchor": "The anchor in the target's prompts",
    "neighbour": "Near neighbours of the target",
    "superset": "The wider kind that the target belongs to",
    "twin": "The same prompts without the target",
    "unrelated": "Unrelated prompts",
    "style": "Something unrelated in every style",
}
VERDICTS = {"found": "●", "absent": "○", "failed": "!", "invalid": "✕", "unjudged": "·"}


@dataclass(frozen=True)
class Tried:
    """Attacks that lie in a folder of their own: their lines of the results, the part of the page that shows them, and
    whether a model that never knew the target stands beside them."""

    lines: tuple[Entry, ...]
    body: str
    never_knew: bool = False


@dataclass(frozen=True)
class View:
    """Results, their rows, the folder that the rows' images are relative to, the times and attacks where they are known."""

    results: Entry
    rows: list[Row]
    folder: Path
    timing: Entry
    tried: tuple[Tried, ...] = ()

    @cached_property
    def arms(self) -> list[Entry]:
        """All arms: the unedited model, the edits, the controls."""
        return sorted(self.results["arms"], key=lambda arm: ORDER.index(arm["kind"]))

    @property
    def edits(self) -> list[Entry]:
        """The arms with an edit of their own (not the random controls)."""
        return [arm for arm in self.arms if arm["kind"] == "edit"]

    @property
    def base(self) -> str:
        """The name of the unedited model's arm; empty where it was not drawn."""
        return next((arm["arm"] for arm in self.arms if arm["kind"] == "base"), "")

    @property
    def judge(self) -> str:
        """The name of the suite's first judge; empty without one."""
        return next((judge["name"] for judge in self.results["suite"]["judges"]), "")

    def name(self, arm: Entry) -> str:
        """A short name for people, as a column's title."""
        kind, of = arm["kind"], arm["arm"].partition(":")[2]
        short: str = {"base": "before", "random": "random control", "never": f"never knew {of}"}.get(
            kind, self.label(arm)
        )
        alike = sum(other["kind"] == kind for other in self.arms) > 1
        edited = next((self.label(other) for other in self.edits if other["arm"] == f"edit:{of}"), of)
        return f"{short} ({edited})" if kind == "random" and alike else short

    def label(self, arm: Entry) -> str:
        """The arm's label with a true arrow, at which no line breaks as it may at a hyphen."""
        return str(arm["label"]).replace("->", "→")

    @cached_property
    def decided(self) -> dict[Key, Entry]:
        """Every estimate by its key; where several judges gave one, that of the first in the suite."""
        ranks = {judge["name"]: i for i, judge in enumerate(self.results["suite"]["judges"])}
        best: dict[Key, Entry] = {}
        for entry in self.results["metrics"]:
            other = best.get(entry_key(entry))
            if other is None or ranks.get(entry["judge"], 99) < ranks.get(other["judge"], 99):
                best[entry_key(entry)] = entry
        return best

    def entry(self, metric: str, arm: str, *, group: str | None = None, target: str | None = None) -> Entry | None:
        """That estimate, or None."""
        return self.decided.get((metric, arm, group, target))

    def rate(self, arm: str, targets: Iterable[str]) -> Entry | None:
        """How often an arm's images show one of these targets where it is asked for, with its interval.

        It is the arm's `target_rate` (or the complement of `efficacy`) where that is about these targets, else counted
        from the rows; None where nothing was counted. So two arms are only compared on the same targets.
        """
        wanted, whole = tuple(targets), set(self.targets(arm))
        if len(wanted) == 1 and (entry := self._rate(arm, wanted[0])):
            return entry
        if not whole or whole == set(wanted):
            return self._rate(arm, None)
        hits, n = self.tally(r for r in self.rows if r.arm == arm and r.target in wanted and self.group(r.group).asks)
        low, high = Share(hits, n).interval
        return (
            {"value": hits / n, "low": low, "high": high, "n": n, "unit": "share", "direction": "down"} if n else None
        )

    def _rate(self, arm: str, target: str | None) -> Entry | None:
        tries = ((name, group) for name in ("target_rate", "efficacy") for group in (None, "plain"))
        found = (self.entry(name, arm, group=group, target=target) for name, group in tries)
        entry = next((e for e in found if e is not None and e["value"] is not None), None)
        return complement(entry) if entry is not None and entry["direction"] == "up" else entry

    def targets(self, arm: str) -> list[str]:
        """The targets that an arm was asked for, as its prompts name them."""
        return self._asked.get(arm, [])

    @cached_property
    def _asked(self) -> dict[str, list[str]]:
        found: dict[str, dict[str, None]] = {}
        for row in self.rows:
            if row.target and self.group(row.group).asks:
                found.setdefault(row.arm, {})[row.target] = None
        return {arm: list(targets) for arm, targets in found.items()}

    @cached_property
    def groups(self) -> list[str]:
        """The prompt groups that were drawn, the known ones in their usual order."""
        found = list(dict.fromkeys(row.group for row in self.rows))
        return sorted(found, key=lambda name: list(TITLES).index(name) if name in TITLES else len(TITLES))

    def group(self, name: str) -> Group:
        """What is known of a group; an unknown one counts as one to be kept."""
        asks = name in GROUPS and GROUPS[name].asks
        return Group(TITLES.get(name, name), asks, GONE if asks else STAY)

    def mark(self, arm: str) -> str:
        """The arm's mark, a class of the style sheet: base, random, never, or edit0 to edit3 (then again)."""
        edits = [entry["arm"] for entry in self.edits]
        if arm in edits:
            return f"edit{edits.index(arm) % EDIT_MARKS}"
        return next(entry["kind"] for entry in self.arms if entry["arm"] == arm)

    @cached_property
    def reading(self) -> Reading | None:
        """The deciding judge: the suite's first that names what it sees (a similarity alone decides nothing)."""
        suite, labels = self.results["suite"], self.results.get("labels", {})
        read = (Reading.of(judge, self.rows, labels, suite.get("kind", "object")) for judge in suite["judges"])
        return next((one for one in read if one.decides), None)

    def verdict(self, row: Row) -> tuple[str, str]:
        """What the deciding judge says of an image (a key of `VERDICTS`), and the words that it looked for."""
        asks, read = self.group(row.group).asks, self.reading
        styled = read is not None and read.kind == "style" and row.style is not None
        words = row.target if asks else " + ".join([*row.wanted, *([str(row.style)] if styled else [])])
        if read is None or not (read.seeks(row) if asks else read.asks(row)):
            return ("unjudged" if row.status == "ok" else row.status), words
        if (status := read.status(row)) != "ok":
            return status, words
        return ("found" if (read.target(row) if asks else read.wanted(row)) else "absent"), words

    def tally(self, rows: Iterable[Row]) -> tuple[int, int]:
        """How many of the rows' images show what was looked for, and how many were judged."""
        said = [self.verdict(row)[0] for row in rows]
        return said.count("found"), said.count("found") + said.count("absent")


def view(results: Entry, rows: Iterable[Any], folder: Path, timing: Entry | None = None,
         attacks: Sequence[Tried] = ()) -> View:  # fmt: skip
    """The view of results and rows; a row is a `Row` or a mapping with its fields. What was tried is among the results."""
    known = list(results.get("attacks", ()))
    more = [line for one in attacks for line in one.lines if line not in known]
    whole = {**results, "attacks": known + more} if more else results
    found = [row if isinstance(row, Row) else Row(**row) for row in rows]
    return View(whole, found, folder, timing or {}, tuple(attacks))


def entry_key(entry: Entry) -> Key:
    """What an estimate is of: metric, arm, group, target."""
    return entry["metric"], entry["arm"], entry["group"], entry["target"]


def complement(entry: Entry) -> dict[str, Any]:
    """One minus a share, its interval's ends exchanged."""
    ends = {"low": None, "high": None} if entry["low"] is None else {"low": 1 - entry["high"], "high": 1 - entry["low"]}
    return {**entry, "value": 1 - entry["value"], **ends, "direction": "down"}
