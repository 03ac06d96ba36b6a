"""The page's numbers: estimates by metric, kind of prompt and target, as tables and bars; paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from erasekit.evaluation.metrics import METRICS, base_name
from erasekit.evaluation.page_parts import (
    ARROWS,
    estimate,
    facts,
    number,
    of_difference,
    row,
    table,
    text,
    trim,
)  # fmt: skip
from erasekit.evaluation.page_summary import span
from erasekit.evaluation.page_view import Entry, View
from erasekit.evaluation.plots import Bar, bars, key

MOST_LINES = 400  # of one table; the rest is in results.json


def metrics(view: View) -> str:
    """Every estimate, the arms as columns: the whole ones, then folded away those by kind of prompt and by target."""
    lines: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for entry in view.results["metrics"]:
        line = tuple(entry[key] for key in ("metric", "group", "target", "judge", "unit", "direction"))
        lines.setdefault(line, {})[entry["arm"]] = entry
    parts: dict[str, dict[tuple[Any, ...], dict[str, Entry]]] = {"": {}, "By kind of prompt": {}, "By target": {}}
    for line, arms in lines.items():
        parts["By target" if line[2] else "By kind of prompt" if line[1] else ""][line] = arms
    folded = "".join(f"<details><summary><h3>{title}</h3><small>{len(part)} lines</small></summary>"
                     f"{_estimates(view, part, f'{title}, with 95 % intervals and n')}</details>"
                     for title, part in parts.items() if title and part)  # fmt: skip
    return (
        _judge_note(view)
        + _estimates(view, parts[""], "All prompts together, with 95 % intervals and n")
        + folded
        + _omitted(view)
        + _words(view)
    )


def _judge_note(view: View) -> str:
    return f'<p class="note">Judge, where a line names no other: {text(view.judge)}.</p>' if view.judge else ""


def _omitted(view: View) -> str:
    """What is not stated for want of images."""
    lines = "".join(f"<li>{text(line)}</li>" for line in view.results.get("omitted", ()))
    return f'<ul class="note">{lines}</ul>' if lines else ""


def _words(view: View) -> str:
    """What the metrics mean, in one sentence each."""
    names = dict.fromkeys(base_name(entry["metric"]) for entry in view.results["metrics"])
    known = [(name, f"{METRICS[name].definition} ({METRICS[name].source})") for name in names if name in METRICS]
    return f"<details><summary><h3>What the metrics are</h3></summary>{facts(known)}</details>" if known else ""


def group_bars(view: View) -> str:
    """One chart for each headline rate that was estimated by kind of prompt, all arms in it."""
    charts, used = [], set()
    grouped = {entry["metric"] for entry in view.results["metrics"] if entry["group"] is not None}
    for metric in (("target_rate",) if "target_rate" in grouped else ("efficacy", "generality")) + CHARTED:
        rows, direction = _bars_of(view, metric)
        if rows:
            charts.append(f"<figure><h3>{text(metric.replace('_', ' '))}</h3><p class='note'>{ARROWS.get(direction, '')}</p>"
                          f"{bars(rows, title=metric)}</figure>")  # fmt: skip
            used |= {bar.mark for bar in rows if isinstance(bar, Bar)}
    named = [(view.name(arm), view.mark(arm["arm"])) for arm in view.arms if view.mark(arm["arm"]) in used]
    return f'{key(named)}<div class="plots">{"".join(charts)}</div>' if charts else ""


CHARTED = ("specificity", "anchor_rate", "fidelity")


def differences(view: View) -> str:
    """Paired differences with their intervals and p values: to the unedited model, then edit against edit; those of
    single kinds of prompts are folded away."""
    found = view.results["differences"]
    edits = [entry for entry in found if entry["against"] != view.base]
    return _family(view, [entry for entry in found if entry["against"] == view.base], PAIRED) + (
        f"<h3>Edit against edit</h3>{_family(view, edits, BETWEEN)}" if edits else ""
    )


def _family(view: View, found: Sequence[Entry], caption: str) -> str:
    whole = [entry for entry in found if entry["group"] is None and entry["target"] is None]
    parts = [entry for entry in found if entry["group"] is not None or entry["target"] is not None]
    if not whole or len(parts) < FOLD:
        return _differences(view, found, caption)
    return (f"{_differences(view, whole, caption)}<details><summary><h3>By kind of prompt and target</h3>"
            f"<small>{len(parts)} lines</small></summary>{_differences(view, parts, caption)}</details>")  # fmt: skip


def _differences(view: View, entries: Sequence[Entry], caption: str) -> str:
    units = {entry["metric"]: entry["unit"] for entry in view.results["metrics"]}
    labels = {arm["arm"]: view.name(arm) for arm in view.arms}
    rows = []
    for entry in entries[:MOST_LINES]:
        cells = [f"<td>{text(labels[entry['arm']])} − {text(labels[entry['against']])}</td>",
                 estimate({**entry, "unit": of_difference(units.get(entry["metric"], ""))}),
                 f"<td>{text(_p(entry.get('p_holm', entry['p'])))}</td>"]  # fmt: skip
        rows.append(row(entry["metric"], cells, _where(entry)))
    if len(entries) > MOST_LINES:
        caption += _cut(len(entries))
    return table(["metric", "arms", "difference", "p"], rows, caption=caption) if rows else ""


FOLD = 6  # fewer lines than these are not worth folding
PAIRED = "Against the unedited model, at equal prompts and seeds; p after Holm's correction over all these lines"
BETWEEN = "Every pair of edits, on the prompts that both drew; p after Holm's correction over all these lines"


def _estimates(view: View, lines: Mapping[tuple[Any, ...], Mapping[str, Entry]], caption: str) -> str:
    rows = []
    for line, arms in list(lines.items())[:MOST_LINES]:
        judge = f", {line[3]}" if line[3] not in ("", view.judge) else ""
        first = next(iter(arms.values()))
        note = "; ".join([f"{_where(first)}{judge}; {ARROWS.get(line[5], '')}".strip(";, "), *_caveats(arms.values())])
        rows.append(row(line[0], [estimate(arms.get(arm["arm"])) for arm in view.arms], note))
    if len(lines) > MOST_LINES:
        caption += _cut(len(lines))
    return table(["metric", *map(view.name, view.arms)], rows, caption=caption) if rows else ""


def _caveats(entries: Iterable[Entry]) -> list[str]:
    """What a reader of these numbers must know, each sentence once."""
    said: list[str] = []
    for entry in entries:
        said += [f"mean of {', '.join(entry['terms'])}"] if entry.get("terms") else []
        said += [f"local substitutes: {entry['substitute']}"] if entry.get("substitute") else []
        said += [entry["note"]] if entry.get("note") else []
    return list(dict.fromkeys(said))


def _cut(lines: int) -> str:
    return f" ({MOST_LINES} of {lines} lines; all are in results.json)"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else trim(value, 3)


def _where(entry: Entry) -> str:
    return ", ".join([entry["group"] or "all groups", *([entry["target"]] if entry["target"] else [])])


def _bars_of(view: View, metric: str) -> tuple[list[Bar | str], str]:
    """The chart's lines (group headings and bars), and the metric's direction."""
    found = [e for e in view.decided.values() if e["metric"] == metric and e["group"] is not None and span(e)]
    targets = {entry["target"] for entry in found}
    only = None if None in targets else next(iter(targets), None)
    if not found or (only is not None and len(targets) > 1):
        return [], "none"
    rows: list[Bar | str] = []
    for group in dict.fromkeys(entry["group"] for entry in found):
        drawn = {e["arm"]: e for e in found if e["group"] == group and e["target"] == only}
        bars_here = [_bar(view, arm, drawn[arm["arm"]]) for arm in view.arms if arm["arm"] in drawn]
        rows += [view.group(group).title, *bars_here] if bars_here else []
    return rows, found[0]["direction"]


def _bar(view: View, arm: Entry, entry: Entry) -> Bar:
    value = span(entry)
    assert value is not None
    return Bar(view.name(arm), view.mark(arm["arm"]), value, number(entry["value"], "share"))
