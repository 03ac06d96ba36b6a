"""An edit's self-check, read: what was changed at each depth from the prompt to the image, as rows and as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Depth:
    """The sites that stand at one depth: how many, and their largest residual and relative update norm.

    What was trained has no residual of a single site: None.
    """

    label: str
    sites: int
    residual: float | None
    update: float

    @property
    def missed(self) -> str:
        """The residual as text."""
        return "-" if self.residual is None else f"{self.residual:.1e}"


def by_depth(self_check: Mapping[str, Any]) -> list[Depth]:
    """One row a depth, from the text encoder's first layer to the denoiser's cross-attention."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for site in self_check.get("sites", ()):
        part = str(site["group"]).split(".")[0]
        groups.setdefault((int(site["depth"]), part), []).append(site)
    return [_depth(depth, part, sites) for (depth, part), sites in sorted(groups.items())]


def _depth(depth: int, part: str, sites: Sequence[Mapping[str, Any]]) -> Depth:
    label = f"text {depth}" if part == "text" else part
    known = [float(site.get("residual_cast", site.get("residual"))) for site in sites if "residual" in site]
    return Depth(label, len(sites), max(known, default=None), max(float(site["relative_update"]) for site in sites))


def facts(self_check: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The self-check's totals as (name, value) pairs for a table."""
    names = {"modules": "modules edited", "residual": "residual (relative, in the model's dtype)",
             "residual_before_cast": "residual before the cast", "relative_update": "largest relative update",
             "retained_drift": "drift of what is kept"}  # fmt: skip
    found = [(label, self_check[key]) for key, label in names.items() if self_check.get(key) is not None]
    rows = [(label, f"{value:d}" if isinstance(value, int) else f"{value:.2e}") for label, value in found]
    if run := self_check.get("training"):
        rows.append(("numbers trained", f"{run['numbers']:,} in {run['steps']} steps"))
        rows.append(("loss, first to last stretch", f"{run['loss'][0]:.3g} to {run['loss'][-1]:.3g}"))
    return rows


def chart(rows: Sequence[Depth], *, width: int = 640, height: int = 220) -> str:
    """The relative update norm by depth as one inline SVG element (bars, the exact value as each bar's title)."""
    top = max((row.update for row in rows), default=0.0) or 1.0
    step, floor = (width - 60) / max(len(rows), 1), height - 40
    bars = [_bar(row, 50 + i * step, step * 0.72, floor, (floor - 24) * row.update / top) for i, row in enumerate(rows)]
    ticks = [_tick(top * share, floor - (floor - 24) * share, width) for share in (0.0, 0.5, 1.0)]
    return (f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="relative update norm by depth">{"".join(ticks + bars)}</svg>')  # fmt: skip


def _bar(row: Depth, left: float, width: float, floor: float, height: float) -> str:
    kind = "text" if row.label.startswith("text") else "cross"
    tip = f"{row.label}: {row.update:.3g} of the weight's norm, {row.sites} matrices, residual {row.missed}"
    return (f'<g class="{kind}"><title>{escape(tip)}</title>'
            f'<rect x="{left:.1f}" y="{floor - height:.1f}" width="{width:.1f}" height="{max(height, 0.5):.1f}" rx="3"/>'
            f'<text x="{left + width / 2:.1f}" y="{floor + 18:.1f}">{escape(row.label)}</text></g>')  # fmt: skip


def _tick(value: float, y: float, width: int) -> str:
    return (f'<line x1="46" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="42" y="{y + 4:.1f}">{value:.3f}</text>')  # fmt: skip
