"""What `erasekit attack` left in a folder, read again: a ladder or a benchmark, to be shown beside an evaluation of the same
model and edit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasekit.attacks import folder_bench, report, report_bench
from erasekit.attacks.folder_bench import Benched
from erasekit.attacks.ladder import Climbed, Rung, kept, place_of
from erasekit.errors import UsageError
from erasekit.evaluation.page_view import Tried

NEEDS = {"model", "model_sha256", "edit", "edit_sha256", "target", "kind", "judge", "sampling", "cases", "worst"}
NEEDED = {
    "label",
    "attack",
    "access",
    "counts",
    "tried",
    "invalid",
    "hits",
    "of",
    "rate",
    "low",
    "high",
    "fell",
    "spent",
    "skipped",
}
BESIDE = ("never_knew", "checks")
"""What a run adds to a finished ladder when it is asked to; a run that is not asked leaves it as it is."""


@dataclass(frozen=True, eq=False)
class Attacked:
    """A ladder that was run to its end: what its `results.json` holds, and the rungs with their pictures."""

    folder: Path
    found: Mapping[str, Any]
    done: tuple[Climbed, ...]


def read(folder: Path) -> Attacked | Benched:
    """The ladder or benchmark in a folder; `UsageError` in one line for a folder without one, or with a damaged one."""
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no finished attack: name a folder of `erasekit attack --out`, or run the same "
                         "attack again, which goes on where it stopped") from error  # fmt: skip
    except (OSError, ValueError) as error:
        file = folder / "results.json"
        raise UsageError(f"{file} is damaged: run the same attack again, finished rungs are kept") from error
    if isinstance(found, dict) and "benchmark" in found:
        return folder_bench.read(folder, found)
    if not isinstance(found, dict) or not isinstance(found.get("rungs"), list) or "ladder" not in found:
        raise UsageError(f"{folder} holds no attacks: name a folder of `erasekit attack --out` (evaluations have results of "
                         "another kind)")  # fmt: skip
    if (
        not found.keys() >= NEEDS
        or not all(one.keys() >= NEEDED for one in found["rungs"])
        or "invalid" not in found["worst"]
    ):
        raise UsageError(f"{folder} was written by another version of erasekit: run the attack again")
    return Attacked(folder, found, tuple(_climbed(folder, i, one) for i, one in enumerate(found["rungs"], 1)))


def kept_beside(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the `results.json` in a folder has of `BESIDE`, where all else in it is what `found` says (but the model's name,
    which decides nothing); empty where there is nothing, or only what belongs to other results."""

    def rest(results: Mapping[str, Any]) -> str:
        return json.dumps({key: results[key] for key in results.keys() - {"model", *BESIDE}}, sort_keys=True)

    try:
        before = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = isinstance(before, dict) and rest(before) == rest(found)
    return {key: before[key] for key in BESIDE if same and key in before}


def tried(attacked: Attacked | Benched, model: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> Tried:
    """The ladder or benchmark as a part of an evaluation's page, and its lines of the results.

    `model` and `arms` as in the results. Raises `UsageError` for an attack on another model, or on an edit that is none
    of theirs.
    """
    arm = _arm(attacked, model, arms)
    title = f"{arm['label']}: {attacked.found['target']}"
    found, name = attacked.found, str(arm["arm"])
    if isinstance(attacked, Benched):
        beside = folder_bench.never_knew(found)
        return Tried(tuple(folder_bench.lines(found, name)), report_bench.part(attacked, title), beside)
    return Tried(tuple(lines(found, name)), report.part(found, attacked.done, title), "never_knew" in found)


def lines(found: Mapping[str, Any], arm: str) -> list[dict[str, Any]]:
    """What the results say of the ladder: a line for each rung that was run and, of several, one for the worst case."""
    ran = [one for one in found["rungs"] if not one["skipped"]]
    spent = [
        f"{one['tried']} cases tried{_apart(one)}, {one['spent']['passes']} passes of the denoiser in all"
        for one in ran
    ]
    made = [_line(one["label"], arm, found["target"], said, one) for one, said in zip(ran, spent, strict=True)]
    if len(found["rungs"]) > 1:
        name = f"{found['ladder']['name']}: worst case"
        budget = f"{found['cases']} cases{_apart(found['worst'])}, all rungs that count"
        made.append(_line(name, arm, found["target"], budget, found["worst"]))
    return made


def _apart(share: Mapping[str, Any]) -> str:
    return f" ({share['invalid']} of them invalid)" if share["invalid"] else ""


def _line(name: str, arm: str, target: str, budget: str, share: Mapping[str, Any]) -> dict[str, Any]:
    value, low, high = (share[key] if share["of"] else None for key in ("rate", "low", "high"))
    return {"name": name, "arm": arm, "target": target, "budget": budget, "value": value, "low": low, "high": high,
            "n": share["of"]}  # fmt: skip


def _arm(
    attacked: Attacked | Benched, model: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    found, folder = attacked.found, attacked.folder
    if found["model_sha256"] != model["sha256"]:
        raise UsageError(f"{folder} attacks another model ({found['model']}) than the one that is measured ({model['id']}): "
                         "name an attack on the same weights")  # fmt: skip
    if found["edit_sha256"] is None:
        own = [arm for arm in arms if arm["kind"] == "base"]
    else:
        own = [arm for arm in arms if arm["kind"] == "edit" and arm["edit"]["sha256"] == found["edit_sha256"]]
    if not own:
        measured = ", ".join(str(arm["label"]) for arm in arms if arm["kind"] == "edit") or "none"
        edit = found["edit"] or "none"
        raise UsageError(f"{folder} attacks another edit ({edit}) than those that are measured ({measured}): name an attack on "
                         "the same file")  # fmt: skip
    return own[0]


def _climbed(folder: Path, number: int, one: Mapping[str, Any]) -> Climbed:
    """A rung with its outcomes; its settings are not in the results and stay empty."""
    rung = Rung(one["label"], one["attack"], counts=one["counts"])
    if one["skipped"]:
        return Climbed(rung, (), one["skipped"])
    place = place_of(folder, number, rung)
    try:
        outcomes = tuple(kept(place))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{place} is damaged or gone: delete it and run the same attack again") from error
    if len(outcomes) != one["tried"]:
        raise UsageError(f"{place} holds another run than {folder / 'results.json'}: run the same attack again")
    return Climbed(rung, outcomes)
