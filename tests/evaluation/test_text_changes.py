"""Residual and drift without images, in a run: on the suite's own sentences, once for each edit, in results and tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import edits
import fakes
import pytest

from erasekit import models
from erasekit.backbones import backbone
from erasekit.coded_ops import Guidance
from erasekit.edit import Base, Edit
from erasekit.evaluation import arms, distances, text_changes
from erasekit.evaluation.arms import Arm
from erasekit.evaluation.metrics import textside
from erasekit.evaluation.plan import Plan, files
from erasekit.evaluation.rates import Side
from erasekit.evaluation.suites import Prompt, Target
from erasekit.evaluation.verdicts import Reading

PAIRS = [("a cat", "a dog"), ("a photo of a cat", "a photo of a dog")]
KEPT = ["a dog", "a fox", "the fox in a style"]


@pytest.fixture(scope="module")
def built(sd1_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Arm]:
    """The unedited model, an edit of weights and one of code."""
    place, pipe = tmp_path_factory.mktemp("edits"), models.load(sd1_folder)
    edits.edit(pipe).save(place / "mine.safetensors")
    code = Guidance("negative", {}, {"strength": 0.5})
    Edit((code,), Base("tiny", "sd1"), "irece", targets=("cat",), anchors=("dog",)).save(place / "code.safetensors")
    plan = Plan(("tiny",), model=str(sd1_folder), control="none",
                edits=files([place / "mine.safetensors", place / "code.safetensors"]))  # fmt: skip
    sha256 = arms.model_sha256(sd1_folder)
    return arms.build(plan, fakes.suite(), arms.load_edits(plan, place, sha256), sha256)


def side(arm: Arm) -> Side:
    return Side(arm.arm, [], {}, Reading("rule", {}, "object"))


def test_the_numbers_are_the_metrics_own_and_stand_in_results(
    built: list[Arm], sd1_folder: Path, tmp_path: Path
) -> None:
    base, mine, _ = built
    found = text_changes.measure(tmp_path, fakes.suite(), built)
    own = textside.measure(backbone(str(sd1_folder)), Edit.load(mine.brush.edit.path), pairs=PAIRS, kept=KEPT)
    entry = found["edit:mine"]
    assert [entry[key] for key in ("residual", "unedited", "drift")] == pytest.approx(
        [own.residual, own.unedited, own.drift], rel=1e-5
    )
    assert found.keys() == {"edit:mine", "edit:code"} and (entry["pairs"], entry["kept"]) == (2, 3)
    first, second = distances.measured(side(mine), {"text": found})
    assert (first["metric"], first["value"], first["n"], first["direction"]) == (
        "text_residual",
        entry["residual"],
        2,
        "down",
    )
    assert (second["metric"], second["value"], second["n"], second["low"]) == ("text_drift", entry["drift"], 3, None)
    assert "without the edit" in first["note"]
    assert not list(distances.measured(side(base), {"text": found}))


def test_what_is_no_change_of_weights_has_none_and_says_so(built: list[Arm], tmp_path: Path) -> None:
    found = text_changes.measure(tmp_path, fakes.suite(), built)
    assert not list(distances.measured(side(built[2]), {"text": found}))
    (line,) = distances.omitted([], {}, {"text": found})
    assert (
        line.startswith(f"text_residual and text_drift of {built[2].label} are not stated: ") and "judge images" in line
    )


def test_what_is_known_is_not_measured_again(built: list[Arm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = text_changes.measure(tmp_path, fakes.suite(), built)

    def broken(*given, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(textside, "measure_each", broken)
    assert text_changes.measure(tmp_path, fakes.suite(), built[:2]) == {"edit:mine": first["edit:mine"]}
    other = replace(built[1], prompts=built[1].prompts[:1])
    with pytest.raises(ZeroDivisionError):
        text_changes.measure(tmp_path, fakes.suite(), [other])


def test_edits_that_are_asked_the_same_are_walked_together(built: list[Arm], tmp_path: Path, monkeypatch) -> None:
    """Each is kept, and one that cannot be walked stands in nobody's way."""
    walked, said, real = [], [], textside.measure_each
    monkeypatch.setattr(textside, "measure_each", lambda *a, **b: walked.append(len(a[1])) or real(*a, **b))
    other = replace(built[1], arm="edit:other")
    found = text_changes.measure(tmp_path, fakes.suite(), [*built, other], progress=lambda *now: said.append(now))
    assert walked == [2] and said == [(3, 3, "edits in sentences")] and "why" in found["edit:code"]
    assert found["edit:mine"] == found["edit:other"] and len(list((tmp_path / "measured").iterdir())) == 1
    text_changes.measure(tmp_path, fakes.suite(), [*built[:2], other], progress=lambda *now: said.append(now))
    assert len(walked) == len(said) == 1


