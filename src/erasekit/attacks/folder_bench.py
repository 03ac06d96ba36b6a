"""What `erasekit attack m-erasurebench` left in a folder, read again: its rows with example pictures, and its lines of an
evaluation's results. Nothing here draws or judges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasekit.attacks._bench_rates import counted
from erasekit.attacks._bench_scenarios import BEGIN, EDITED, NEVER, VERSION, lies, place_of
from erasekit.attacks.base import Outcome
from erasekit.attacks.ladder import kept
from erasekit.errors import UsageError

MOST = 6  # example pictures of a row
INVERTED = "inverted"  # the side of the pictures that a latent row begins with
COUNTS = ("hits", "of", "invalid")
NEEDS = {"benchmark", "model", "model_sha256", "edit", "edit_sha256", "target", "kind", "judge", "judge_sha256", "labels",
         "sampling", "seed", "config", "templates", "others", "concept_images", "false_positives", "autoencoder",
         "rows"}  # fmt: skip
NEEDED = {
    "key",
    "row",
    "attack",
    "settings",
    "found_on",
    "confirmed",
    "inferred",
    "crr",
    "warnings",
    "spent",
    "controls",
}


@dataclass(frozen=True, eq=False)
class Benched:
    """A benchmark that was run to its end: what its `results.json` holds, and by row the examples to be shown: one case
    each, its outcome on every side (a latent row's `inverted` picture, the edited model, the controls)."""

    folder: Path
    found: Mapping[str, Any]
    examples: Mapping[str, tuple[Mapping[str, Outcome], ...]]


def read(folder: Path, found: Mapping[str, Any]) -> Benched:
    """The benchmark in a folder whose `results.json` holds `found`; `UsageError` in one line for a damaged one."""
    if not _whole(found):
        raise UsageError(f"{folder} was written by another version of erasekit: run the attack again")
    latent = any(row["key"][0] == "L" for row in found["rows"])
    sources = {one.case: one for one in _part(place_of(folder, BEGIN))} if latent else {}
    return Benched(folder, found, {row["row"]: _examples(folder, row, sources) for row in found["rows"]})


def warned(found: Mapping[str, Any]) -> list[str]:
    """One line for each thing that a reader of a row's rate must know."""
    return [f"{row['row']}: {said}" for row in found["rows"] for said in proves_nothing(row)]


def proves_nothing(row: Mapping[str, Any]) -> list[str]:
    """The row's warnings, each with what follows from it."""
    return [f"{said}, its rate proves nothing" for said in row["warnings"]]


def never_knew(found: Mapping[str, Any]) -> bool:
    """Whether some row stands beside a model that never knew the target."""
    return any(NEVER in row["controls"] for row in found["rows"])


def never_named(folder: Path) -> dict[str, Any]:
    """`never_knew` of the folder's results as it is there: the model without the target by its name; empty without one."""
    try:
        return {"never_knew": json.loads((folder / "results.json").read_text(encoding="utf-8"))["never_knew"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def lines(found: Mapping[str, Any], arm: str) -> list[dict[str, Any]]:
    """What an evaluation's results say of the benchmark: a line for each row, its controls and gaps in it."""
    return [_line(found, arm, row) for row in found["rows"]]


def _line(found: Mapping[str, Any], arm: str, row: Mapping[str, Any]) -> dict[str, Any]:
    crr = row["crr"]
    apart = f" ({crr['invalid']} of them invalid)" if crr["invalid"] else ""
    spent = f"{crr['of'] + crr['invalid']} pictures{apart}, {row['spent']['passes']} passes of the denoiser in all"
    line = {"name": f"{found['benchmark']}: {row['row']}", "arm": arm, "target": found["target"], "budget": spent,
            **_estimate(crr), "controls": [_control(name, one) for name, one in row["controls"].items()]}  # fmt: skip
    return line | ({"note": "; ".join(said)} if (said := proves_nothing(row)) else {})


def _control(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    gap: Mapping[str, Any] = one["gap"] or {}
    ends = {"gap": gap.get("value"), "gap_low": gap.get("low"), "gap_high": gap.get("high")}
    return {"name": name, **_estimate(one), **ends}


def _estimate(share: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": share["rate"], "low": share["low"], "high": share["high"], "n": share["of"]}


def _whole(found: Mapping[str, Any]) -> bool:
    """Whether all is there that a page needs."""
    return (found["benchmark"] == VERSION and found.keys() >= NEEDS and bool(found["rows"])
            and all(row.keys() >= NEEDED for row in found["rows"]))  # fmt: skip


def _examples(
    folder: Path, row: Mapping[str, Any], sources: Mapping[Any, Outcome]
) -> tuple[Mapping[str, Outcome], ...]:
    """The chosen cases of a row; every side is held against what the results say of it."""
    sides: dict[str, list[Outcome]] = {}
    for side, share in {EDITED: row["crr"], **row["controls"]}.items():
        place = lies(folder, row["row"], side)
        sides[side] = _part(place)
        seen = counted(sides[side])
        if any(seen[key] != share[key] for key in COUNTS):
            raise UsageError(f"{place} holds another run than {folder / 'results.json'}: run the same attack again")
    return tuple({**_source(sources, sides[EDITED][i]), **{side: found[i] for side, found in sides.items()}}
                 for i in chosen(sides[EDITED]))  # fmt: skip


def _source(sources: Mapping[Any, Outcome], one: Outcome) -> dict[str, Outcome]:
    """The picture that was inverted for an outcome: that of its prompt and seed; none of a row without inversion."""
    return {INVERTED: sources[one.case]} if one.case in sources else {}


def chosen(outcomes: Sequence[Outcome]) -> list[int]:
    """Which are shown: the first ones with the target and the first ones without it, as many of both where there are; in
    order. So a rate of few per cent shows what the judge saw, and a high one what it missed."""
    found = [i for i, one in enumerate(outcomes) if one.shown]
    rest = [i for i, one in enumerate(outcomes) if not one.shown]
    with_it = max(MOST // 2, MOST - len(rest))
    taken = found[:with_it]
    return sorted(taken + rest[: MOST - len(taken)])


def _part(place: Path) -> list[Outcome]:
    try:
        return kept(place)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{place} is damaged or gone: delete it and run the same attack again") from error
