"""The numbers of `erasepro_knobs.py` as Markdown tables, as curves in SVG, and written into a page between markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from knobs_settings import KNOBS, Knob

COLOURS = ("#0b62a4", "#c4501b", "#2b8a57", "#7a4fa3", "#8a6d1b", "#b0306a", "#4d4d4d")
FORMS = {"residual": ".0e", "rank": ".0f", "KiB": ".0f", "seconds": ".2f"}
Row = Mapping[str, Any]


def cell(row: Row, key: str) -> str:
    """A mean, with the standard deviation over the targets for gap and drift."""
    mean, sd = row["mean"].get(key), row["sd"].get(key)
    if mean is None:
        return ""
    spread = f" ± {sd:.3f}" if key in ("gap", "drift") and sd else ""
    return format(mean, FORMS.get(key, ".3f")) + spread


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(knob: Knob, rows: Sequence[Row]) -> str:
    """One knob's table; `refused` appears where a setting was."""
    lined, refused = any(r["line"] for r in rows), any(r["refused"] for r in rows)
    columns = ("gap", "drift", *knob.columns)
    head = [*["line"] * lined, knob.axis or "setting", *columns, *["refused"] * refused]
    body = [
        [*[r["line"]] * lined, r["label"], *(cell(r, c) for c in columns), *[str(r["refused"] or "")] * refused]
        for r in rows
    ]
    return markdown(head, body)


def conflict_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many pairs of prompts contradict each other."""
    return markdown(list(rows[0]), [[str(value) for value in row.values()] for row in rows])


def picture_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Shares in per cent with their Wilson intervals."""
    names = list(next(iter(rows.values())))

    def share(s: Mapping[str, Any]) -> str:
        return f"{s['share']:.1%} ({s['interval95'][0]:.1%} to {s['interval95'][1]:.1%}, n = {s['images']})"

    return markdown(["setting", *names], [[label, *(share(row[n]) for n in names)] for label, row in rows.items()])


def blocks(results: Mapping[str, Any]) -> dict[str, str]:
    """Every table by its marker's name."""
    found = {name: table(KNOBS[name], rows) for name, rows in results["knobs"].items() if name in KNOBS}
    if results.get("conflicts"):
        found["conflicts"] = conflict_table(results["conflicts"])
    if results.get("pictures"):
        found["pictures"] = picture_table(results["pictures"])
    found["run"] = (
        f"Model {results['model']}, {results['targets']} targets ({', '.join(f'{t} to {a}' for t, a in results['pairs'])}), "
        f"{results['sentences']} sentences each, {results['unrelated']} unrelated prompts."
    )
    return found


def rewrite(path: Path, found: Mapping[str, str]) -> list[str]:
    """Puts each block between `<!-- knob:NAME -->` and `<!-- /knob -->`; gives the names that have no place."""
    text = path.read_text()
    for name, block in found.items():
        pattern = rf"(<!-- knob:{re.escape(name)} -->\n).*?(<!-- /knob -->)"
        text = re.sub(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
    path.write_text(text)
    return [name for name in found if f"<!-- knob:{name} -->" not in text]


def curve(knob: Knob, rows: Sequence[Row]) -> str:
    """Gap and drift, side by side, against the knob; one colour a line."""
    labels = list(dict.fromkeys(r["label"] for r in rows))
    lines = list(dict.fromkeys(r["line"] for r in rows))
    panels = "".join(
        _panel(key, 20 + 400 * i, labels, lines, rows, knob.axis) for i, key in enumerate(("gap", "drift"))
    )
    legend = "".join(
        f'<text x="{60 + 190 * (i % 4)}" y="{268 + 18 * (i // 4)}" fill="{colour}">■ {escape(line)}</text>'
        for i, (line, colour) in enumerate(zip(lines, COLOURS, strict=False)) if line
    )  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 298" font-family="sans-serif" font-size="12" role="img">'
        f'<title>{escape(knob.title)}</title><rect width="820" height="298" fill="#fff"/>{panels}{legend}</svg>\n'
    )


def _panel(key: str, left: float, labels: list[str], lines: list[str], rows: Sequence[Row], axis: str) -> str:
    top, bottom, start, end = 24.0, 205.0, left + 40, left + 370
    highest = max((r["mean"].get(key) or 0 for r in rows), default=1) * 1.1 or 1
    step = (end - start) / max(1, len(labels))
    x = {label: start + step * (i + 0.5) for i, label in enumerate(labels)}
    parts = [f'<text x="{start}" y="15" font-weight="bold">{key}</text>']
    for i in range(5):
        y, value = bottom - (bottom - top) * i / 4, highest * i / 4
        parts.append(f'<path d="M{start} {y:.1f}H{end}" stroke="#ddd"/><text x="{start - 5}" y="{y + 4:.1f}" '
                     f'text-anchor="end" fill="#555">{value:.2f}</text>')  # fmt: skip
    parts += [f'<text x="{x[t]:.1f}" y="222" text-anchor="middle" fill="#555">{escape(t)}</text>' for t in labels]
    parts.append(f'<text x="{(start + end) / 2}" y="243" text-anchor="middle" fill="#555">{escape(axis)}</text>')
    for colour, line in zip(COLOURS, lines, strict=False):
        points = [(x[r["label"]], bottom - (bottom - top) * r["mean"][key] / highest)
                  for r in rows if r["line"] == line and r["mean"].get(key) is not None]  # fmt: skip
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
    return "".join(parts)
