"""What each judge calls the suite's words, asked of the judge itself before anything is drawn.

A suite's words are not a judge's labels: "chainsaw" is "chain saw" to it, and a detector of body parts knows no swimsuit. A
word that is compared with the labels as it stands is never found, and what is never found reads as erased.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError
from erasekit.evaluation.metrics.nudity import CORE
from erasekit.evaluation.suites.groups import GROUPS
from erasekit.evaluation.suites.names import tidy

if TYPE_CHECKING:
    from erasekit.evaluation.arms import Arm
    from erasekit.evaluation.judges import Judge
    from erasekit.evaluation.suites import Suite

NUDITY = ("nudity", "nude", "naked person")  # names of a target that a detector knows by the core four labels


def labels(suite: Suite, target: str) -> list[str]:
    """The words that count as a target."""
    label = suite.label(target)
    return [label, *CORE] if label.lower() in NUDITY else [label]


def words(suite: Suite, arms: Sequence[Arm], judge: Judge) -> dict[str, str] | None:
    """Each word that the suite's prompts, targets and anchors look for -> the judge's own label, aliases and case settled;
    without the words that it has no label for. None for a judge that names nothing (CLIP), or states no labels."""
    if not hasattr(judge, "label"):
        return None
    named, styles = _asked(suite, arms)
    found = {word: _label(judge, word) for word in named} | {word: _style(judge, word) for word in styles}
    return {word: label for word, label in found.items() if label is not None}


def check(suite: Suite, arms: Sequence[Arm], judges: Sequence[Judge]) -> None:
    """Raises `UsageError`, with the judge's own advice, for a target that none of the judges can find in an image."""
    known = [(judge, found) for judge in judges if (found := words(suite, arms, judge)) is not None]
    for target in targets(arms) if known else ():
        own = labels(suite, target)
        if not any(word in found for _, found in known for word in own):
            raise UsageError(f"the suite {suite.name} cannot measure {target!r}, which would count as erased "
                             f"everywhere: {_advice(suite, known[0][0], own[0])}")  # fmt: skip


def targets(arms: Sequence[Arm]) -> list[str]:
    """The targets that the arms are asked for, in order."""
    prompts = (prompt for arm in arms for prompt in arm.prompts)
    return list(dict.fromkeys(prompt.target for prompt in prompts if prompt.target and GROUPS[prompt.group].asks))


def _asked(suite: Suite, arms: Sequence[Arm]) -> tuple[list[str], list[str]]:
    """The words for things and the words for styles; in a suite of styles, targets and anchors are styles."""
    prompts = [prompt for arm in arms for prompt in arm.prompts]
    own = [word for target in targets(arms) for word in labels(suite, target)]
    own += [_word(suite, anchor) for arm in arms for anchor in (arm.edit or {}).get("anchors", ()) if anchor.strip()]
    things = [word for prompt in prompts for word in prompt.wanted]
    styled = suite.kind == "style"
    looks = [prompt.style for prompt in prompts if prompt.style is not None] if styled else []
    return list(dict.fromkeys(things + ([] if styled else own))), list(dict.fromkeys(looks + (own if styled else [])))


def _word(suite: Suite, anchor: str) -> str:
    """What the suite calls an anchor; the anchor's own words where it is none of the suite's concepts."""
    try:
        return suite.label(anchor)
    except UsageError:
        return tidy(anchor)


def _label(judge: Any, word: str) -> str | None:
    try:
        return str(judge.label(word))
    except UsageError:
        return None


def _style(judge: Any, word: str) -> str | None:
    """A style's label: of a judge that answers styles apart from things one of these, of a classifier of styles its label."""
    own = getattr(judge, "styles", None)
    return _label(judge, word) if own is None else word if word in own else None


def _advice(suite: Suite, judge: Any, word: str) -> str:
    if suite.kind == "style" and hasattr(judge, "styles"):
        return f"the judge {judge.name} knows the styles {', '.join(judge.styles)}: use one of them"
    try:
        judge.label(word)
    except UsageError as error:
        return str(error)
    return f"the judge {judge.name} has no label for it: give the target's `label` in the suite"
