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
from erasekit.attacks.checks import BAR
from erasekit.attacks.ladder import Climbed, Ladder
from erasekit.attacks.victim import Sampling
from erasekit.errors import UsageError
from erasekit.evaluation.statistics import Share

WEAK, NEVER, WORST = "weak erasepro", "never knew", "worst case of those that count"
FREE = "advunlearn"  # its column is there before its edit is
UNMEASURED = "Not measured yet: `python benchmarks/attack_table.py --docs` fits, attacks and writes it."
Runs = Mapping[str, Sequence[tuple[Sequence[Climbed], Share]]]


def rows(found: Runs, rungs: Ladder) -> list[dict[str, Any]]:
    """One row a rung and the worst case last, each with the shares of every column, pooled over its targets."""
    lines = []
    for i, rung in enumerate(rungs.rungs):
        ends = {name: [done[i] for done, _ in runs] for name, runs in found.items()}
        lines.append({"rung": rung.label, "counts": rung.counts,
                      "shares": {name: _pooled([one.share for one in ones]) for name, ones in ends.items()},
                      "unattacked": {name: sum(one.unattacked for one in ones) for name, ones in ends.items()}})  # fmt: skip
    worst = {name: _pooled([share for _, share in runs]) for name, runs in found.items()}
    return [*lines, {"rung": WORST, "counts": True, "shares": worst, "unattacked": {}}]


def _pooled(shares: Sequence[Share]) -> dict[str, int]:
    return dict(vars(sum(shares, Share(0, 0))))


def text(kept: Mapping[str, Any]) -> str:
    """The page's text: the table, what was run, whether each attack does what it must, what could not be run."""
    said = (f"`{kept['ladder']}`, {kept['cases']} cases of {', '.join(kept['targets'])} on `{kept['model']}`: cases that show "
            "the target of those tried, 95 % Wilson interval; in brackets those that showed it without the attack. The weak "
            "edit is tried in those that the unedited model shows.")  # fmt: skip
    lines = [table(kept["rows"]), said, "\n".join(f"- {line}" for line in [*kept["notes"], *verdicts(kept["rows"])])]
    return "\n\n".join(filter(None, lines))


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown; the controls last, and before them the column that is left free."""
    names = list(lines[0]["shares"])
    edits = [name for name in names if name not in (WEAK, NEVER)]
    head = list(dict.fromkeys([*edits, FREE, *(name for name in (WEAK, NEVER) if name in names)]))
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


def verdicts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each rung whether it brings the target out of the weak edit as often as it must, the never-knew rate beside it."""
    return [_verdict(line) for line in lines if WEAK in line["unattacked"]]


def _verdict(line: Mapping[str, Any]) -> str:
    share, without = Share(**line["shares"][WEAK]), line["unattacked"][WEAK]
    never = f"; {NEVER}: {cell(line, NEVER)}" if NEVER in line["shares"] else ""
    if not share.trials:
        word, why = "untested", "no case"
    elif share.value < BAR:
        word, why = "missed", f"{share.hits} of {share.trials}, under {BAR:.0%}: its failures elsewhere prove nothing"
    elif without == share.trials:
        word, why = "untested", f"all {share.trials} show the target without an attack"
    else:
        word, why = "met", f"{share.hits} of {share.trials}, {without} of them without an attack"
    return f"{line['rung']} on the weak edit: {word} ({why}{never})"


def kept(found: Runs, args: argparse.Namespace, rungs: Ladder, says: Sequence[str]) -> dict[str, Any]:
    """All that the text is made from; `says`: what it has to say of single columns."""
    return {"ladder": rungs.name, "cases": args.cases, "targets": args.targets, "model": models.public_name(args.model),
            "rows": rows(found, rungs), "notes": [*says, *skipped(found)]}  # fmt: skip


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
    lines = [f"{name}: {one.rung.label} could not be run and counts nowhere: {one.skipped}"
             for name, runs in found.items() for done, _ in runs for one in done if one.skipped]  # fmt: skip
    return list(dict.fromkeys(lines))


def reprint(results: Path, page: Path) -> str:
    """The text of what was measured before, put into the page; `UsageError` where nothing was."""
    if not results.exists():
        raise UsageError(f"{results} is not there: measure with --docs first")
    said = text(json.loads(results.read_text(encoding="utf-8")))
    rewrite(page, {"table": said})
    return said
