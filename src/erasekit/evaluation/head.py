"""The head of a run (`run.json`): all that the aggregates need besides the rows; and the texts' vectors (`texts.json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError
from erasekit.evaluation.arms import Arm
from erasekit.evaluation.metrics import clip
from erasekit.evaluation.suites.names import tidy
from erasekit.evaluation.vocabulary import check, labels, targets, words

if TYPE_CHECKING:
    from erasekit.evaluation.judges import Judge
    from erasekit.evaluation.suites import Suite


def head(suite: Suite, arms: Sequence[Arm], judges: Sequence[Judge], *, model: Mapping[str, str], command: str,
         warnings: Sequence[str] = (), published: Mapping[str, Any] | None = None,
         extractors: Sequence[Mapping[str, str]] = (), attacks: Sequence[Mapping[str, Any]] = (),
         plan_sha256: str = "", real: Mapping[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    """What `run.json` holds, as plain data; the same for the same run. `UsageError` for a target that no judge can find."""
    from erasekit import __version__
    from erasekit.edit import library_versions

    check(suite, arms, judges)
    known = [words(suite, arms, judge) for judge in judges]
    prompts = [prompt for arm in arms for prompt in arm.prompts]
    return {
        "created_by": {"erasekit": __version__, "command": command, "versions": library_versions(),
                       **({"plan_sha256": plan_sha256} if plan_sha256 else {})},
        "suite": {
            "name": suite.name, "version": suite.version, "digest": suite.digest, "title": suite.title,
            "kind": suite.kind, "sampling": asdict(suite.sampling), "judges": list(map(_judge, judges, known)),
        },
        "model": dict(model),
        "arms": facts(arms),
        "labels": {target: labels(suite, target) for target in dict.fromkeys(p.target for p in prompts if p.target)},
        "anchors": {arm.arm: anchors(suite, arm.edit, known) for arm in arms if arm.edit is not None},
        "twins": {prompt.id: prompt.twin for prompt in prompts if prompt.twin}, "classes": classes(suite, arms),
        "rivals": {arm.arm: list(classes(suite, [arm])) for arm in arms if suite.classes},
        "warnings": [*suite.notes, *warnings], "published": dict(published or {}),
        "extractors": [dict(one) for one in extractors],
        **({"attacks": [dict(one) for one in attacks]} if attacks else {}), **({"real": dict(real)} if real else {}),
    }  # fmt: skip


def facts(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """What the results say of each arm before anything is drawn."""
    return [{"arm": arm.arm, "kind": arm.kind, "label": arm.label, "edit": arm.edit} for arm in arms]


def anchors(suite: Suite, edit: Mapping[str, Any],
            known: Sequence[Mapping[str, str] | None] = ()) -> dict[str, dict[str, str | None]]:  # fmt: skip
    """The suite's name of each target -> its anchor, and the word that is looked for (None where neither the suite nor a
    judge knows it). `known`: what each judge calls the suite's words."""
    found = {}
    for target, anchor in zip(edit["targets"], edit["anchors"], strict=False):
        if anchor.strip():
            found[suite_name(suite, target)] = {"name": anchor, "label": _anchor(suite, anchor, known)}
    return found


def classes(suite: Suite, arms: Sequence[Arm]) -> dict[str, str]:
    """The names that compete in the CLIP judges' accuracy on these arms, each with its text: the suite's targets (the arms'
    own where it takes any) and what their other prompts ask for; none without the suite's `classes`."""
    if not suite.classes:
        return {}
    own = [concept.label for concept in suite.concepts] or [suite.label(target) for target in targets(arms)]
    kept = [word for arm in arms for prompt in arm.prompts for word in prompt.wanted]
    return {name: suite.classes.format(name) for name in dict.fromkeys(own + kept)}


def suite_name(suite: Suite, target: str) -> str:
    """What the suite calls a target (an edit may name it by a synonym); the target itself where the suite has no list."""
    label = suite.label(target)
    return next((concept.name for concept in suite.concepts if concept.label == label), " ".join(target.split()))


def _anchor(suite: Suite, anchor: str, known: Sequence[Mapping[str, str] | None]) -> str | None:
    try:
        return suite.label(anchor)
    except UsageError:  # an anchor may be any words: then a judge may still have a label for them
        return tidy(anchor) if any(tidy(anchor) in found for found in known if found is not None) else None


def _judge(judge: Judge, known: Mapping[str, str] | None) -> dict[str, Any]:
    from erasekit.evaluation.judges import calibration

    measured = calibration(judge)
    if known is not None and isinstance(measured.get("labels"), Mapping):
        # of a thousand labels only those that are looked for
        measured["labels"] = {n: rates for n, rates in measured["labels"].items() if n in known.values()}
    if isinstance(measured.get("names"), Mapping):
        # the rates hold among so many; those of each name are in the judge's own file
        measured["names"] = len(measured["names"])
    return {"name": judge.name, "weights_sha256": judge.weights_sha256, "licence": judge.licence,
            "calibration": measured, **({} if known is None else {"words": dict(known)})}  # fmt: skip


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
    return list(dict.fromkeys([*clip.texts_with_prefix(captions), *names, *known["classes"].values()]))
