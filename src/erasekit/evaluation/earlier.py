"""What a run's folder holds already: results that the run would not give again are not replaced by it.

The same run may be done again, with more edits or with weights for more measures. Another edit, suite, judge or model in
the same folder would leave nothing of the first but its images, and without an option what the option gave would go: that
is refused, and deleting a file is left to people.
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

    `new` has `suite`, `model`, `arms`, `labels` and, where there are any, `extractors`, `attacks` and `real` as the head of a
    run. A file that is no whole JSON holds no results.
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
    drawn = {arm["arm"]: arm for arm in new["arms"]}
    if gone := [arm["label"] for arm in old["arms"] if not _same(arm, drawn.get(arm["arm"]))]:
        yield f"the results of {', '.join(gone)}, made from other files or not a part of this run"
    if gone := [target for target in old.get("labels", {}) if target not in new["labels"]]:
        yield f"the results of prompts for {', '.join(gone)}"
    yield from _left_out(old, new)


def _left_out(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What an option gave that this run lacks. (Neither can be carried over: the run's command would not give it again.)"""
    if gone := _missing(old, new, "extractors", ("name", "weights_sha256"), "name"):
        yield f"distances by {gone} (give its weights again to keep them)"
    if (was := old.get("real")) and was["sha256"] != (new.get("real") or {}).get("sha256"):
        yield (f"distances to the real images {was['name']}, {was['sha256'][:12]} (give --real with the same images again to "
               "keep them)")  # fmt: skip
    if gone := _missing(old, new, "attacks", ("arm", "target", "name"), "name"):
        yield f"the attacks {gone} (name their folders with --attacks again to keep them)"


def _missing(old: Mapping[str, Any], new: Mapping[str, Any], part: str, keys: Sequence[str], name: str) -> str:
    there = [[one[key] for key in keys] for one in new.get(part, ())]
    return ", ".join(one[name] for one in old.get(part, ()) if [one[key] for key in keys] not in there)


def _same(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> bool:
    """Whether one thing drew both, as far as results say it: the edit's file, and of noise its seed. An edit that is still
    to be fitted has no hash; then the file's name decides, which holds the digest of all that the edit is fitted from."""
    if new is None or new["kind"] != old["kind"]:
        return False
    was, now = old["edit"] or {}, new["edit"] or {}
    by = "file" if now.get("sha256") == "" else "sha256"
    return was.get(by) == now.get(by) and (old["kind"] != "random" or was.get("parameters") == now.get("parameters"))