def test_sentences_that_name_the_target_and_those_that_ask_for_something_else(built: list[Arm]) -> None:
    prompts = (
        Prompt("a", "plain", "A Cat, and a cat's  tail", "cat", ("cat",), seeds=(0,)),
        Prompt("b", "plain", "a caterpillar", "cat", ("cat",), seeds=(0,)),
        Prompt("c", "implicit", "it purrs", "cat", ("cat",), seeds=(0,)),
        Prompt("d", "anchor", "a dog", "cat", ("dog",), seeds=(0,)),
        Prompt("e", "unrelated", "a fox", "", ("fox",), seeds=(0, 1)),
    )
    arm = replace(built[1], prompts=prompts)
    assert text_changes.pairs(fakes.suite(), arm) == [("A Cat, and a cat's  tail", "A dog, and a dog's tail")]
    assert text_changes.kept(arm) == ["a dog", "a fox"]
    empty = replace(arm, edit=arm.edit | {"anchors": [""]})
    assert text_changes.pairs(fakes.suite(), empty)[0][1] == "A , and a 's tail"


def test_a_longer_name_is_not_taken_apart(built: list[Arm]) -> None:
    suite = fakes.suite(concepts=(Target("van Gogh", "van Gogh", synonyms=("Vincent van Gogh",)), Target("dog", "dog")))
    edit = (built[1].edit or {}) | {"targets": ["van Gogh", "dog"], "anchors": ["an artist", "cat"]}
    prompts = (
        Prompt("a", "plain", "a lake by van Gogh", "van Gogh"),
        Prompt("b", "synonym", "a lake by Vincent van  Gogh", "van Gogh"),
        Prompt("c", "complex", "a Dog and a hot dog", "dog", ("dog", "hot dog")),
    )
    arm = replace(built[1], edit=edit, prompts=prompts)
    assert text_changes.pairs(suite, arm) == [("a lake by van Gogh", "a lake by an artist"),
                                              ("a Dog and a hot dog", "a cat and a hot dog")]  # fmt: skip
    named = replace(arm, edit=edit | {"targets": ["Vincent van Gogh", "dog"]})
    assert text_changes.pairs(suite, named)[1] == ("a lake by Vincent van  Gogh", "a lake by an artist")


def test_another_version_of_the_measure_measures_again(built: list[Arm], monkeypatch: pytest.MonkeyPatch) -> None:
    before = text_changes._work(built[1], fakes.suite()).of
    monkeypatch.setattr(text_changes, "VERSION", text_changes.VERSION + 1)
    assert text_changes._work(built[1], fakes.suite()).of != before


def test_long_lists_are_thinned_and_long_prompts_left_out(built: list[Arm], tmp_path: Path) -> None:
    assert text_changes._spread(range(1000))[:3] == [0, 15, 31] and len(text_changes._spread(range(1000))) == 64
    long = Prompt("x", "unrelated", "fox " * 100, "", ("fox",), seeds=(0,))
    arm = replace(built[1], prompts=(*built[1].prompts, long))
    assert text_changes.measure(tmp_path, fakes.suite(), [arm])["edit:mine"]["kept"] == 3
    nothing = replace(arm, prompts=(long,))
    assert text_changes.measure(tmp_path, fakes.suite(), [nothing])["edit:mine"]["why"] == "no prompt names the target"
