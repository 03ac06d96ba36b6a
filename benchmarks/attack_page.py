"""What was measured of edits under attack: rows that a JSON file keeps, and the page's text, made from that file alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from many_page import rewrite

from erasekit import models
from erasekit.attacks import budget
from erasekit.attacks.checks_weak import BAR, attacks
from erasekit.attacks.ladder import Climbed, Ladder
from erasekit.attacks.victim import Sampling
from erasekit.errors import UsageError
from erasekit.evaluation.statistics import Share

MILD, HIDDEN, NEVER, WORST = "weak edit", "hidden cases", "never knew", "worst case of those that count"
CONTROLS = (MILD, HIDDEN, NEVER)
FREE = "advunlearn"  # its column is there before its edit is
UNMEASURED = "Not measured yet: `python benchmarks/attack_table.py --docs` fits, attacks and writes it."
Runs = Mapping[str, tuple[Sequence[Climbed], Share]]


def rows(found: Runs, rungs: Ladder) -> list[dict[str, Any]]:
    """One row a rung and the worst case last, each with the shares of every column."""
    lines = []
    for i, rung in enumerate(rungs.rungs):
        ends = {name: done[i] for name, (done, _) in found.items()}
        lines.append({"rung": rung.label, "counts": rung.counts, "attacks": attacks(rung),
                      "shares": {name: dict(vars(one.share)) for name, one in ends.items()},
                      "unattacked": {name: one.unattacked for name, one in ends.items()}})  # fmt: skip
    worst = {name: dict(vars(share)) for name, (_, share) in found.items()}
    return [*lines, {"rung": WORST, "counts": True, "attacks": False, "shares": worst, "unattacked": {}}]


def text(kept: Mapping[str, Any]) -> str:
    """The page's text: for each target the table, whether each attack does what it must, what could not be run."""
    return "\n\n".join(_target(kept, one) for one in kept["targets"])


def _target(kept: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    target, lines = one["target"], one["rows"]
    said = (f"`{kept['ladder']}`, {kept['cases']} cases of {target} on `{kept['model']}`: cases that show the target of those "
            "tried, 95 % Wilson interval; in brackets those that showed it without the attack.")  # fmt: skip
    parts = [f"### {target}", table(lines), said]
    if any(MILD in line["shares"] for line in lines):
        parts += [f"#### {target}: do the attacks work?", controls(lines), verdict(lines)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in one["notes"])]).rstrip()


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown; the model that never knew last, and before it the column that is left free."""
    names = list(lines[0]["shares"])
    edits = [name for name in names if name not in CONTROLS]
    return _markdown(lines, [*dict.fromkeys([*edits, FREE]), *(name for name in (NEVER,) if name in names)])


def controls(lines: Sequence[Mapping[str, Any]]) -> str:
    """What each attack does on the controls: the weak edit, what a stronger one hides, the model that never knew."""
    return _markdown([line for line in lines if line["rung"] != WORST], [one for one in CONTROLS if one in lines[0]["shares"]])


def _markdown(lines: Sequence[Mapping[str, Any]], head: Sequence[str]) -> str:
    found = ["| attack | " + " | ".join(head) + " |", "|" + "---|" * (len(head) + 1)]
    for line in lines:
        mark = "" if line["counts"] else " (apart)"
        found.append(f"| {line['rung']}{mark} | " + " | ".join(cell(line, name) for name in head) + " |")
    return "\n".join(found)


def cell(line: Mapping[str, Any], name: str) -> str:
    """Hits of those tried with the interval, and in brackets how many of the hits no attack was needed for."""
    share = Share(**line["shares"].get(name, {"hits": 0, "trials": 0}))
    if not share.trials:
        return "–"
    low, high = share.interval
    without = line["unattacked"].get(name, 0)
    return (f"{share.hits}/{share.trials}{f' [{without}]' if without else ''}, {share.value:.0%} "
            f"({100 * low:.0f}–{100 * high:.0f})")  # fmt: skip


def verdict(lines: Sequence[Mapping[str, Any]]) -> str:
    """Which attacks show the target as often as they must on the weak edit, and which do in what a stronger one hides."""
    asked = [line for line in lines if line["attacks"]]
    hidden = _held(asked, HIDDEN, "of the hidden cases", "too weak there for a failure elsewhere to say much")
    return f"{_held(asked, MILD, 'on the weak edit', 'broken')}\n{hidden}"


def _held(lines: Sequence[Mapping[str, Any]], column: str, where: str, means: str) -> str:
    shares = {line["rung"]: Share(**line["shares"][column]) for line in lines}
    tried = {name: share for name, share in shares.items() if share.trials}
    missed = [f"{name} {share.hits}/{share.trials}" for name, share in tried.items() if share.value < BAR]
    rest = f"{means}: {', '.join(missed)}" if missed else "none is under it"
    without = [name for name in shares if name not in tried]
    more = f"; not tried: {', '.join(without)}" if without else ""
    return f"- {len(tried) - len(missed)} of {len(tried)} attacks show the target in {BAR:.0%} {where}; {rest}{more}."


def kept(target: str, found: Runs, rungs: Ladder, says: Sequence[str]) -> dict[str, Any]:
    """All that a target's text is made from; `says`: what it has to say of single columns."""
    return {"target": target, "rows": rows(found, rungs), "notes": [*says, *skipped(found)]}


def whole(targets: Sequence[Mapping[str, Any]], args: argparse.Namespace, rungs: Ladder) -> dict[str, Any]:
    """All that the page is made from."""
    return {"ladder": rungs.name, "cases": args.cases, "model": models.public_name(args.model), "targets": list(targets)}


def estimate(args: argparse.Namespace, rungs: Ladder, how: Sampling, count: int) -> str:
    """Each rung's cost for one edit, and all `count` of them in hours; an upper bound, finished work included."""
    lines = [f"{rung.label}: {(cost := budget.worst(rung, args.cases, how)).passes} passes, {cost.gradients} with gradients"
             for rung in rungs.rungs]  # fmt: skip
    weight = budget.total(rungs, args.cases, how).weight
    return "\n".join([*lines, f"one edit: as long as {weight} passes, at most about {weight / args.rate / 60:.0f} min at "
                      f"{args.rate:g} a second (--rate); {count} of them: {count * weight / args.rate / 3600:.1f} h; fitting "
                      "the edits and the text encoder's work come on top"])  # fmt: skip


def skipped(found: Runs) -> list[str]:
    """One line for each rung that could not be run on a column's edit; the same command tries it again."""
    return [f"{name}: {one.rung.label} could not be run and counts nowhere: {one.skipped}"
            for name, (done, _) in found.items() for one in done if one.skipped]  # fmt: skip


def reprint(results: Path, page: Path) -> str:
    """The text of what was measured before, put into the page; `UsageError` where nothing was."""
    if not results.exists():
        raise UsageError(f"{results} is not there: measure with --docs first")
    said = text(json.loads(results.read_text(encoding="utf-8")))
    rewrite(page, {"table": said})
    return said
