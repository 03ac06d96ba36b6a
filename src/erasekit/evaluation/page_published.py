"""What a paper reports for the task that a plan reruns, beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasekit.evaluation.page_parts import duration, estimate, number, row, table, text
from erasekit.evaluation.page_view import View

# A published figure's group -> the group of our prompts; None: all prompts of the metric together.
GROUPS: dict[str, str | None] = {"target": None, "anchor": "anchor", "others": "unrelated", "implicit": "implicit"}
WORDS = ("metric", "group", "method")
UNEDITED = "unedited"


def published(view: View) -> str:
    """The plan's published figures as a table, ours beside each where the same metric was measured; empty without any."""
    known: Mapping[str, Any] = view.results.get("published") or {}
    if not known.get("figures"):
        return ""
    arms = [arm for arm in view.arms if arm["kind"] in ("base", "edit")]
    rows = [_row(view, figure, arms) for figure in known["figures"]]
    about = "; ".join(str(known[key]) for key in ("source", "model", "note") if known.get(key))
    head = ["published", "value", *map(view.name, arms)]
    return f'<p class="note">{text(about)}</p>' + table(head, rows, caption="Published figures and ours")


def _row(view: View, figure: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> str:
    name = ", ".join(str(figure[key]) for key in WORDS if key in figure)
    ours = "".join(_ours(view, figure, arm) for arm in arms)
    return row(name, [f"<td><b>{number(float(figure['value']))}</b></td>", ours])


def _ours(view: View, figure: Mapping[str, Any], arm: Mapping[str, Any]) -> str:
    """Our estimate for an edit by the method of the figure, for the unedited model where that is "unedited"; a dash for any
    other."""
    if (arm["edit"]["method"] if arm["edit"] else UNEDITED) != figure["method"]:
        return "<td>–</td>"
    if figure["metric"] == "seconds":
        spent = view.timing.get("fit", {}).get(arm["arm"])
        return "<td>–</td>" if spent is None else f"<td><b>{duration(spent)}</b></td>"
    group = GROUPS.get(str(figure.get("group", "target")), str(figure.get("group")))
    own = [e for e in view.results["metrics"] if (e["arm"], e["group"], e["target"]) == (arm["arm"], group, None)]
    found = [e for e in own if e["metric"] == figure["metric"]] or [
        e for e in own if e["metric"].partition("(")[0] == figure["metric"]
    ]
    return estimate(found[0]) if found else "<td>–</td>"
