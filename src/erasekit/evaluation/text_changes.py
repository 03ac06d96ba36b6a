"""What a run says of its edits without images: residual and drift on the suite's own sentences, once for each edit.

The sentences that name a target are set beside the same with the anchor; the kept ones are those that ask for something
else. Only the text encoder and what reads it are walked. What is found is kept in `measures.json`, under the hash of all
that decides it, and is not computed again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from erasekit.errors import EraseKitError
from erasekit.evaluation import drawing, head, measures
from erasekit.evaluation.shards import digest

if TYPE_CHECKING:
    from erasekit.backbones.base import Backbone
    from erasekit.evaluation.arms import Arm
    from erasekit.evaluation.suites import Suite

Item = TypeVar("Item")

MOST = 64  # pairs, and kept prompts: chosen evenly over a suite of more
SIGNIFICANT = 6  # digits: sums of floats differ in the last ones from machine to machine


def measure(folder: Path, suite: Suite, arms: Sequence[Arm]) -> dict[str, Any]:
    """What `measures.json` holds under "text": edit's arm -> `residual`, `unedited`, `drift` and the numbers of prompts,
    or `why` there are none (an edit that is no change of weights, a suite that names no target)."""
    known, found = _known(folder), {}
    with drawing.one_thread("cpu"):
        for arm in arms:
            if arm.kind == "edit":
                found[arm.arm] = _entry(arm, suite, known.get(arm.arm, {})) | {"label": arm.label}
    return found


def pairs(suite: Suite, arm: Arm) -> list[tuple[str, str]]:
    """Each of the arm's prompts that names its target, beside the same with the anchor in its place; each text once."""
    from erasekit.evaluation.suites import GROUPS

    edit = arm.edit or {}
    swaps = {head.suite_name(suite, target): (target, anchor)
             for target, anchor in zip(edit["targets"], edit["anchors"], strict=False)}  # fmt: skip
    found: dict[str, str] = {}
    for prompt in arm.prompts:
        if GROUPS[prompt.group].asks and prompt.target in swaps:
            word, anchor = swaps[prompt.target]
            swapped = _swapped(prompt.text, (prompt.target, word), anchor)
            if swapped is not None:
                found.setdefault(prompt.text, swapped)
    return list(found.items())


def kept(arm: Arm) -> list[str]:
    """The arm's prompts that ask for something else than a target, each text once."""
    from erasekit.evaluation.suites import GROUPS

    return list(dict.fromkeys(prompt.text for prompt in arm.prompts if not GROUPS[prompt.group].asks))


def _entry(arm: Arm, suite: Suite, known: Mapping[str, Any]) -> dict[str, Any]:
    assert arm.brush.edit is not None
    asked, others = _spread(pairs(suite, arm)), _spread(kept(arm))
    of = digest([arm.model_sha256, arm.brush.edit.sha256, asked, others])
    if known.get("of") == of and "why" not in known:
        return dict(known)
    if not asked:
        return {"of": of, "why": "no prompt names the target"}
    return {"of": of, **_walked(arm, asked, others)}


def _walked(arm: Arm, asked: Sequence[tuple[str, str]], others: Sequence[str]) -> dict[str, Any]:
    from erasekit import io
    from erasekit.backbones import backbone
    from erasekit.evaluation.metrics import textside

    assert arm.brush.edit is not None
    edit = io.parse(arm.brush.edit.read(), arm.brush.edit.path)
    try:
        model = backbone(arm.brush.model)
        asked = [pair for pair in asked if _fits(model, pair)]
        others = [text for text in others if _fits(model, [text])]
        side = textside.measure(model, edit, pairs=asked, kept=others)
    except EraseKitError as error:  # it is no change of weights that read text, or the model is of another kind
        return {"why": str(error)}
    return {"residual": _rounded(side.residual), "unedited": _rounded(side.unedited), "drift": _rounded(side.drift),
            "pairs": len(asked), "kept": len(others), "skipped": len(side.skipped)}  # fmt: skip


def _swapped(text: str, words: Sequence[str], anchor: str) -> str | None:
    """The text with the anchor for the first of the words that it holds; None where it holds none."""
    for word in words:
        pattern = r"\s+".join(map(re.escape, word.split()))
        changed, count = re.subn(rf"(?<!\w){pattern}(?!\w)", lambda _: anchor, text, flags=re.IGNORECASE)
        if count:
            return " ".join(changed.split())
    return None


def _fits(model: Backbone, texts: Sequence[str]) -> bool:
    """Whether the model reads the texts whole."""
    try:
        model.tokenize(list(texts))
    except EraseKitError:
        return False
    return True


def _spread(items: Sequence[Item]) -> list[Item]:
    return [items[i * len(items) // MOST] for i in range(MOST)] if len(items) > MOST else list(items)


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT}g}")


def _known(folder: Path) -> Mapping[str, Any]:
    try:
        return measures.read(folder).get("text", {})
    except EraseKitError:  # damaged: all is measured again
        return {}
