"""What a run says of its edits without images: residual and drift on the suite's own sentences, once for each edit.

The sentences that name a target are set beside the same with the anchor; the kept ones are those that ask for something
else. Only the text encoder and what reads it are walked, without an edit once for all edits that are asked the same. What
is found stands in `measures.json`, and is kept in `measured/` under the hash of all that decides it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from erasekit.errors import EraseKitError
from erasekit.evaluation import drawing, head, measures
from erasekit.evaluation.cache import Store
from erasekit.evaluation.shards import digest
from erasekit.evaluation.suites.names import key

if TYPE_CHECKING:
    from erasekit.backbones.base import Backbone
    from erasekit.edit import Edit
    from erasekit.evaluation.arms import Arm
    from erasekit.evaluation.metrics.textside import Changes, TextSide
    from erasekit.evaluation.suites import Suite
    from erasekit.methods import Progress

Item = TypeVar("Item")

VERSION = 2  # raise it when the same edit and suite give other numbers than before
MOST = 64  # pairs, and kept prompts: chosen evenly over a suite of more
SIGNIFICANT = 6  # digits: sums of floats differ in the last ones from machine to machine
TOGETHER = 4  # edits whose changes are held at once


@dataclass(frozen=True)
class Work:
    """An edit, the sentences that it is measured on, and the digest of all that decides what is found."""

    arm: Arm
    asked: list[tuple[str, str]]
    others: list[str]
    of: str


def measure(folder: Path, suite: Suite, arms: Sequence[Arm], *, progress: Progress | None = None) -> dict[str, Any]:
    """What `measures.json` holds under "text": edit's arm -> `residual`, `unedited`, `drift` and the numbers of prompts,
    or `why` there are none (an edit that is no change of weights, a suite that names no target)."""
    from erasekit.backbones import backbone

    store, load = Store(folder), lru_cache(maxsize=1)(backbone)
    work = [_work(arm, suite) for arm in arms if arm.kind == "edit"]
    found = {one.arm.arm: store.kept(one.of) for one in work}
    todo = [one for one in work if found[one.arm.arm] is None]
    count = measures.Count(progress, len(todo), "edits in sentences")
    with drawing.one_thread("cpu"):
        for group in _together(todo):
            for one, entry in zip(group, _walked(group, load), strict=True):
                found[one.arm.arm] = entry
                if "why" not in entry:
                    store.keep(one.of, entry)
            count(len(group))
    return {one.arm.arm: {"of": one.of, **found[one.arm.arm], "label": one.arm.label} for one in work}


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
            own = {key(prompt.target), key(word)}
            known = {name for concept in suite.concepts if concept.name == prompt.target for name in concept.own}
            beside = set(map(key, prompt.wanted)) - own - known
            swapped = _swapped(prompt.text, own, anchor, other=known - own, beside=beside)
            if swapped is not None:
                found.setdefault(prompt.text, swapped)
    return list(found.items())


def kept(arm: Arm) -> list[str]:
    """The arm's prompts that ask for something else than a target, each text once."""
    from erasekit.evaluation.suites import GROUPS

    return list(dict.fromkeys(prompt.text for prompt in arm.prompts if not GROUPS[prompt.group].asks))


def _work(arm: Arm, suite: Suite) -> Work:
    assert arm.brush.edit is not None
    asked, others = _spread(pairs(suite, arm)), _spread(kept(arm))
    of = digest([VERSION, arm.model_sha256, arm.brush.edit.sha256, asked, others])
    return Work(arm, asked, others, of)


def _together(work: Sequence[Work]) -> Iterator[list[Work]]:
    """Those of the same sentences, a few at a time."""
    same: dict[str, list[Work]] = {}
    for one in work:
        same.setdefault(digest([one.asked, one.others]), []).append(one)
    for group in same.values():
        yield from (group[i : i + TOGETHER] for i in range(0, len(group), TOGETHER))


def _walked(group: Sequence[Work], load: Callable[[str], Backbone]) -> list[dict[str, Any]]:
    """The entry of each, which were all asked the same."""
    from erasekit.evaluation.metrics import textside

    asked, others = group[0].asked, group[0].others
    if not asked:
        return [{"why": "no prompt names the target"}] * len(group)
    edits = [_read(one.arm) for one in group]
    try:
        model = load(group[0].arm.brush.model)
        asked = [pair for pair in asked if _fits(model, pair)]
        others = [text for text in others if _fits(model, [text])]
        found = [_changes(model, edit) for edit in edits]
        walks = [one for one in found if not isinstance(one, str)]
        sides = iter(textside.measure_each(model, walks, pairs=asked, kept=others) if walks else ())
    except EraseKitError as error:  # the model is of another kind, or reads none of the sentences whole
        return [{"why": str(error)}] * len(group)
    return [{"why": one} if isinstance(one, str) else _entry(next(sides), len(asked), len(others)) for one in found]


def _read(arm: Arm) -> Edit:
    from erasekit import io

    assert arm.brush.edit is not None
    return io.parse(arm.brush.edit.read(), arm.brush.edit.path)


def _changes(model: Backbone, edit: Edit) -> Changes | str:
    """What the edit changes where text is read, or why that cannot be walked."""
    from erasekit.evaluation.metrics import textside

    try:
        return textside.changes(model, edit)
    except EraseKitError as error:  # it is no change of weights that read text
        return str(error)


def _entry(side: TextSide, pairs: int, kept: int) -> dict[str, Any]:
    return {"residual": _rounded(side.residual), "unedited": _rounded(side.unedited), "drift": _rounded(side.drift),
            "pairs": pairs, "kept": kept, "skipped": len(side.skipped)}  # fmt: skip


def _swapped(text: str, own: Set[str], anchor: str, *, other: Set[str], beside: Set[str]) -> str | None:
    """The text with the anchor for each of the target's names `own`, as `key` makes them.

    None where it holds none of them, or one of the target's `other` names, which would be left in it. The longest name
    counts: in "a dog and a hot dog" with "hot dog" among what is shown `beside`, only the dog is replaced.
    """
    names = sorted(own | other | beside, key=lambda name: (-len(name), name))
    pattern = "|".join(r"\s+".join(map(re.escape, name.split())) for name in names)
    found: set[str] = set()

    def swap(match: re.Match[str]) -> str:
        found.add(name := key(match[0]))
        return anchor if name in own else match[0]

    changed = re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", swap, text, flags=re.IGNORECASE)
    return " ".join(changed.split()) if found & own and not found & other else None


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
