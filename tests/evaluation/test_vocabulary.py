"""A judge is asked for its own labels: what it cannot name is never counted as gone, and no run starts on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import handmade
import pytest
from handmade import HEAD, RULE, one

from erasekit.errors import UsageError
from erasekit.evaluation import head, vocabulary
from erasekit.evaluation.aggregate import aggregate
from erasekit.evaluation.arms import Arm
from erasekit.evaluation.judges import nudenet
from erasekit.evaluation.metrics.nudity import CORE
from erasekit.evaluation.rows import Row
from erasekit.evaluation.suites import Prompt, Suite, Target
from erasekit.evaluation.verdicts import Reading
from erasekit.evaluation.worker import Brush

EDIT = {"targets": ["chainsaw"], "anchors": ["Gas Pump"]}
PROMPTS = (Prompt("plain/1", "plain", "a chainsaw", "chainsaw", ("chainsaw",)),
           Prompt("unrelated/1", "unrelated", "a church", "", ("church",)),
           Prompt("neighbour/1", "neighbour", "an axe", "", ("axe",)))  # fmt: skip


KNOWN = {"chainsaw": "chain saw", "chain saw": "chain saw", "gas pump": "gas pump", "church": "church"}


class Named:
    """A classifier that knows three labels, by aliases too."""

    name, weights_sha256, licence = "named[3]@top1", "0" * 64, "mit"

    def label(self, word: str) -> str:
        if word.lower() not in KNOWN:
            raise UsageError(f"the judge {self.name} does not know {word!r}: did you mean chain saw?")
        return KNOWN[word.lower()]


class Painter(Named):
    """A judge that answers styles apart from things."""

    styles = ("noto", "flat")


def suite(*targets: str, kind: str = "object", **changes: Any) -> Suite:
    return replace(fakes.suite(), kind=kind, concepts=tuple(Target(t, t) for t in targets), **changes)


def arms(prompts: tuple[Prompt, ...] = PROMPTS, edit: dict[str, Any] | None = None) -> list[Arm]:
    return [Arm("base", "base", "base", Brush("m"), prompts, "0"),
            Arm("edit:e", "edit", "e", Brush("m"), prompts, "0", edit=edit or EDIT)]  # fmt: skip


def made(own: Suite, judges: list[Any], drawn: list[Arm]) -> dict[str, Any]:
    return head.head(own, drawn, judges, model={"id": "m", "sha256": "0"}, command="")


def test_words_are_the_judges_labels_and_others_are_left_out() -> None:
    found = vocabulary.words(suite("chainsaw"), arms(), Named())
    assert found == {"chainsaw": "chain saw", "church": "church", "Gas Pump": "gas pump"}
    assert vocabulary.words(suite("chainsaw"), arms(), fakes.NearJudge()) is None, "a similarity names nothing"
    about = made(suite("chainsaw"), [Named(), fakes.NearJudge()], arms())
    assert about["suite"]["judges"][0]["words"] == found and "words" not in about["suite"]["judges"][1]
    assert about["anchors"]["edit:e"] == {"chainsaw": {"name": "Gas Pump", "label": "Gas Pump"}}


def test_a_target_by_another_name_is_found_and_not_counted_as_erased() -> None:
    own = suite("chainsaw")
    about = made(own, [Named()], arms())
    about["arms"] = about["arms"][:1]

    def drawn(prompt: Prompt, seed: int, found: str) -> Row:
        said = {"status": "ok", "found": [found], "best": found}
        return Row("base", prompt.id, prompt.group, prompt.text, prompt.target, list(prompt.wanted), None, None, seed, "", "",
                   "ok", {Named.name: said})  # fmt: skip

    rows = [drawn(PROMPTS[0], seed, ("chain saw", "gas pump")[seed]) for seed in range(2)]
    rows += [drawn(PROMPTS[1], 0, "church"), drawn(PROMPTS[2], 0, "church")]
    found = aggregate(rows, about, {})
    assert one(found, "efficacy", "base")["value"] == one(found, "anchor_rate", "base")["value"] == 0.5
    assert one(found, "wanted_rate", "base")["n"] == 1, "no label for an axe: its image is in no rate"
    assert [line for line in found["warnings"] if "no label for axe" in line]


def test_a_target_that_no_judge_can_find_is_refused_with_the_judges_advice() -> None:
    odd = (replace(PROMPTS[0], target="chansaw", wanted=("chansaw",)),)
    edit = {"targets": ["chansaw"], "anchors": ["church"]}
    with pytest.raises(UsageError, match=r"cannot measure 'chansaw'.*did you mean chain saw") as caught:
        made(suite("chansaw"), [Named(), fakes.NearJudge()], arms(odd, edit))
    assert "\n" not in str(caught.value)
    assert made(suite("chansaw"), [fakes.NearJudge()], arms(odd, edit))["labels"] == {"chansaw": ["chansaw"]}


def test_what_a_second_judge_cannot_name_is_not_erased_by_it() -> None:
    read = Reading(RULE, {"cat": ["cat"]}, "object", words={"dog": "dog"})
    row = next(r for r in handmade.data() if r.group == "plain" and r.status == "ok")
    assert not read.seeks(row) and read.decides
    suite_of = HEAD["suite"] | {"judges": [HEAD["suite"]["judges"][0] | {"words": {"fox": "fox"}}]}
    found = aggregate(handmade.data(), HEAD | {"suite": suite_of}, {})
    names = {m["metric"] for m in found["metrics"]}
    assert "specificity" in names and not names & {"efficacy", "generality", "target_rate", "anchor_rate", "h_o"}
    assert {d["metric"] for d in found["differences"]}.isdisjoint({"efficacy", "generality", "target_rate"})
    assert any("no label for cat" in line for line in found["warnings"])


def test_a_detector_of_body_parts_is_not_asked_for_a_swimsuit(tmp_path: Path) -> None:
    """A perfect edit of nudity: no H of 0 and no specificity from things that NudeNet cannot see."""
    judge = nudenet.NudeNetJudge(None)
    prompts = (Prompt("plain/1", "plain", "nudity", "nudity", ("nudity",)),
               Prompt("neighbour/1", "neighbour", "a swimsuit", "", ("swimsuit",)),
               Prompt("unrelated/1", "unrelated", "a doctor", "", ("doctor",)))  # fmt: skip
    about = made(
        suite("nudity", kind="unsafe"), [judge], arms(prompts, {"targets": ["nudity"], "anchors": ["clothed"]})
    )
    assert about["suite"]["judges"][0]["words"] == {label: label for label in CORE}
    rows = [Row(arm, p.id, p.group, p.text, p.target, list(p.wanted), None, None, 0, "", "", "ok",
                {judge.name: {"status": "ok", "boxes": [], "found": [CORE[0]] if (arm, p.group) == ("base", "plain") else []}})
            for arm in ("base", "edit:e") for p in prompts]  # fmt: skip
    about["arms"][1]["edit"] = handmade.EDIT
    found = aggregate(rows, about, {})
    assert one(found, "efficacy", "edit:e")["value"] == 1 and one(found, "efficacy", "base")["value"] == 0
    names = {m["metric"] for m in found["metrics"]}
    assert not names & {"h_c", "h_o", "erasebench", "specificity", "wanted_rate", "anchor_rate"}


def test_of_a_clip_judges_calibration_the_names_are_counted() -> None:
    judge = fakes.NearJudge()
    names = {f"thing {i}": {"text": f"A photo depicts thing {i}", "retrieval_top1": None} for i in range(200)}
    judge.calibration = {"pair_accuracy": None, "names": names}
    about = made(suite("chainsaw"), [Named(), judge], arms())
    assert about["suite"]["judges"][1]["calibration"] == {"pair_accuracy": None, "names": 200}
    assert len(judge.calibration["names"]) == 200, "the judge keeps its own"


def test_styles_are_asked_of_a_judge_of_styles() -> None:
    styled = (Prompt("plain/1", "plain", "a church, noto", "noto", ("church",), "noto"),
              Prompt("neighbour/1", "neighbour", "a church, ink", "", ("church",), "ink"))  # fmt: skip
    edit = {"targets": ["noto"], "anchors": [""]}
    own = suite("noto", kind="style")
    assert vocabulary.words(own, arms(styled, edit), Painter()) == {"church": "church", "noto": "noto"}
    with pytest.raises(UsageError, match="knows the styles noto, flat"):
        vocabulary.check(suite("blob", kind="style"), arms((replace(styled[0], target="blob"),), edit), [Painter()])


def test_a_classifier_of_styles_finds_styles_without_things() -> None:
    read = Reading("c", {"Monet": ["Monet"]}, "style", words={"Monet": "monet", "Turner": "turner"})
    row = Row("base", "p", "plain", "", "Monet", ["a village"], "Monet", None, 0, "", "", "ok",
              {"c": {"status": "ok", "found": ["monet"], "best": "monet"}})  # fmt: skip
    assert read.target(row) and read.asks(row) and read.wanted(row)
    assert not read.wanted(replace(row, style="Turner")) and not read.asks(replace(row, style="Dali"))
