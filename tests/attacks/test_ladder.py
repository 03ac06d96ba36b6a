"""A ladder: cheaper attacks first, the worst case over all, what is kept and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from erasekit import attacks, errors
from erasekit.attacks import Case, Outcome, Spent, report
from erasekit.attacks.ladder import Ladder, Rung, climb, keep, kept, worst
from erasekit.attacks.standard import LADDERS
from erasekit.cli.attack import PROMPTS, cases, results, summary
from erasekit.errors import EditError, TrainingError, UsageError

CASES = cases("cat", PROMPTS, 6)
SD1, DIES, SD3 = (SimpleNamespace(family=name) for name in ("sd1", "sd1", "sd3"))  # models under attack
ASKED: list[tuple[str, list[int]]] = []


@dataclass(frozen=True)
class Seeds:
    brings: str = ""
    invalid: str = ""
    fails: str = ""


class Fake:
    """Brings out the cases whose seeds are named."""

    name, title, paper, access, families, Config = "fake", "Fake", "", ("prompts",), ("sd1",), Seeds

    def run(self, victim, cases, config, *, seed=0, progress=None):
        ASKED.append((config.brings, [case.seed for case in cases]))
        if victim is DIES:
            raise KeyboardInterrupt
        if config.fails == "memory":
            raise torch.cuda.OutOfMemoryError("tried to allocate")
        if config.fails:
            raise getattr(errors, config.fails)("give pictures")
        return [self.one(case, config) for case in cases]

    @staticmethod
    def one(case: Case, config: Seeds) -> Outcome:
        ends = {True: "success", False: "failure"}[str(case.seed) in config.brings]
        ends = "invalid" if str(case.seed) in config.invalid else ends
        return Outcome(case, ends, 0.5, Image.new("RGB", (8, 8), (case.seed, 0, 0)), spent=Spent(steps=2), curve=((1, 0.5),))


PLAIN, SEARCH = Rung("plain", "fake", {"brings": "1"}), Rung("search", "fake", {"brings": "13", "invalid": "5"})
LADDER = Ladder("test@1", (PLAIN, Rung("new weights", "fake", {"brings": "0123"}, counts=False), SEARCH))


@pytest.fixture(autouse=True)
def fakes(monkeypatch) -> None:
    monkeypatch.setitem(attacks.ATTACKS, "fake", f"{__name__}:Fake")
    ASKED.clear()


def test_each_rung_is_tried_on_what_is_left_and_the_worst_case_counts(tmp_path) -> None:
    done = climb(SD1, CASES, LADDER, tmp_path, about={"edit": "a"})
    assert ASKED == [("1", [0, 1, 2, 3, 4, 5]), ("0123", [0, 1, 2, 3, 4, 5]), ("13", [0, 2, 3, 4, 5])]
    assert [(one.share.hits, one.share.trials) for one in done] == [(1, 6), (4, 6), (1, 4)]
    assert (worst(CASES, done).hits, worst(CASES, done).trials) == (2, 6)  # case 5 was judged once
    found = results(LADDER, CASES, done, {"target": "cat"})
    assert found["worst"]["hits"] == 2 and found["rungs"][1]["counts"] is False and found["rungs"][0]["spent"]["steps"] == 12
    said = summary(json.loads(json.dumps(found)))
    assert "worst case over all: 2 of 6, 33%" in said and "; 0 more are invalid" in said and "(apart)" in said
    assert [rung["invalid"] for rung in found["rungs"]] == [0, 0, 1] and found["worst"]["invalid"] == 0
    assert len(list(tmp_path.glob("03-search/*.png"))) == 5


def test_cases_that_no_rung_could_judge_are_counted_and_said(tmp_path) -> None:
    ladder = Ladder("test@1", (Rung("plain", "fake", {"invalid": "02345"}), Rung("apart", "fake", counts=False)))
    done = climb(SD1, CASES, ladder, tmp_path, about={})
    about = {"target": "cat", "edit": "uce", "model": "tiny", "judge": "flag"}
    found = json.loads(json.dumps(results(ladder, CASES, done, about)))
    assert (found["worst"]["hits"], found["worst"]["of"], found["worst"]["invalid"]) == (0, 1, 5)
    assert [(rung["of"], rung["invalid"]) for rung in found["rungs"]] == [(1, 5), (6, 0)]
    said, page = summary(found), report.html(found, done)
    assert "worst case over all: 0 of 1" in said and "; 5 more are invalid: nothing could be judged" in said
    assert "Beside these, 5 are invalid: nothing could be judged." in page and "6<small>5 invalid</small>" in page


def test_a_run_goes_on_where_it_was_stopped(tmp_path) -> None:
    whole = climb(SD1, CASES, LADDER, tmp_path / "a", about={})
    first = Ladder("test@1", LADDER.rungs)
    with pytest.raises(KeyboardInterrupt):
        climb(DIES, CASES, first, tmp_path / "b", about={})
    assert not list((tmp_path / "b").rglob("*.json"))  # what failed may be asked again, otherwise
    climb(SD1, CASES, first, tmp_path / "b", about={})
    ASKED.clear()
    again = climb(DIES, CASES, first, tmp_path / "b", about={})  # nothing is left to do
    assert not ASKED
    for one, other in zip(whole, again, strict=True):
        assert [(o.case, o.status, o.curve, o.spent) for o in one.outcomes] == [
            (o.case, o.status, o.curve, o.spent) for o in other.outcomes]  # fmt: skip


@pytest.mark.parametrize("kind", ["UsageError", "ModelError", "TrainingError"])
def test_a_rung_that_cannot_be_run_is_skipped_said_and_tried_again(kind: str, tmp_path) -> None:
    ladder = Ladder("test@1", (PLAIN, Rung("no pictures", "fake", {"fails": kind}), SEARCH))
    done = climb(SD1, CASES, ladder, tmp_path, about={})
    assert [(one.rung.label, one.skipped, len(one.outcomes)) for one in done] == [
        ("plain", "", 6), ("no pictures", "give pictures", 0), ("search", "", 5)]  # fmt: skip
    assert (worst(CASES, done).hits, worst(CASES, done).trials) == (2, 6)
    found = results(ladder, CASES, done, {"target": "cat", "edit": "uce", "model": "tiny", "judge": "flag"})
    line = "skipped: no pictures could not be run and counts nowhere: give pictures"
    said, page = summary(json.loads(json.dumps(found))), report.html(found, done)
    assert said.splitlines().count(line) == 1 and "worst case over all: 2 of 6" in said
    assert line in page and "Rungs that were not run" in page and "<td>skipped</td>" in page
    assert "skipped" not in report.html(results(LADDER, CASES, [done[0]], found), [done[0]])
    assert not list(tmp_path.glob("02*"))
    ASKED.clear()
    climb(SD1, CASES, ladder, tmp_path, about={})
    assert ASKED == [("", [0, 2, 3, 4, 5])]  # the one that was skipped, and no other


def test_a_ladder_of_which_nothing_can_be_run_raises_the_reason(tmp_path, monkeypatch) -> None:
    alone = Ladder("test@1", (Rung("a", "fake", {"fails": "TrainingError"}), Rung("b", "fake", {"fails": "UsageError"})))
    with pytest.raises(TrainingError, match="give pictures"):
        climb(SD1, CASES, alone, tmp_path, about={})
    assert not list(tmp_path.rglob("*.json"))
    assert all(one.skipped for one in climb(SD1, CASES, alone, tmp_path, about={}, tolerant=True))
    full = Rung("full", "fake", {"fails": "memory"})
    done = climb(SD1, CASES, Ladder("test@1", (PLAIN, full)), tmp_path / "a", about={})
    assert "memory is full: have fewer pictures at once (--batch N, by default 16)" in done[1].skipped
    with pytest.raises(TrainingError, match="memory is full"):  # an attack by itself
        climb(SD1, CASES, Ladder("full", (full,)), tmp_path / "d", about={})
    with pytest.raises(EditError):  # the model is not what it should be: nothing after it would mean anything
        climb(SD1, CASES, Ladder("test@1", (PLAIN, Rung("a", "fake", {"fails": "EditError"}))), tmp_path / "b", about={})
    monkeypatch.setitem(attacks.ATTACKS, "prompts", f"{__name__}:Fake")
    with pytest.raises(UsageError, match="give pictures"):  # what every attack begins with
        climb(SD1, CASES, Ladder("test@1", (PLAIN, Rung("a", "prompts", {"fails": "UsageError"}))), tmp_path / "c", about={})


def test_a_family_that_an_attack_does_not_know_is_one_line(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"^fake needs a model of family sd1, not sd3: ") as error:
        climb(SD3, CASES, Ladder("alone", (PLAIN,)), tmp_path, about={})
    assert "\n" not in str(error.value) and not ASKED and not list(tmp_path.iterdir())


def test_the_state_of_another_run_is_refused(tmp_path) -> None:
    climb(SD1, CASES, LADDER, tmp_path, about={"edit": "a"})
    for changed in ({"about": {"edit": "b"}}, {"seed": 1}, {"ladder": Ladder("test@2", LADDER.rungs)}, {"cases": CASES[:3]}):
        given = {"cases": CASES, "ladder": LADDER, "about": {"edit": "a"}, "seed": 0} | changed
        with pytest.raises(UsageError, match=f"another run \\(other {next(iter(changed)).replace('about', 'edit')}\\)"):
            climb(SD1, given["cases"], given["ladder"], tmp_path, about=given["about"], seed=given["seed"])
    with pytest.raises(UsageError, match=r"another run \(other edit, kind of target\)"):
        climb(SD1, CASES, LADDER, tmp_path, about={"edit": "b", "kind": "style"})
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        climb(SD1, CASES, LADDER, tmp_path, about={"edit": "a"})


def test_outcomes_are_kept_with_their_pictures(tmp_path) -> None:
    given = [Fake.one(CASES[0], Seeds()), Outcome(CASES[1], "invalid", note="black")]
    keep(tmp_path / "x", given)
    back = kept(tmp_path / "x")
    for one, other in zip(given, back, strict=True):
        assert (one.case, one.status, one.score, one.note, one.curve) == (other.case, other.status, other.score, other.note,
                                                                          other.curve)  # fmt: skip
    assert back[0].image.tobytes() == given[0].image.tobytes() and back[1].image is None


def test_ladders_name_attacks_that_exist_with_settings_that_fit() -> None:
    from erasekit.methods import make_config

    for ladder in LADDERS.values():
        assert len({rung.label for rung in ladder.rungs}) == len(ladder.rungs) and "@" in ladder.name
        for rung in ladder.rungs:
            make_config(attacks.get(rung.attack), rung.settings)


def test_cases_take_prompts_in_turn() -> None:
    assert cases("cat", ["a {}", "{} here"], 3) == [Case("a cat", 0), Case("cat here", 1), Case("a cat", 2)]
    with pytest.raises(UsageError, match="--cases"):
        cases("cat", PROMPTS, 0)
