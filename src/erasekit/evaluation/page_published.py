"""What a paper reports for the task that a plan reruns, beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erasekit.evaluation.page_parts import estimate, number, row, table, text
from erasekit.evaluation.page_view import View

# A published figure's group -> the group of our prompts; None: all prompts of the metric together.
GROUPS: dict[str, str | None] = {"target": None, "anchor": "anchor", "others": "unrelated", "implicit": "implicit"}
WORDS = ("metric", "group", "method")


def published(view: View) -> str:
    """The plan's published figures as a table, ours beside each where the same metric was measured; empty without any."""
    known: Mapping[str, Any] = view.results.get("published") or {}
    if not known.get("figures"):
        return ""
    rows = [_row(view, figure) for figure in known["figures"]]
    about = "; ".join(str(known[key]) for key in ("source", "model", "note") if known.get(key))
    head = ["published", "value", *map(view.label, view.edits)]
    return f'<p class="note">{text(about)}</p>' + table(head, rows, caption="Published figures and ours")


def _row(view: View, figure: Mapping[str, Any]) -> str:
    name = ", ".join(str(figure[key]) for key in WORDS if key in figure)
    ours = "".join(_ours(view, figure, arm) for arm in view.edits)
    return row(name, [f"<td><b>{number(float(figure['value']))}</b></td>", ours])


def _ours(view: View, figure: Mapping[str, Any], arm: Mapping[str, Any]) -> str:
    """Our estimate for an edit by the method of the figure; a dash for any other."""
    if not arm["edit"] or arm["edit"]["method"] != figure["method"]:
        return "<td>–</td>"
    group = GROUPS.get(str(figure.get("group", "target")), str(figure.get("group")))
    found = [e for e in view.results["metrics"]
             if (e["metric"].partition("(")[0], e["arm"], e["group"], e["target"])
             == (figure["metric"], arm["arm"], group, None)]  # fmt: skip
    return estimate(found[0]) if found else "<td>–</td>"
