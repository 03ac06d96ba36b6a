"""Charts as inline SVG, drawn from plain numbers: bars and points, each with its 95 % interval. Colours come from the
page's style sheet, by the arm's mark; every arm also has a shape of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from erasekit.evaluation.selfcheck import by_depth, chart

SHAPES = {"base": "circle", "random": "cross", "never": "circle",
          "edit0": "diamond", "edit1": "square", "edit2": "triangle", "edit3": "star"}  # fmt: skip
Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Bar:
    """One bar: who, its mark, and what was measured."""

    label: str
    mark: str
    value: Interval
    shown: str


@dataclass(frozen=True)
class Point:
    """One arm in the plane of two metrics."""

    label: str
    mark: str
    x: Interval
    y: Interval


def bars(rows: Sequence[Bar | str], *, title: str, top: float = 1.0, width: int = 360) -> str:
    """Horizontal bars from 0 to `top`, each with its interval as a line and its value as text; a str is a heading."""
    label, right, y, parts = 122, 54, 6.0, []
    scale = (width - label - right) / (top or 1.0)
    for row in rows:
        if isinstance(row, str):
            y += 8 if parts else 0
            parts.append(f'<text class="soft" x="0" y="{y + 13:.1f}">{escape(row)}</text>')
        else:
            parts.append(_bar(row, label, y, scale, width))
        y += 22
    said = "; ".join(f"{row.label} {row.shown}" if isinstance(row, Bar) else row for row in rows)
    return _svg(width, y + 2, f"{title}: {said}", "".join(parts))


def scatter(points: Sequence[Point], *, x: str, y: str, width: int = 360, height: int = 320) -> str:
    """Arms by two shares, each with both intervals; the better corner is at the top right."""
    left, right, top, bottom = 54.0, width - 20.0, 12.0, height - 46.0

    def place(px: float, py: float) -> tuple[float, float]:
        return left + (right - left) * px, bottom - (bottom - top) * py

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        (gx, gy), label = place(share, share), f"{share:.0%}"
        parts.append(f'<path class="grid" d="M{gx:.1f} {top}V{bottom}M{left} {gy:.1f}H{right}" fill="none"/>'
                     f'<text class="soft" text-anchor="middle" x="{gx:.1f}" y="{bottom + 17:.1f}">{label}</text>'
                     f'<text class="soft" text-anchor="end" x="{left - 7}" y="{gy + 4:.1f}">{label}</text>')  # fmt: skip
    middle = (top + bottom) / 2
    parts.append(f'<text text-anchor="middle" x="{(left + right) / 2}" y="{height - 6}">{escape(x)} →</text>'
                 f'<text text-anchor="middle" transform="translate(11 {middle}) rotate(-90)">{escape(y)} →</text>')  # fmt: skip
    parts += [_point(point, place) for point in points]
    said = "; ".join(f"{p.label}: {x} {p.x[0]:.1%}, {y} {p.y[0]:.1%}" for p in points)
    return _svg(width, height, f"{y} against {x}. {said}", "".join(parts))


def line(points: Sequence[tuple[float, float]], *, title: str, width: int = 360, height: int = 150) -> str:
    """A share over a growing number, as a line through its points; both axes are linear and begin at 0."""
    left, right, top, bottom = 44.0, width - 20.0, 10.0, height - 24.0
    most = max((x for x, _ in points), default=0.0) or 1.0
    placed = [(left + (right - left) * x / most, bottom - (bottom - top) * y) for x, y in points]
    levels = [(bottom - (bottom - top) * share, f"{share:.0%}") for share in (0.0, 0.5, 1.0)]
    parts = [f'<path class="grid" d="M{left} {y:.1f}H{right}" fill="none"/><text class="soft" text-anchor="end" '
             f'x="{left - 7}" y="{y + 4:.1f}">{label}</text>' for y, label in levels]  # fmt: skip
    parts += [f'<text class="soft" text-anchor="middle" x="{px:.1f}" y="{height - 6}">{x:g}</text>'
              for (px, _), (x, _) in zip(placed, points, strict=True)]  # fmt: skip
    drawn = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    marks = "".join(shape("edit0", x, y, radius=4.5) for x, y in placed)
    parts.append(f'<g class="edit0"><path class="whisker" d="M{drawn}"/>{marks}</g>' if placed else "")
    return _svg(width, height, f"{title}. " + "; ".join(f"{x:g}: {y:.0%}" for x, y in points), "".join(parts))


def depth_chart(self_check: Mapping[str, Any]) -> str:
    """The relative update norm by depth, wide enough that its labels stay apart; empty without sites."""
    depths = by_depth(self_check)
    width = max(420, 60 + 54 * len(depths))
    drawn = chart(depths, width=width)
    return f'<div style="min-width:{min(width, 640)}px;max-width:{width}px">{drawn}</div>' if depths else ""


def key(arms: Sequence[tuple[str, str]]) -> str:
    """The legend: (label, mark) pairs, with the same shapes as in the plots."""
    items = "".join(
        f'<li><svg viewBox="-7 -7 14 14" aria-hidden="true"><g class="{kind}">{shape(kind, 0, 0)}</g></svg>'
        f"{escape(label)}</li>" for label, kind in arms
    )  # fmt: skip
    return f'<ul class="key" aria-label="marks">{items}</ul>'


def shape(mark: str, x: float, y: float, *, radius: float = 5.5) -> str:
    """The mark's shape around a point."""
    if SHAPES[mark] == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{radius - 0.5}"/>'
    corners = " ".join(f"{x + radius * dx:.2f},{y + radius * dy:.2f}" for dx, dy in CORNERS[SHAPES[mark]])
    return f'<polygon class="mark" points="{corners}"/>'


CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "diamond": ((0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)),
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0, -1.1), (1.05, 0.8), (-1.05, 0.8)),
    "star": ((0, -1.2), (0.3, -0.3), (1.2, 0), (0.3, 0.3), (0, 1.2), (-0.3, 0.3), (-1.2, 0), (-0.3, -0.3)),
    "cross": ((-1, -0.6), (-0.6, -1), (0, -0.4), (0.6, -1), (1, -0.6), (0.4, 0), (1, 0.6), (0.6, 1), (0, 0.4),
              (-0.6, 1), (-1, 0.6), (-0.4, 0)),
}  # fmt: skip


def _bar(row: Bar, left: float, y: float, scale: float, width: int) -> str:
    value, low, high = (left + scale * v for v in row.value)
    middle = y + 9
    return (f'<g class="{row.mark}"><title>{escape(f"{row.label}: {row.shown}")}</title>'
            f'<text x="0" y="{y + 13:.1f}">{escape(_short(row.label))}</text>'
            f'<rect class="bar full" x="{left}" y="{y + 3:.1f}" width="{max(value - left, 0):.1f}" height="12" rx="2"/>'
            f'<path class="whisker" d="M{low:.1f} {middle - 4:.1f}v8m0 -4H{high:.1f}m0 -4v8"/>'
            f"{shape(row.mark, value, middle, radius=4.5)}"
            f'<text text-anchor="end" x="{width}" y="{y + 13:.1f}">{escape(row.shown)}</text></g>')  # fmt: skip


def _point(point: Point, place: Any) -> str:
    (x, y), (x_low, y_low) = place(point.x[0], point.y[0]), place(point.x[1], point.y[1])
    x_high, y_high = place(point.x[2], point.y[2])
    return (f'<g class="{point.mark}"><title>{escape(point.label)}</title>'
            f'<path class="whisker" d="M{x_low:.1f} {y:.1f}H{x_high:.1f}M{x:.1f} {y_low:.1f}V{y_high:.1f}"/>'
            f"{shape(point.mark, x, y)}</g>")  # fmt: skip


def _svg(width: float, height: float, said: str, inner: str) -> str:
    return (f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'aria-label="{escape(said, quote=True)}">{inner}</svg>')  # fmt: skip


def _short(label: str, most: int = 19) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
