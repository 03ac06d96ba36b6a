"""Rows: one generated image each, with everything needed to recompute any aggregate, as JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from erasekit.errors import EraseKitError

FILE = "rows.jsonl"
WORST = ("ok", "failed", "invalid")  # a row is as bad as the worst of its judgements


@dataclass(frozen=True)
class Row:
    """One image: what drew it (`arm`), what was asked for, where it lies, and what every judge said of it.

    `image` is a PNG's path relative to the folder of the rows, `sha256` that of the PNG. `judgements`: judge name ->
    {"status": "ok" | "failed" | "invalid", ...the judge's data}. `status` is the worst of them.
    """

    arm: str
    prompt: str
    group: str
    text: str
    target: str
    wanted: list[str]
    style: str | None
    background: str | None
    seed: int
    image: str
    sha256: str
    status: str = "ok"
    judgements: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def shot(self) -> tuple[str, int]:
        """What pairs the rows of two arms: the prompt's id and the seed."""
        return self.prompt, self.seed


def worst(statuses: Iterable[str]) -> str:
    """The worst of the judgements' statuses; "ok" without any."""
    return max(statuses, key=WORST.index, default="ok")


def encode(rows: Iterable[Row]) -> bytes:
    """The rows as JSON lines: the same bytes for the same rows, and every number comes back exactly."""
    return "".join(canonical(asdict(row)) + "\n" for row in rows).encode()


def decode(data: bytes, *, source: str | Path = FILE) -> list[Row]:
    """The rows of JSON lines; `EraseKitError` naming the line of `source` that is cut short or is no row."""
    rows = []
    # Not splitlines: a prompt may hold what that takes for a line's end (U+2028, U+0085), and JSON leaves it as it is.
    lines = data.decode("utf-8", errors="replace").removesuffix("\n").split("\n") if data else []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise EraseKitError(f"line {number} of {source} is no row (cut short?): run the same evaluate command "
                                "again, it redoes what is damaged") from error  # fmt: skip
    return rows


def read(path: str | Path) -> list[Row]:
    """The rows of a file; `EraseKitError` in one line where it cannot be read."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise EraseKitError(f"cannot read {path} ({reason}): give a folder that `erasekit evaluate` wrote") from error
    return decode(data, source=path)


def check_counts(rows: Iterable[Row], counts: Mapping[str, Mapping[str, int]], *, source: str | Path = FILE) -> None:
    """`EraseKitError` unless these are the rows that results count (arm -> status -> images): a file that was cut at a
    line's end reads like a whole one."""
    found = Counter((row.arm, row.status) for row in rows)
    wanted = Counter({(arm, status): known[status] for arm, known in counts.items() for status in WORST})
    if +found != +wanted:
        raise EraseKitError(f"{source} holds {found.total()} images, not the {wanted.total()} that its results count (cut "
                            "short, or of another run?): run the same evaluate command again")  # fmt: skip


def canonical(value: Any) -> str:
    """JSON that is the same text for the same value (sorted keys, no spaces, floats in full, no NaN)."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _row(value: Any) -> Row:
    if not isinstance(value, Mapping) or set(value) != {f.name for f in fields(Row)}:
        raise ValueError("other keys than a row's")
    return Row(**value)
