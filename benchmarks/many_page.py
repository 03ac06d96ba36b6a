"""The table of many concepts as Markdown, what it says about the papers' claims, and putting both into a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from many_fits import NONE, RANDOM

from erasekit.errors import UsageError
from erasekit.files import write_whole

Rows = Sequence[Mapping[str, Any]]
HEAD = ("targets", "method", "gap", "drift", "efficacy", "specificity", "others right", "H", "fit, s", "KiB")
# Celebrities of Stable Diffusion 1.4, erased and kept, H of the two; SPEED, arXiv 2503.07392, table 2 (MACE whole).
PUBLISHED = """\
| people erased | UCE | RECE | MACE (whole) | SPEED |
|---|---|---|---|---|
| 10 | 71.19 kept, H 83.10 | 67.43 kept | H 92.75 | 89.09 kept, H 93.42 |
| 50 | 31.94 kept, H 48.41 | 19.77 kept | H 90.03 | 88.48 kept, H 92.34 |
| 100 | 20.92 kept, H 34.60 | 23.71 kept | H 87.06 | 85.54 kept, H 89.63 |

In %, as SPEED's table 2 prints them. MACE's own ablation at 100 people: its closed-form refinement alone has 67.79 still
recognised, 85.05 kept, H 46.72; only the trained second stage and the fusion bring H to 89.78."""


def merged(earlier: Rows, now: Rows) -> list[Mapping[str, Any]]:
    """Both, `now` in place of earlier rows of the same count and arm; by count, the controls last in each."""
    found = {(row["targets"], row["arm"]): row for row in (*earlier, *now)}
    return sorted(found.values(), key=lambda row: (row["targets"], row["arm"] != NONE, row["arm"].startswith(RANDOM)))


def table(rows: Rows) -> str:
    """The rows as one Markdown table, refusals below it."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for row in rows:
        cells = [str(row["targets"]), f"`{row['arm']}`" if ":" in row["arm"] else row["arm"]]
        if row["refused"]:
            cells += ["refused", *["–"] * (len(HEAD) - 3)]
        else:
            cells += [_number(row.get("gap")), _number(row.get("drift"))]
            cells += [percent(row.get(key)) for key in ("efficacy", "specificity", "right", "h")]
            size = row.get("bytes")
            cells += [_number(row.get("seconds"), 2), "–" if size is None else f"{size / 1024:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    refused = [f"- {row['arm']}, {row['targets']} targets: {row['refused']}" for row in rows if row["refused"]]
    return "\n".join([*lines, *(["", "Refused, in the method's own words:", "", *refused] if refused else [])])


def percent(rate: Mapping[str, float] | None) -> str:
    """The rate with its interval, in per cent."""
    if not rate:
        return "–"
    value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}–{high:.1f})"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def claims(rows: Rows) -> str:
    """One line for each claim of the papers that the rows can answer, with its verdict: from pictures where there are
    any, else from features alone."""
    counts = sorted({row["targets"] for row in rows})
    if not counts:
        return "Nothing was measured yet."
    most = _at(rows, counts[-1])
    if any("h" in row for row in most.values()):
        return "\n".join([_collapse(rows, counts), *_beside(most, "specificity", counts[-1]), _control(rows, counts)])
    return "\n".join([f"No pictures were judged yet at {counts[-1]} targets; from features alone:", *_features(most)])


def _at(rows: Rows, count: int) -> dict[str, Mapping[str, Any]]:
    return {row["arm"]: row for row in rows if row["targets"] == count}


def _collapse(rows: Rows, counts: Sequence[int]) -> str:
    few, many = (_at(rows, count).get("uce", {}).get("specificity") for count in (counts[0], counts[-1]))
    if not few or not many or len(counts) == 1:
        return "- UCE collapses with many concepts: not measured."
    verdict = "shown" if many["high"] < few["low"] else "not shown (the intervals meet)"
    return (f"- UCE loses the rest with many concepts: **{verdict}**; specificity {percent(few)} at {counts[0]}, "
            f"{percent(many)} at {counts[-1]}.")  # fmt: skip


