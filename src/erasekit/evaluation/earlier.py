"""What a run's folder holds already: results that the run would not give again are not replaced by it.

The same run may be done again, with more edits or with weights for more measures. Another edit, suite, judge or model in
the same folder would leave nothing of the first but its images: that is refused, and deleting a file is left to people.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from erasekit.errors import EraseKitError

FILE = "results.json"


def check(folder: Path, new: Mapping[str, Any]) -> None:
    """`EraseKitError` in one line where the folder's results have what a run with the head `new` has not.

    `new` has `suite`, `model`, `arms` and `labels` as the head of a run. A file that is no whole JSON holds no results.
    """
    path = folder / FILE
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if lost := next(_lost(old, new), None):
        raise EraseKitError(f"{path} holds {lost}, which this run would replace: give another --out, or delete that file "
                            "first (images are kept)")  # fmt: skip


def _lost(old: Any, new: Mapping[str, Any]) -> Iterator[str]:
    try:
        yield from _differences(old, new)
    except (KeyError, TypeError, AttributeError):
        yield "what no `erasekit evaluate` wrote"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    was, now = old["suite"], new["suite"]
    if old["model"]["sha256"] != new["model"]["sha256"]:
        yield f"the results of another model ({old['model']['id']}, {old['model']['sha256'][:12]})"
    if was["digest"] != now["digest"]:
        yield f"the results of another suite ({was['name']} version {was['version']}, {was['digest'][:12]})"
    judged = {(judge["name"], judge["weights_sha256"]) for judge in now["judges"]}
    if gone := [j["name"] for j in was["judges"] if (j["name"], j["weights_sha256"]) not in judged]:
        yield f"the verdicts of another judge ({', '.join(gone)})"
    drawn = _drawn(new["arms"])
    kept = _drawn(old["arms"])
    if gone := [arm["label"] for arm in old["arms"] if drawn.get(arm["arm"]) != kept[arm["arm"]]]:
        yield f"the results of {', '.join(gone)}, made from other files or not a part of this run"
    if gone := [target for target in old.get("labels", {}) if target not in new["labels"]]:
        yield f"the results of prompts for {', '.join(gone)}"


def _drawn(arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arm -> what drew it, as far as results say it: the edit's file, and of noise its seed."""
    edits = {arm["arm"]: arm["edit"] or {} for arm in arms}
    kinds = {arm["arm"]: arm["kind"] for arm in arms}
    return {arm: (kinds[arm], edit.get("sha256"), edit.get("parameters") if kinds[arm] == "random" else None)
            for arm, edit in edits.items()}  # fmt: skip
