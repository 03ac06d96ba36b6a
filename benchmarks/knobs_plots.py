"""The numbers of `erasepro_knobs.py` as SVG: a panel for each measure, against the knob or setting by setting.

Gap and drift with the standard deviation over the targets, as in the tables; from pictures, where they are drawn, the
shares with their 95 % intervals. A knob that has an axis is drawn as curves, one colour a line; another as points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from knobs_settings import Knob
from knobs_tables import SHOWN, Points, Row

COLOURS = ("#0b62a4", "#c4501b", "#2b8a57", "#7a4fa3", "#8a6d1b", "#b0306a", "#4d4d4d", "#107c7c", "#d0a215", "#5fa8d3")
WIDE, HIGH = 400.0, 245.0  # a panel of curves
LINE, PANEL, BETWEEN = 20.0, 150.0, 48.0  # of points: a row, the width of a panel, the space for two panels' ticks
Mark = tuple[float, float, float]
"""A value, and where its whisker begins and ends."""


@dataclass(frozen=True)
class Dot:
    """One setting with what there is to draw of it."""

    line: str
    label: str
    marks: dict[str, Mark] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.line}, {self.label}" if self.line else self.label


def dots(rows: Sequence[Row], points: Points) -> list[Dot]:
    """Every setting that features or pictures were measured of, in the tables' order."""
    features = {(r["line"], r["label"]): r for r in rows}
    return [Dot(*key, _features(features.get(key)) | _pictures(points.get(key))) for key in {**features, **points}]


def _features(row: Row | None) -> dict[str, Mark]:
    means = {key: row["mean"].get(key) for key in ("gap", "drift")} if row else {}
    found = {key: (mean, row["sd"].get(key) or 0.0) for key, mean in means.items() if row and mean is not None}
    return {key: (mean, mean - sd, mean + sd) for key, (mean, sd) in found.items()}


def _pictures(point: Row | None) -> dict[str, Mark]:
    shares = {key: point["measures"].get(key) for key in SHOWN} if point else {}
    return {key: (s["share"], *s["interval95"]) for key, s in shares.items() if s and s["images"]}


def svg(knob: Knob, rows: Sequence[Row], points: Points) -> str:
    """All measures of a knob."""
    found = dots(rows, points)
    keys = [key for key in ("gap", "drift", *SHOWN) if any(key in dot.marks for dot in found)]
    width, height, parts = _curves(knob, found, keys) if knob.axis else _rows(found, keys)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>{escape(knob.title)}</title><rect width="{width:.0f}" height="{height:.0f}" '
        f'fill="#fff"/>{parts}</svg>\n'
    )


def _most(key: str, found: Sequence[Dot]) -> float:
    """Where a panel's scale ends; a share has no more than all."""
    highest = max((dot.marks[key][2] for dot in found if key in dot.marks), default=0.0) * 1.05 or 1.0
    return min(highest, 1.0) if key in SHOWN else highest


def _tick(key: str, value: float) -> str:
    return f"{value:.0%}" if key in SHOWN else f"{value:.2f}"


# -- curves -------------------------------------------------------------------------------------------------------


