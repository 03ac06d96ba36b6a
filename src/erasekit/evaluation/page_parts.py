"""Small pieces of HTML that every part of a page uses: numbers with intervals, tables, sections. All text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

ARROWS = {"up": "higher is better", "down": "lower is better", "none": ""}
OTHERS = {"pessimistic": "pessimistic", "corrected": "corrected for the judge", "raw": "unclipped"}
PERCENT = {"share": "%", "points": "points"}


def text(value: object) -> str:
    """The value as text that may stand in an element or in a quoted attribute."""
    return escape(str(value), quote=True)


def number(value: float | None, unit: str = "") -> str:
    """A number as people read it: shares in per cent (their differences, unit "points", in points) with one decimal,
    others with three digits, "–" for none."""
    if value is None:
        return "–"
    if unit in PERCENT:
        return f"{trim(100 * value, 1)} {PERCENT[unit]}"
    return trim(value, 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3)


def trim(value: float, decimals: int) -> str:
    """The number with at most so many decimals; a tiny one in powers of ten, no "-0", a true minus sign."""
    value = value or 0.0  # never "-0"
    if value and abs(value) < 0.5 * 10**-decimals:
        return f"{value:.1e}".replace("-", "−")
    shown = f"{value:.{decimals}f}"
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return shown.replace("-", "−")


def interval(entry: Mapping[str, Any], unit: str = "") -> str:
    """The 95 % interval in brackets, without the unit: "[92.1, 98.6]"; empty where there is none."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    low, high = (number(entry[end], unit).removesuffix(f" {PERCENT.get(unit)}") for end in ("low", "high"))
    return f"[{low}, {high}]"


def signed(entry: Mapping[str, Any], unit: str) -> str:
    """A difference with its sign and interval: "−94.5 points [−98.1, −89.2]"; "–" for none."""
    if entry["value"] is None:
        return "–"
    return f"{'+' if entry['value'] > 0 else ''}{number(entry['value'], unit)} {interval(entry, unit)}".strip()


def estimate(entry: Mapping[str, Any] | None, unit: str = "") -> str:
    """An estimate in a table's cell: the value, below it interval and n; floor, ceiling and sd where known; where they are
    other numbers, the pessimistic rate, the one corrected for the judge, the value before it was clipped."""
    if entry is None:
        return "<td>–</td>"
    unit = unit or str(entry.get("unit", ""))
    notes = [f"{interval(entry, unit)} n {entry['n']}".strip()]
    notes += [
        f"{name} {number(entry[name], unit)}" for name in ("floor", "ceiling", "sd") if entry.get(name) is not None
    ]
    for name, words in OTHERS.items():
        other = entry.get(name)
        other = other if isinstance(other, Mapping) else {"value": other}
        if other["value"] not in (None, entry["value"]):
            notes.append(f"{words} {number(other['value'], unit)} {interval(other, unit)}".strip())
    marks = "".join(f' data-{key}="{text(entry.get(key) or "")}"' for key in ("metric", "arm", "group", "target"))
    value = "" if entry["value"] is None else repr(float(entry["value"]))
    return (f'<td{marks} data-value="{value}"><b>{number(entry["value"], unit)}</b>'
            f"{''.join(f'<small>{text(note)}</small>' for note in notes)}</td>")  # fmt: skip


def of_difference(unit: str) -> str:
    """The unit of a difference of two values of that unit."""
    return "points" if unit == "share" else unit


def table(head: Sequence[str], rows: Sequence[str], *, caption: str) -> str:
    """A table that scrolls inside its own box; `head` are column titles (text), `rows` whole `<tr>` elements."""
    titles = "".join(f'<th scope="col">{text(title)}</th>' for title in head)
    return (f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}"><table>'
            f"<caption>{text(caption)}</caption><thead><tr>{titles}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>")  # fmt: skip


def row(title: str, cells: Sequence[str], note: str = "") -> str:
    """A table row: its title (text), a note below it, and its cells (HTML)."""
    below = f"<small>{text(note)}</small>" if note else ""
    return f'<tr><th scope="row">{text(title)}{below}</th>{"".join(cells)}</tr>'


def facts(pairs: Sequence[tuple[str, object]], *, mono: bool = False) -> str:
    """Names and values as a plain table of two columns; long values break."""
    kind = ' class="hash"' if mono else ""
    lines = "".join(f'<tr><th scope="row">{text(k)}</th><td{kind}>{text(v)}</td></tr>' for k, v in pairs)
    return f'<table class="facts"><tbody>{lines}</tbody></table>'


def section(ident: str, title: str, body: str, *, lead: str = "") -> str:
    """A section with a heading that the page's contents link to; empty without a body."""
    intro = f'<p class="lead">{text(lead)}</p>' if lead else ""
    return f'<section id="{ident}"><h2>{text(title)}</h2>{intro}{body}</section>' if body else ""


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{trim(count, 0 if unit == 'bytes' else 1)} {unit}"
        count /= 1024
    return f"{trim(count, 1)} GiB"


def duration(seconds: float | None) -> str:
    """A time as people read it."""
    if seconds is None:
        return "–"
    return f"{trim(seconds, 1)} s" if seconds < 120 else f"{trim(seconds / 60, 1)} min"


def listed(words: Sequence[str], *, most: int = 6) -> str:
    """The words with commas; after `most` only how many more."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
