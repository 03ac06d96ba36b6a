"""The schema of a prompt file: which columns a suite reads, under which names, and where a file's header has them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasekit.errors import UsageError
from erasekit.evaluation.suites.groups import GROUPS
from erasekit.evaluation.suites.names import key
from erasekit.evaluation.suites.suite import Suite

FIELDS = ("text", "id", "seed", "guidance", "group", "target", "wanted", "style", "background", "twin")
KEYS = ("what", "required", "group", "target", "seeds", "columns", "optional")


@dataclass(frozen=True)
class Columns:
    """The schema of a suite's prompt file. Each field is read from the first of its column names that the file has;
    `group` and `target` are for rows without such a column, `seeds` the images of a row without a seed."""

    what: str
    required: bool
    group: str
    target: str
    seeds: int
    needed: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]]

    @staticmethod
    def read(value: Any, suite: Suite) -> Columns:
        """The `prompt_file` entry of a suite's file."""
        if not isinstance(value, dict) or set(value) - set(KEYS):
            raise UsageError(f"the suite {suite.source}: prompt_file has the keys {', '.join(KEYS)}")
        needed, optional = (_fields(value.get(part) or {}, suite) for part in ("columns", "optional"))
        if "text" not in needed:
            raise UsageError(
                f"the suite {suite.source}: prompt_file.columns needs text: name the column of the prompts"
            )
        group, target = str(value.get("group", "plain")), str(value.get("target") or "")
        if group not in GROUPS:
            raise UsageError(
                f"the suite {suite.source}: prompt_file: unknown group {group!r}: choose from {', '.join(GROUPS)}"
            )
        seeds = value.get("seeds", 1)
        if isinstance(seeds, bool) or not isinstance(seeds, int) or not 1 <= seeds <= len(suite.seeds):
            raise UsageError(
                f"the suite {suite.source}: prompt_file.seeds must be 1 to {len(suite.seeds)}, not {seeds!r}"
            )
        what = " ".join(str(value.get("what") or "a CSV file of prompts (--prompts FILE)").split())
        return Columns(what, value.get("required") is True, group, target, seeds, needed, optional)


def _fields(value: Any, suite: Suite) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or set(value) - set(FIELDS):
        raise UsageError(f"the suite {suite.source}: prompt_file names columns for {', '.join(FIELDS)} only")
    return {
        name: (columns,) if isinstance(columns, str) else tuple(map(str, columns)) for name, columns in value.items()
    }


def header_of(path: Path, data: bytes, columns: Columns) -> dict[str, str]:
    """For each field the column that it is read from; `UsageError` naming those that are missing."""
    try:
        header = next(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")), [])
    except csv.Error as error:
        raise UsageError(f"{path} is no CSV file ({error}): one row a prompt, texts with commas in quotes") from error
    if not [name for name in header if name.strip()]:
        raise UsageError(f"{path} is empty: its first line names the columns, {_wanted(columns)} at least")
    found: dict[str, str] = {}
    for field, names in (*columns.needed.items(), *columns.optional.items()):
        match = next((own for name in names for own in header if key(own) == key(name)), None)
        if match is not None:
            found.setdefault(field, match)
    missing = [" or ".join(names) for field, names in columns.needed.items() if field not in found]
    if missing:
        raise UsageError(f"{path} lacks the column {', '.join(missing)} (it has {', '.join(header)}): rename or add it")
    return found


def _wanted(columns: Columns) -> str:
    return ", ".join(" or ".join(names) for names in columns.needed.values())
