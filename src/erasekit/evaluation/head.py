"""The head of a run (`run.json`): all that the aggregates need besides the rows; and the texts' vectors (`texts.json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError
from erasekit.evaluation.arms import Arm
from erasekit.evaluation.metrics import clip
from erasekit.evaluation.metrics.nudity import CORE

if TYPE_CHECKING:
    from erasekit.evaluation.judges import Judge
    from erasekit.evaluation.suites import Suite

NUDITY = ("nudity", "nude", "naked person")  # names of a target that a detector knows by the core four labels


def head(suite: Suite, arms: Sequence[Arm], judges: Sequence[Judge], *, model: Mapping[str, str], command: str,
         warnings: Sequence[str] = (), published: Mapping[str, Any] | None = None,
         extractors: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:  # fmt: skip
    """What `run.json` holds, as plain data; the same for the same run."""
    from erasekit import __version__
    from erasekit.edit import library_versions

    prompts = [prompt for arm in arms for prompt in arm.prompts]
    return {
        "created_by": {"erasekit": __version__, "command": command, "versions": library_versions()},
        "suite": {
            "name": suite.name, "version": suite.version, "digest": suite.digest, "title": suite.title,
            "kind": suite.kind, "sampling": asdict(suite.sampling), "judges": list(map(_judge, judges)),
        },
        "model": dict(model),
        "arms": [{"arm": arm.arm, "kind": arm.kind, "label": arm.label, "edit": arm.edit} for arm in arms],
        "labels": {target: labels(suite, target) for target in dict.fromkeys(p.target for p in prompts if p.target)},
        "anchors": {arm.arm: anchors(suite, arm.edit) for arm in arms if arm.edit is not None},
        "twins": {prompt.id: prompt.twin for prompt in prompts if prompt.twin},
        "warnings": [*suite.notes, *warnings], "published": dict(published or {}),
        "extractors": [dict(one) for one in extractors],
    }  # fmt: skip


def labels(suite: Suite, target: str) -> list[str]:
    """The judges' labels that count as a target."""
    label = suite.label(target)
    return [label, *CORE] if label.lower() in NUDITY else [label]


def anchors(suite: Suite, edit: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """The suite's name of each target -> its anchor, and what a judge calls that anchor (None where none does)."""
    found = {}
    for target, anchor in zip(edit["targets"], edit["anchors"], strict=False):
        if anchor.strip():
            found[suite_name(suite, target)] = {"name": anchor, "label": _label(suite, anchor)}
    return found


def suite_name(suite: Suite, target: str) -> str:
    """What the suite calls a target (an edit may name it by a synonym); the target itself where the suite has no list."""
    label = suite.label(target)
    return next((concept.name for concept in suite.concepts if concept.label == label), " ".join(target.split()))


def _label(suite: Suite, anchor: str) -> str | None:
    try:
        return suite.label(anchor)
    except UsageError:  # an anchor may be any words: then no judge can find it
        return None


def _judge(judge: Judge) -> dict[str, Any]:
    from erasekit.evaluation.judges import calibration

    return {"name": judge.name, "weights_sha256": judge.weights_sha256, "licence": judge.licence,
            "calibration": calibration(judge)}  # fmt: skip


def texts(suite: Suite, arms: Sequence[Arm], judges: Sequence[Judge],
          known: Mapping[str, Any]) -> dict[str, dict[str, str]]:  # fmt: skip
    """Every CLIP judge -> every text that the aggregates compare images with -> its vector, base64 of float16."""
    from erasekit.evaluation.judges import TextJudge, text_embeddings
    from erasekit.evaluation.judges.base import packed

    wanted = _wanted(suite, arms, known)
    found = {}
    for judge in judges:
        if isinstance(judge, TextJudge):
            vectors = text_embeddings(judge, wanted)
            found[judge.name] = {text: packed(v)["embedding"] for text, v in zip(wanted, vectors, strict=True)}
    return found


def _wanted(suite: Suite, arms: Sequence[Arm], known: Mapping[str, Any]) -> list[str]:
    captions = [prompt.text for arm in arms for prompt in arm.prompts] + list(known["twins"].values())
    pairs = [(target, anchor["name"]) for found in known["anchors"].values() for target, anchor in found.items()]
    names = [text for target, anchor in pairs
             for text in clip.accuracy_texts(target, anchor, style=suite.kind == "style")]  # fmt: skip
    return list(dict.fromkeys([*clip.texts_with_prefix(captions), *names]))
