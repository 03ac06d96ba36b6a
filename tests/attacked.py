"""A folder as `erasekit attack` leaves it, made without a model: two rungs that count, one that could not be run, one apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from erasekit.attacks import Case, Outcome, Spent, report
from erasekit.attacks.ladder import Climbed, Ladder, Rung, keep, place_of
from erasekit.cli.attack import results

CASES = [Case("a photo of cat", seed) for seed in range(4)]
RUNGS = (Rung("plain prompts", "prompts"), Rung("p4d", "p4d"), Rung("steering", "steering", counts=False),
         Rung("relearning", "relearn", counts=False))  # fmt: skip
ENDS = ("ffff", "sfsf", "", "ssss")
SKIPPED = "the unedited model does not draw <enough>"
ABOUT: dict[str, Any] = {
    "model": "emoji", "model_sha256": "3c" * 32, "edit": "erasepro", "edit_sha256": "ed" * 32, "target": "cat",
    "kind": "object", "judge": "rule-v1", "judge_sha256": "", "labels": [], "sampling": {"steps": 20, "guidance": 4.0},
}  # fmt: skip


def outcome(case: Case, end: str) -> Outcome:
    image = Image.new("RGB", (64, 64), (40 * case.seed, 0, 0))
    status = {"s": "success", "f": "failure"}[end]
    return Outcome(
        case, status, 0.5, image, by="odd words", curve=((0.0, 0.1), (15.0 + case.seed, 0.5)), spent=Spent(9, 50)
    )


def folder(place: Path, **about: Any) -> Path:
    """The finished folder; `about` overrides what was attacked."""
    done = [Climbed(rung, tuple(map(outcome, CASES, ends)), "" if ends else SKIPPED)
            for rung, ends in zip(RUNGS, ENDS, strict=True)]  # fmt: skip
    for number, one in enumerate(done, 1):
        if not one.skipped:
            keep(place_of(place, number, one.rung), one.outcomes)
    found = json.loads(json.dumps(results(Ladder("test@1", RUNGS), CASES, done, {**ABOUT, **about})))
    (place / "results.json").write_text(json.dumps(found))
    report.write_report(found, done, place)
    return place
