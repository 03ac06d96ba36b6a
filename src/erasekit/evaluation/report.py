"""A report as one self-contained HTML page: pictures, numbers with intervals, the self-check, what is not shown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from erasekit.evaluation.grid import png
from erasekit.evaluation.page_style import CHART
from erasekit.evaluation.selfcheck import Depth, chart
from erasekit.evaluation.statistics import Share

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Measure:
    """How often the judge found something before and after the edit. `wish` is what one wants to see: "gone" (it
    should vanish), "kept" (it should stay), "new" (it should appear)."""

    name: str
    before: Share
    after: Share
    wish: str = "kept"


@dataclass(frozen=True)
class Row:
    """One prompt: its pictures (the same seeds before and after) and its measures."""

    group: str
    prompt: str
    before: Sequence[Image.Image]
    after: Sequence[Image.Image]
    measures: Sequence[Measure]


@dataclass(frozen=True)
class Report:
    """All that the page says."""

    title: str
    lead: str
    headline: Sequence[Measure]
    rows: Sequence[Row]
    facts: Sequence[tuple[str, str]]
    depths: Sequence[Depth]
    limits: Sequence[str]


def html(report: Report) -> str:
    """The whole page as text; it refers to no other file and to no address."""
    return PAGE.format(
        title=escape(report.title), lead=escape(report.lead), style=STYLE + CHART,
        cards="".join(map(_card, report.headline)), rows="".join(_groups(report.rows)),
        facts="".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in report.facts),
        chart=chart(report.depths), limits="".join(f"<li>{escape(line)}</li>" for line in report.limits),
    )  # fmt: skip


def percent(share: Share) -> str:
    """The share and its 95 % interval: "97 % (90-99)"."""
    low, high = share.interval
    return f"{share.value:.0%} ({low * 100:.0f}\u2013{high * 100:.0f})"


def _card(measure: Measure) -> str:
    return (f'<div class="card {measure.wish}"><p>{escape(measure.name)}</p>'
            f"<b>{measure.before.value:.0%} → {measure.after.value:.0%}</b>"
            f"<small>after: {escape(percent(measure.after))} of {measure.after.trials} images</small></div>")  # fmt: skip


def _groups(rows: Sequence[Row]) -> list[str]:
    parts, group = [], ""
    for row in rows:
        if row.group != group:
            group = row.group
            parts.append(f'<tr class="group"><th colspan="4">{escape(group)}</th></tr>')
        parts.append(_row(row))
    return parts


def _row(row: Row) -> str:
    lines = "".join(map(_line, row.measures))
    return (f'<tr><td class="prompt">{escape(row.prompt)}</td><td class="shots">{_images(row.before)}</td>'
            f'<td class="shots">{_images(row.after)}</td><td class="numbers">{lines}</td></tr>')  # fmt: skip


def _line(measure: Measure) -> str:
    low, high = measure.after.interval
    counts = f"{_count(measure.before)} → <b>{_count(measure.after)}</b> <small>({low:.0%} to {high:.0%})</small>"
    return f'<div class="m {measure.wish}"><span>{escape(measure.name)}</span> {counts}</div>'


def _count(share: Share) -> str:
    return f"{share.hits}/{share.trials}"


def _images(images: Sequence[Image.Image]) -> str:
    return "".join(
        f'<img alt="" src="data:image/png;base64,{base64.b64encode(png(image)).decode()}">' for image in images
    )


STYLE = """
:root{--ink:#1b1d23;--muted:#666d7a;--paper:#fff;--soft:#f4f5f8;--line:#e2e5ec;--text:#4c6fff;--cross:#e8853b;
--gone:#b3372f;--kept:#1f7a4d;--new:#7a4fd0;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e9ebf0;--muted:#9aa2b1;--paper:#15171c;--soft:#1e2128;--line:#2e323b;
--gone:#ff8a80;--kept:#6fd6a1;--new:#b79cff}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:40px 24px 80px}h1{font-size:30px;line-height:1.2;margin:0 0 8px}
h2{font-size:20px;margin:44px 0 10px}p.lead{color:var(--muted);max-width:75ch;margin:0 0 24px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:14px}
.card{background:var(--soft);border-radius:12px;padding:16px 18px;border-left:4px solid var(--kept)}
.card.gone{border-color:var(--gone)}.card.new{border-color:var(--new)}.card p{margin:0;color:var(--muted)}
.card b{font-size:26px;display:block}.card small{color:var(--muted)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:8px 10px;vertical-align:middle}
tr{border-bottom:1px solid var(--line)}.group th{padding-top:24px;color:var(--muted);font-weight:600}
.prompt{min-width:180px}.shots{white-space:nowrap}.shots img{width:64px;height:64px;border-radius:6px;margin-right:4px}
.numbers{font-size:14px;white-space:nowrap}.numbers small{color:var(--muted)}
.m span{color:var(--muted)}.gone b{color:var(--gone)}.m.kept b{color:var(--kept)}
.m.new b{color:var(--new)}.facts{max-width:640px}.facts th{font-weight:400;color:var(--muted)}
ul{max-width:80ch;padding-left:20px}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main>
<h1>{title}</h1><p class="lead">{lead}</p><div class="cards">{cards}</div>
<h2>Same prompts, same seeds, before and after</h2>
<p class="lead">Images in which the judge finds the word, of those drawn, before and after; in brackets the 95 % Wilson
interval after.</p>
<div class="wide"><table><tr><th>prompt</th><th>before</th><th>after</th><th>found by the judge</th></tr>
{rows}</table></div>
<h2>Self-check of the edit, without any image</h2>
<table class="facts">{facts}</table>
<p class="lead">Largest change of a weight relative to its norm, by depth: the text encoder's layers, then the
denoiser's cross-attention.</p>{chart}
<h2>What this page does not show</h2><ul>{limits}</ul>
</main></body></html>
"""