def _kept(name: str) -> bool:
    return name.startswith(("speed", "mace"))


def _beside(most: Mapping[str, Mapping[str, Any]], what: str, count: int) -> list[str]:
    """SPEED and MACE, whole and its refinement, against UCE at the largest count."""
    uce, found = most.get("uce", {}).get(what), []
    for name, row in most.items():
        if not _kept(name) or what not in row or not uce:
            continue
        ours = row[what]
        verdict = _ordered(ours, uce, "shown", "the reverse is shown", "not shown (the intervals meet)")
        found.append(f"- {name} keeps more of the rest than UCE at {count}: **{verdict}**; {what} {percent(ours)} "
                     f"against {percent(uce)}; H {percent(row['h'])} against {percent(most['uce']['h'])}.")  # fmt: skip
    return found


def _ordered(a: Mapping[str, float], b: Mapping[str, float], above: str, below: str, neither: str) -> str:
    return above if a["low"] > b["high"] else below if a["high"] < b["low"] else neither


def _control(rows: Rows, counts: Sequence[int]) -> str:
    """Whether every method has an H above every control's at every count, and what there was nothing to say of."""
    above, weak, without = [], [], []
    for count in counts:
        found = _at(rows, count)
        noise = [row["h"] for name, row in found.items() if name.startswith(RANDOM) and "h" in row]
        for name, row in found.items():
            if name != NONE and not name.startswith(RANDOM):
                _place(row, noise, above, weak, without).append(f"{name} at {count}")
    said = f"not shown for {', '.join(weak)}" if weak else "shown" if above else "not measured"
    more = f"; not measured (refused, no pictures, or no control) for {', '.join(without)}" if without else ""
    return f"- Every method's H lies above the random control's: **{said}**{more}."


def _place(row: Mapping[str, Any], noise: Rows, above: list[str], weak: list[str], without: list[str]) -> list[str]:
    """The list that a method's row belongs to."""
    if not noise or "h" not in row:
        return without
    return weak if any(row["h"]["low"] <= h["high"] for h in noise) else above


def _features(most: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The order of the methods by drift and by gap, and where UCE stands."""
    own = {name: row for name, row in most.items() if "drift" in row and name != NONE}
    lines = [f"- {what}, least first: {_order(own, key)}." for what, key in (("drift of the retained", "drift"),
                                                                            ("gap left", "gap"))]  # fmt: skip
    if "uce" in own:
        still = [name for name in own if _kept(name) and own[name]["drift"] < own["uce"]["drift"]]
        kept = [name for name in own if _kept(name)]
        if kept:
            lines.append(f"- Moves the retained less than UCE: {', '.join(still) or 'none'} of {', '.join(kept)}.")
    return lines


def _order(rows: Mapping[str, Mapping[str, Any]], key: str) -> str:
    return ", ".join(f"{name} {rows[name][key]:.3f}" for name in sorted(rows, key=lambda name: rows[name][key]))


def rewrite(page: Path, blocks: Mapping[str, str]) -> None:
    """Puts each text between `<!-- begin NAME -->` and `<!-- end NAME -->` of the page; the rest stays as it is.

    Raises `UsageError` naming the markers that the page lacks; nothing is written then.
    """
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        text = _between(text, f"<!-- begin {name} -->", f"<!-- end {name} -->", block, page)
    write_whole(page, text.encode())


def _between(text: str, begin: str, end: str, block: str, page: Path) -> str:
    before, first, rest = text.partition(begin)
    _, second, after = rest.partition(end)
    if not first or not second:
        raise UsageError(f"{page} has no lines {begin} and {end}: put both in, the text goes between them")
    return f"{before}{begin}\n{block.strip()}\n{end}{after}"
