"""The table of all suites: results of the runner, pooled over a method's edits, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from many_page import percent

from erasekit.evaluation.combined import MEANS, mean_of
from erasekit.evaluation.statistics import wilson

METRICS = ("efficacy", "generality", "specificity", "fidelity")
NET = ("net_efficacy", "net_generality")  # of edits alone, for their mean
PARTS = (*METRICS, *NET)
COMBINED = ("erasebench", "net_erasure")
COLUMNS = (*METRICS, *COMBINED)
JUDGED = (*METRICS, "erasebench")  # net_erasure is about edits beside their noise, and noise has none


def pooled(suite: str, labels: Mapping[str, str], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each kind of arm: its rates over all of its targets' images, by the judge that decides, and their mean."""
    whole = [m for m in found["metrics"] if m["metric"] in PARTS and m["group"] is None and m["target"] is None]
    whole = [one for one in whole if one["judge"] == whole[0]["judge"]]
    rows: dict[str, dict[str, Any]] = {}
    for arm in found["arms"]:
        row = rows.setdefault(label(arm, labels), {metric: [0, 0] for metric in PARTS})
        for one in (one for one in whole if one["arm"] == arm["arm"] and one["n"]):
            row[one["metric"]][0] += round(one["value"] * one["n"])
            row[one["metric"]][1] += one["n"]
    return [{"suite": suite, "arm": name, **{key: rate(*row[key]) for key in METRICS},
             **{key: mean(key, row, name) for key in COMBINED}} for name, row in rows.items()]  # fmt: skip


def label(arm: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """What the table calls an arm; edits of one method have one name."""
    name = arm["arm"].partition(":")[2]
    return {"base": "unedited", "edit": labels.get(name, name), "random": f"noise of {labels.get(name, name)}",
            "never": f"never knew {name}"}[arm["kind"]]  # fmt: skip


def rate(hits: int, n: int) -> dict[str, float] | None:
    """A share with its Wilson interval; None without images."""
    low, high = wilson(hits, n)
    return {"value": hits / n, "low": low, "high": high, "n": n} if n else None


def mean(key: str, row: Mapping[str, Sequence[int]], name: str) -> dict[str, float] | None:
    """The harmonic mean `key` of the pooled rates, with the package's own interval for such a mean from images that are
    taken as independent, as the rates' intervals take them; None where a term was not measured."""
    parts = [[("all", float(i < hits)) for i in range(n)] for hits, n in (row[part] for part in MEANS[key])]
    if not all(parts):
        return None
    found = mean_of(parts, key, name)
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def rewarded(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether noise is above the unedited model's interval, for every suite, noise and metric, as one Markdown table.

    A metric in which it is counts damage as success there.
    """
    base = {row["suite"]: row for row in rows if row["arm"] == "unedited"}
    lines = [f"| suite | noise | {' | '.join(JUDGED)} |", "|" + "---|" * (2 + len(JUDGED))]
    for row in (row for row in rows if row["arm"].startswith("noise of ")):
        cells = (_above(row[key], base[row["suite"]][key]) for key in JUDGED)
        lines.append(f"| {row['suite']} | {row['arm'].removeprefix('noise ')} | {' | '.join(cells)} |")
    return "\n".join(["Is noise above the unedited model's interval?", "", *lines])


def _above(noise: Mapping[str, float] | None, unedited: Mapping[str, float] | None) -> str:
    if noise is None or unedited is None:
        return "–"
    above = noise["value"] > unedited["high"]
    return f"**yes**: {100 * noise['value']:.1f}, over {100 * unedited['high']:.1f}" if above else "no"


def table(rows: Sequence[Mapping[str, Any]], refused: Sequence[str]) -> str:
    """The rows as one Markdown table, in per cent, and below it what was refused."""
    lines = [f"| suite | arm | {' | '.join(COLUMNS)} |", "|" + "---|" * (2 + len(COLUMNS))]
    lines += [f"| {r['suite']} | {r['arm']} | " + " | ".join(percent(r.get(key)) for key in COLUMNS) + " |" for r in rows]
    return "\n".join([*lines, *(["", "Refused:", "", *(f"- {line}" for line in refused)] if refused else [])])
