"""The table of all suites: results of the runner, pooled over a method's edits, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from many_page import percent

from erasekit.evaluation.statistics import wilson

METRICS = ("efficacy", "generality", "specificity", "fidelity")


def pooled(suite: str, labels: Mapping[str, str], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each kind of arm: its rates over all of its targets' images, by the judge that decides."""
    whole = [m for m in found["metrics"] if m["metric"] in METRICS and m["group"] is None and m["target"] is None]
    whole = [one for one in whole if one["judge"] == whole[0]["judge"]]
    rows: dict[str, dict[str, Any]] = {}
    for arm in found["arms"]:
        row = rows.setdefault(label(arm, labels), {metric: [0, 0] for metric in METRICS})
        for one in (one for one in whole if one["arm"] == arm["arm"] and one["n"]):
            row[one["metric"]][0] += round(one["value"] * one["n"])
            row[one["metric"]][1] += one["n"]
    return [{"suite": suite, "arm": name, **{key: rate(*row[key]) for key in METRICS}}
            for name, row in rows.items()]  # fmt: skip


def label(arm: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """What the table calls an arm; edits of one method have one name."""
    name = arm["arm"].partition(":")[2]
    return {"base": "unedited", "edit": labels.get(name, name), "random": f"noise of {labels.get(name, name)}",
            "never": f"never knew {name}"}[arm["kind"]]  # fmt: skip


def rate(hits: int, n: int) -> dict[str, float] | None:
    """A share with its Wilson interval; None without images."""
    low, high = wilson(hits, n)
    return {"value": hits / n, "low": low, "high": high, "n": n} if n else None


def table(rows: Sequence[Mapping[str, Any]], refused: Sequence[str]) -> str:
    """The rows as one Markdown table, in per cent, and below it what was refused."""
    lines = [f"| suite | arm | {' | '.join(METRICS)} |", "|" + "---|" * (2 + len(METRICS))]
    lines += [f"| {r['suite']} | {r['arm']} | " + " | ".join(percent(r[key]) for key in METRICS) + " |" for r in rows]
    return "\n".join([*lines, *(["", "Refused:", "", *(f"- {line}" for line in refused)] if refused else [])])
