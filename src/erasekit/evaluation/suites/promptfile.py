"""Prompts from a CSV file of the user: columns checked against the suite's schema, the file's hash kept.

The lists that the field measures with (I2P, COCO captions, a paper's own prompts) are their authors'; a suite says
which columns it reads, under the names that such files use.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasekit.errors import UsageError
from erasekit.evaluation.suites.columns import Columns, header_of
from erasekit.evaluation.suites.groups import GROUPS, Group
from erasekit.evaluation.suites.names import tidy
from erasekit.evaluation.suites.parts import Prompt
from erasekit.evaluation.suites.suite import Suite

READ = 77  # positions of the CLIP text encoders, begin and end of text included
UNIT = re.compile(r"[^\W\d_]+|\d|[^\w\s]")


@dataclass(frozen=True)
class Rows:
    """What a prompt file gave: its prompts, its hash, and remarks."""

    prompts: tuple[Prompt, ...]
    sha256: str
    notes: tuple[str, ...]


def read_rows(path: Path, columns: Columns, suite: Suite) -> Rows:
    """The prompts in a CSV file with a header; raises `UsageError` naming the column, or the line, and the remedy."""
    data = _bytes(path)
    names = header_of(path, data, columns)
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)):
            prompt = _prompt(_Row(path, number + 1, row, names), columns, suite, number)
            if prompt.id in seen:
                raise UsageError(f"{path}, row {number + 1}: the id {prompt.id!r} is that of row {seen[prompt.id]} too: "
                                 "give each prompt its own")  # fmt: skip
            seen[prompt.id] = number + 1
            prompts.append(prompt)
    except csv.Error as error:
        raise UsageError(f"{path} is no CSV file ({error}): one row a prompt, texts with commas in quotes") from error
    if not prompts:
        raise UsageError(f"{path} holds no prompts: give at least one row under the header")
    return Rows(tuple(prompts), hashlib.sha256(data).hexdigest(), _notes(prompts))


@dataclass(frozen=True)
class _Row:
    """One row of the file, by the suite's fields."""

    path: Path
    number: int
    cells: dict[str, Any]
    names: dict[str, str]

    def get(self, field: str) -> str:
        """The cell's text; "" where the file has no such column."""
        cell = self.cells.get(self.names[field]) if field in self.names else ""
        return tidy(cell or "")

    def number_of(self, field: str) -> float | None:
        """The cell as a finite number; None where it is empty."""
        text = self.get(field)
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise self.wrong(f"{self.names[field]} is {text!r}", "write a number")
        return value

    def wrong(self, what: str, remedy: str) -> UsageError:
        return UsageError(f"{self.path}, row {self.number}: {what}: {remedy}")


def _prompt(row: _Row, columns: Columns, suite: Suite, index: int) -> Prompt:
    text, group = row.get("text"), row.get("group") or columns.group
    if not text:
        raise row.wrong(f"{row.names['text']} is empty", "give the words to draw")
    if group not in GROUPS:
        raise row.wrong(f"unknown group {group!r}", f"choose from {', '.join(GROUPS)}")
    target, shown = _named(row, columns, suite, GROUPS[group])
    wanted = tuple(tidy(word) for word in row.get("wanted").split("|") if word.strip())
    styled = suite.kind == "style"
    return Prompt(
        id=f"{group}/{row.get('id') or f'row-{index + 1:05d}'}", group=group, text=text, target=target,
        wanted=wanted or ((shown,) if shown and not styled else ()),
        style=row.get("style") or (shown if styled and not target else "") or None,
        background=row.get("background") or None, seeds=_seeds(row, columns, suite, index),
        twin=row.get("twin") or None, guidance=row.number_of("guidance"),
    )  # fmt: skip


def _named(row: _Row, columns: Columns, suite: Suite, group: Group) -> tuple[str, str]:
    """The target that the row belongs to, and the label of what its column names and the image shows; "" for none.

    A row of a group that has nothing to do with targets belongs to none: what it names is then what is to be kept.
    """
    name = row.get("target")
    if group.subject == "other":
        return "", name
    target = name or (columns.target if group.asks else "")
    if group.asks and not target:
        raise row.wrong(
            f"the group {group.name} asks for a target, and the row names none", "fill in the column target"
        )
    if target and suite.concepts:
        target = suite.canonical(target)
    return target, suite.label(target) if group.asks else ""


def _seeds(row: _Row, columns: Columns, suite: Suite, index: int) -> tuple[int, ...]:
    text = row.get("seed").removesuffix(".0")  # what a spreadsheet makes of a whole number
    if text and not (text.isdecimal() and int(text) < 2**64):
        raise row.wrong(f"{row.names['seed']} is {text!r}", "write a whole number from 0 on")
    pool, count = suite.seeds, columns.seeds
    return (int(text),) if text else tuple(pool[(index * count + j) % len(pool)] for j in range(count))


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: save the CSV file as UTF-8") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot read the prompt file {path} ({reason}): give a CSV file") from error
    return data


def _notes(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """What is not wrong, but should be known. A word or sign is at least one token, so the count is a lower bound."""
    long = sum(len(UNIT.findall(prompt.text)) + 2 > READ for prompt in prompts)
    return (
        (f"{long} of {len(prompts)} prompts are longer than the {READ} tokens that CLIP reads: the rest is cut",)
        if long
        else ()
    )