def _curves(knob: Knob, found: Sequence[Dot], keys: Sequence[str]) -> tuple[float, float, str]:
    """Panels two in a row, the legend below."""
    lines = list(dict.fromkeys(dot.line for dot in found))
    colours = {line: COLOURS[i % len(COLOURS)] for i, line in enumerate(lines)}
    panels = "".join(_panel(key, found, colours, knob.axis, 20 + WIDE * (i % 2), HIGH * (i // 2))
                     for i, key in enumerate(keys))  # fmt: skip
    below = HIGH * -(-len(keys) // 2) + 23
    legend, rows = _legend(colours, below)
    return 2 * WIDE + 20, below + 18 * (rows - 1) + 12, panels + legend


def _legend(colours: dict[str, str], below: float) -> tuple[str, int]:
    """The lines' names in columns of 190, as many columns to a name as it fills; and how many rows they take."""
    parts, place = [], 0
    for line, colour in colours.items():
        wide = -(-(7 * len(line) + 20) // 190)  # a letter is at most about 7 wide
        if place % 4 + wide > 4:
            place += 4 - place % 4
        x, y = 60 + 190 * (place % 4), below + 18 * (place // 4)
        parts += [f'<text x="{x}" y="{y:.0f}" fill="{colour}">■ {escape(line)}</text>'] if line else []
        place += wide
    return "".join(parts), max(1, -(-place // 4))


def _panel(key: str, found: Sequence[Dot], colours: dict[str, str], axis: str, left: float, down: float) -> str:
    """One measure against the knob."""
    top, bottom, start, end = down + 24, down + 205, left + 40, left + WIDE - 30
    labels, most = list(dict.fromkeys(dot.label for dot in found)), _most(key, found)
    step = (end - start) / max(1, len(labels))
    x = {label: start + step * (i + 0.5) for i, label in enumerate(labels)}
    parts = [f'<text x="{start}" y="{down + 15}" font-weight="bold">{key}</text>']
    for i in range(5):
        y = bottom - (bottom - top) * i / 4
        parts.append(f'<path d="M{start} {y:.1f}H{end}" stroke="#ddd"/><text x="{start - 5}" y="{y + 4:.1f}" '
                     f'text-anchor="end" fill="#555">{_tick(key, most * i / 4)}</text>')  # fmt: skip
    parts += [
        f'<text x="{x[t]:.1f}" y="{down + 222}" text-anchor="middle" fill="#555">{escape(t)}</text>' for t in labels
    ]
    parts.append(
        f'<text x="{(start + end) / 2}" y="{down + 241}" text-anchor="middle" fill="#555">{escape(axis)}</text>'
    )
    for i, (line, colour) in enumerate(colours.items()):
        aside = 3 * (i - (len(colours) - 1) / 2)  # so that whiskers of several lines do not hide each other
        marks = [(x[d.label] + aside, [bottom - (bottom - top) * max(0.0, min(v, most)) / most for v in d.marks[key]])
                 for d in found if d.line == line and key in d.marks]  # fmt: skip
        path = " ".join(f"{a:.1f},{b[0]:.1f}" for a, b in marks)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<path d="M{a:.1f} {b[1]:.1f}V{b[2]:.1f}" stroke="{colour}" opacity=".5"/>'
                  f'<circle cx="{a:.1f}" cy="{b[0]:.1f}" r="3.5" fill="{colour}"/>' for a, b in marks]  # fmt: skip
    return "".join(parts)


# -- points -------------------------------------------------------------------------------------------------------


def _rows(found: Sequence[Dot], keys: Sequence[str]) -> tuple[float, float, str]:
    """A row for each setting, its name before it, a panel for each measure."""
    left, bottom = 20 + 6.6 * max((len(dot.name) for dot in found), default=0), 40 + LINE * len(found)
    lines = list(dict.fromkeys(dot.line for dot in found))
    parts = [f'<text x="{left - 12:.0f}" y="{44 + LINE * i:.0f}" text-anchor="end">{escape(dot.name)}</text>'
             for i, dot in enumerate(found)]  # fmt: skip
    for place, key in enumerate(keys):
        start, most = left + (PANEL + BETWEEN) * place, _most(key, found)
        parts.append(f'<text x="{start:.0f}" y="18" font-weight="bold">{key}</text>')
        parts += [f'<path d="M{start + PANEL * i / 2:.1f} 26V{bottom:.0f}" stroke="#ddd"/>'
                  f'<text x="{start + PANEL * i / 2:.1f}" y="{bottom + 14:.0f}" text-anchor="middle" fill="#555">'
                  f'{_tick(key, most * i / 2)}</text>' for i in range(3)]  # fmt: skip
        for i, dot in enumerate(found):
            if key in dot.marks:
                a, low, high = (start + PANEL * max(0.0, min(v, most)) / most for v in dot.marks[key])
                y, colour = 40 + LINE * i, COLOURS[lines.index(dot.line) % len(COLOURS)]
                parts.append(f'<path d="M{low:.1f} {y:.0f}H{high:.1f}" stroke="{colour}"/>'
                             f'<circle cx="{a:.1f}" cy="{y:.0f}" r="3.5" fill="{colour}"/>')  # fmt: skip
    return left + (PANEL + BETWEEN) * len(keys) + 10, bottom + 24, "".join(parts)
