"""What M-ErasureBench reports: rates, their gaps to the controls, and white-box rows beside their black-box twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasekit.attacks.base import Outcome
from erasekit.evaluation.compare import spread
from erasekit.evaluation.statistics import Share

WHITE, BLACK = "-wb", "-bb"


def counted(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The CRR with its 95 % Wilson interval: `hits` of `of` pictures, and apart from them the `invalid` ones. Without a
    picture that counts the rate is None."""
    valid = [one.shown for one in outcomes if one.status != "invalid"]
    found = Share(sum(valid), len(valid)).estimate
    rate: dict[str, float | None] = (
        dict.fromkeys(("rate", "low", "high"))
        if found is None
        else {"rate": found.value, "low": found.low, "high": found.high}
    )
    return {"hits": sum(valid), "of": len(valid), "invalid": len(outcomes) - len(valid), **rate}


def gap(crr: Mapping[str, Any], control: Mapping[str, Any]) -> dict[str, float] | None:
    """The rate minus the control's with a 95 % interval (wide: the pictures are pairs, taken as independent); None where
    either has no rate."""
    first, second = ({"value": one["rate"], "low": one["low"], "high": one["high"]} for one in (control, crr))
    ends = spread(first, second)
    return None if ends is None else {"value": crr["rate"] - control["rate"], "low": ends[0], "high": ends[1]}


def warned(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """The rows, each that its twin beats with a warning of it. `found`: the outcomes by row."""
    said = outdone(found)
    return [{**row, "warnings": [*row["warnings"], *filter(None, [said.get(row["row"])])]} for row in rows]


def outdone(found: Mapping[str, Sequence[Outcome]]) -> dict[str, str]:
    """By the name of each white-box row that its black-box twin beats: what is warned of.

    Only pictures that could be judged in both count, so that the two numbers are of the same ones.
    """
    said: dict[str, str] = {}
    for white in (row for row in found if WHITE in row):
        black = white.replace(WHITE, BLACK)
        both = [(a.shown, b.shown) for a, b in zip(found[white], found.get(black, ()), strict=False)
                if "invalid" not in (a.status, b.status)]  # fmt: skip
        less, more = (sum(side) for side in zip(*both, strict=True)) if both else (0, 0)
        if more > less:
            which = f"{more} of the same {len(both)} pictures, it in {less}"
            said[white] = f"{black}, which sees less, shows the target in {which}"
    return said
