"""Edits that a plan asks for: what would refuse the run does so before any is fitted, and they are fitted where it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import attacked
import edits
import fakes
import pytest

from erasekit import api, models
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import arms, drawing, fits, judges, ladders, results, runner, suites
from erasekit.evaluation.plan import Entry, Plan

CAT = Entry("uce-cat", method="uce", targets=("cat",), anchor=("dog",))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "load_suite", lambda name, *, prompts=None: fakes.suite(name))
    monkeypatch.setattr(judges, "get", fakes.get)
    monkeypatch.setattr(drawing, "draw", fakes.draw)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that were fitted."""
    seen, real = [], api.erase

    def erase(*given: Any, **options: Any) -> Any:
        seen.append(options["method"])
        return real(*given, **options)

    monkeypatch.setattr(api, "erase", erase)
    return seen


@pytest.fixture
def plan(sd1_folder: Path) -> Plan:
    return Plan(("tiny",), model=str(sd1_folder), edits=(CAT,), batch=8, control="none")


def with_second(**changes: Any) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, edits=(CAT, replace(CAT, name="second", **changes)))


@pytest.mark.parametrize(("change", "line"), [
    (with_second(method="nothing"), "unknown method 'nothing'"),
    (with_second(method="uce:nothing"), "has no preset 'nothing'"),
    (with_second(parameters={"lambda": 1}), "uce has no parameter lambda"),
    (with_second(anchor=("cat",)), "'cat' is its own anchor"),
    (lambda plan: replace(plan, never=(f"cat={plan.model}",) * 2), "never knew cat twice"),
    (lambda plan: replace(plan, never=(f"dog={plan.model}",)), "no edit here erases 'dog'"),
])  # fmt: skip
def test_a_mistake_in_the_plan_is_said_before_anything_is_fitted(
    plan: Plan, tmp_path: Path, fitted: list[str], change: Callable[[Plan], Plan], line: str
) -> None:
    with pytest.raises(UsageError, match=line):
        runner.evaluate(change(plan), tmp_path / "out")
    assert not fitted


def test_a_target_that_no_judge_knows_is_refused_before_it_is_fitted(
    plan: Plan, tmp_path: Path, fitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def label(self: Any, word: str) -> str:
        raise UsageError(f"the judge {self.name} does not know {word!r}: use one of its labels")

    monkeypatch.setattr(fakes.RuleJudge, "label", label, raising=False)
    with pytest.raises(UsageError, match="cannot measure 'cat'"):
        runner.evaluate(plan, tmp_path / "out")
    assert not fitted


@pytest.mark.parametrize(("about", "line"), [({}, "attacks another model"), ({"edit": "erasepro"}, "attacks another edit")])
def test_an_attack_on_something_else_is_refused_before_it_is_fitted(
    plan: Plan, sd1_folder: Path, tmp_path: Path, fitted: list[str], about: dict[str, str], line: str
) -> None:
    own = about and about | {"model_sha256": arms.model_sha256(sd1_folder)}
    ladder = attacked.folder(tmp_path / "attacked", **own)
    with pytest.raises(UsageError, match=line):
        runner.evaluate(plan, tmp_path / "out", attacks=[ladder])
    assert not fitted


def test_an_attack_may_be_on_an_edit_that_waits_to_be_fitted(tmp_path: Path) -> None:
    tried = ladders.read([attacked.folder(tmp_path / "attacked", edit="uce", model_sha256="m", edit_sha256="e" * 64)])
    arm = {"arm": "edit:uce-cat", "kind": "edit", "label": "uce cat", "edit": {"method": "uce", "sha256": ""}}
    base = {"arm": "base", "kind": "base", "label": "base", "edit": None}
    (found,) = tried({"id": "m", "sha256": "m"}, [base, arm])
    assert {line["arm"] for line in found.lines} == {"edit:uce-cat"} and arm["edit"] == {"method": "uce", "sha256": ""}
    for sha256, fine in (("e" * 64, True), ("0" * 64, False)):
        done = arm | {"edit": {"method": "uce", "sha256": sha256}}
        if fine:
            assert tried({"id": "m", "sha256": "m"}, [base, done])
        else:
            with pytest.raises(UsageError, match="another edit"):
                tried({"id": "m", "sha256": "m"}, [base, done])


def test_results_of_an_earlier_fit_are_refused_before_the_next_and_what_is_lost_is_fitted_again(
    plan: Plan, tmp_path: Path, fitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out", []
    runner.evaluate(plan, out, progress=lambda done, total, what: said.append(what))
    assert fitted == ["uce"] and any(what.startswith("fitting: uce-cat, solving") for what in said)
    before = (out / "results.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(fits, "versions", lambda: {"torch": "99"})
        with pytest.raises(EraseKitError, match=r"holds the results of .*made from other files"):
            runner.evaluate(plan, out)
    assert fitted == ["uce"]
    results.load(out)
    (file,) = (out / "edits").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-20])
    runner.evaluate(plan, out)
    assert fitted == ["uce"] * 2 and (out / "results.json").read_bytes() == before


def test_edits_are_fitted_on_the_plans_device(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(models, "load", lambda name, **options: asked.append((name, options)) or "pipe")
    assert fits.source("emoji", "cpu") == "emoji"
    assert fits.source("emoji", "meta") == "emoji" and not asked, "what is not on this machine is a Ray cluster's"
    monkeypatch.setattr(fits, "_at_hand", lambda device: True)
    assert fits.source("emoji", "cuda") == "pipe" and asked == [("emoji", {"device": "cuda"})]
    used: list[Any] = []
    edits.example().save(tmp_path / "mine.safetensors")
    monkeypatch.setattr(fits, "fit", lambda entry, model, *given, **_: used.append(model) or tmp_path / "mine.safetensors")
    arms.load_edits(replace(plan, device="cuda"), tmp_path, "0")
    assert used == ["pipe"]


def test_an_edit_on_top_of_another_is_foreseen_with_the_targets_of_both(sd1: Any, tmp_path: Path) -> None:
    below = edits.edit(sd1)
    below.save(tmp_path / "below.safetensors")
    entry = Entry("both", method="irece", targets=("fox",), parameters={"on": str(tmp_path / "below.safetensors")})
    found = fits.foreseen(entry)
    assert (found["targets"], len(found["anchors"])) == ([*below.targets, "fox"], len(below.targets) + 1)
    assert found["method"] == f"{below.method}+irece"
