"""Checks on an evaluation: broken attacks, blind gradients, twins the wrong way round, random defences; and the page."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

import edits
import pytest
import torch
from PIL import Image
from test_announced import irece
from test_standard import HOW, Flag
from test_weights import receler, spm

from erasekit import attacks
from erasekit.attacks import Case, Outcome, Spent, _weak, checks, checks_weak, report
from erasekit.attacks._check import FEW, Subject, judged
from erasekit.attacks._inversion_learn import Learner
from erasekit.attacks._renamed import Renamed, nameless
from erasekit.attacks._rounds import Search
from erasekit.attacks._twins import paired, twins
from erasekit.attacks.checks import BLIND, gradients, randomness, unedited
from erasekit.attacks.checks_weak import weak
from erasekit.attacks.ladder import Climbed, Ladder, Rung
from erasekit.attacks.sight import Sight
from erasekit.attacks.standard import STANDARD
from erasekit.attacks.victim import Victim
from erasekit.cli.attack import results, summary
from erasekit.edit import Guidance
from erasekit.errors import UsageError
from erasekit.evaluation.judges import Judgement

CASES = [Case("a cat", 0), Case("the cat", 1), Case("a fox", 2)]


def ended(attack: str, ends: str, *, label: str = "", note: str = "", seeds=None, settings=None, counts=True) -> Climbed:
    """A rung whose outcomes are s(uccess), f(ailure), k(ept: skipped) or i(nvalid)."""
    names = {"s": "success", "f": "failure", "k": "skipped", "i": "invalid"}
    found = [Outcome(Case("a cat", i if seeds is None else seeds[i]), names[end], 0.5, Image.new("RGB", (200, 100)), note=note,
                     by="<b>", curve=((1.0, 0.1), (float(7 + i), 0.5)), spent=Spent(passes=10)) for i, end in enumerate(ends)]
    return Climbed(Rung(label or attack, attack, settings or {}, counts), tuple(found))


# -- from what is there ---------------------------------------------------------------------------------------------


def test_a_blind_search_is_named() -> None:
    found = gradients([ended("p4d", "sff", note=f"{BLIND} the tokens: the search was blind"), ended("mma", "ff")])
    assert [(one.rung, one.status) for one in found] == [("p4d", "warned")] and "in 3 cases" in found[0].says


def test_attacks_say_that_they_are_blind(sd1) -> None:
    variable = torch.zeros(2, requires_grad=True)
    search = Search(case=CASES[0], frame=None, clean=variable, variable=variable, optimiser=torch.optim.Adam([variable]),
                    chance=torch.Generator(), best=Outcome(CASES[0], "failure"))  # fmt: skip
    search.step(torch.zeros(2))
    assert BLIND in search.outcome().note
    search.step(torch.full((2,), float("nan")))
    assert BLIND in search.outcome().note
    search.step(torch.ones(2))
    assert BLIND not in search.outcome().note
    for slope, felt in ((0.0, False), (1.0, True)):
        flat = lambda rows, step, slope=slope: (1.0, torch.full((1, 2), slope))  # noqa: E731
        learner = Learner(torch.zeros(1, 2), flat, rate=0.1, decay=0)
        learner.until(2, lambda step, loss: None)
        assert learner.felt is felt
    from erasekit.attacks import _inversion

    assert BLIND in _inversion.BLIND


def test_a_twin_that_sees_less_and_does_better_is_warned_of() -> None:
    white, black = ended("concept-inversion", "sfff"), ended("textual-inversion", "ssff")
    assert [one.rung for one in twins([white, black], "x")] == ["concept-inversion"]
    assert twins([black, ended("concept-inversion", "ssff")], "x") == []  # equal
    left = ended("textual-inversion", "ssf", seeds=[1, 2, 3])  # a ladder: on what the white box left
    assert len(twins([white, left], "x")) == 1 and not twins([white, ended("textual-inversion", "sff", seeds=[1, 2, 3])], "x")
    seeds, search = {"seeds": 8}, {"timesteps": 7}
    few = ended("unlearndiffatk", "fff", settings=search)
    assert len(twins([ended("prompts", "sff", settings=seeds), few], "x")) == 1
    assert not twins([ended("prompts", "sffsf", settings=seeds), few], "x")  # other cases: nothing is known


def test_controls_have_no_more_pictures_than_what_they_control() -> None:
    rungs = {rung.label: rung for rung in STANDARD.rungs}
    for label in ("unlearndiffatk", "p4d"):
        assert paired(rungs[label], rungs["seed search"]) and not paired(rungs[label], rungs["plain prompts"])
        assert not paired(rungs[label], Rung("more", "prompts", {"seeds": 9}))
        assert not paired(rungs["seed search"], rungs[label])


def test_latents_inverted_by_the_original_are_the_twin_of_those_by_the_edited_model() -> None:
    white, black = ({"side": side, "steps": 20} for side in ("edited", "original"))
    known, less = (ended("latent-inversion", ends, label=label, settings=settings) for ends, label, settings in (
        ("sff", "white", white), ("ssf", "black", black)))  # fmt: skip
    (found,) = twins([known, less], "this run")
    assert found.rung == "white" and "black shows the target in 2 cases where white" in found.says
    assert not paired(less.rung, known.rung) and not paired(known.rung, known.rung)
    assert not paired(known.rung, Rung("other", "latent-inversion", black | {"steps": 10}))


def test_a_defence_that_answers_at_random_is_warned_of(sd1, monkeypatch) -> None:
    subject = Subject(sd1, edits.edit(sd1), Sight(Flag(), "cat"), HOW, {})
    assert randomness(subject, CASES).status == "ok"
    turns = iter(range(9))
    monkeypatch.setattr(Victim, "draw", lambda self, cases: [Image.new("RGB", (4, 4), (8 * next(turns), 0, 0)) for _ in cases])
    found = randomness(subject, CASES[:2])
    assert found.status == "warned" and "2 of 2" in found.says


# -- attacks on what must fall --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Brings:
    hits: int = 0
    fails: bool = False


class Fake:
    """Brings out its first cases, and remembers what it was given."""

    name, title, paper, access, families, Config = "ring-a-bell", "Fake", "", ("prompts",), ("sd1",), Brings
    given: tuple = ()

    def run(self, victim, cases, config, *, seed=0, progress=None):
        if config.fails:
            raise UsageError("give pictures")
        before = attacks.prompts.unattacked(victim, cases)
        Fake.given += ((victim, [case.prompt for case in cases]),)
        return [one if one.shown else Outcome(one.case, "success" if i < config.hits else "failure", 0.1, one.image)
                for i, one in enumerate(before)]  # fmt: skip


@pytest.fixture
def fake(monkeypatch) -> None:
    import erasekit.attacks.prompts  # noqa: F401 - the fake asks for it

    monkeypatch.setitem(attacks.ATTACKS, "ring-a-bell", f"{__name__}:Fake")
    monkeypatch.setattr(Fake, "given", ())
    monkeypatch.setattr(_weak, "LEFT", 1)  # of the few cases here


class Named(Flag):
    """Finds the target in what was drawn from a prompt that names it."""

    drawn: list[str] = []  # noqa: RUF012

    def judge(self, images, prompts):
        hits = ["cat" in prompt for prompt in self.drawn[-len(images) :]]
        return [Judgement("ok", {"scores": {"cat": float(hit)}, "found": ["cat"] * hit}) for hit in hits]


@pytest.fixture
def told(sd1, monkeypatch):
    """A pipeline whose judge knows what the pipeline was asked."""
    judge = Named()
    judge.drawn = []
    call = type(sd1).__call__

    def asked(self, prompt=None, **options):
        judge.drawn += prompt
        return call(self, prompt, **options)

    monkeypatch.setattr(type(sd1), "__call__", asked)
    return Subject(sd1, None, Sight(judge, "cat"), HOW, {"edit": None})


class Knows(Flag):
    """Finds the target in what the unedited model drew from some prompts, and while `on` everywhere."""

    shows: tuple[str, ...] = ("a cat", "the cat", "a fox")
    unedited = False

    def judge(self, images, prompts):
        hits = [self.on or (self.unedited and prompt in self.shows) for prompt in prompts]
        return [Judgement("ok", {"scores": {"cat": float(hit)}, "found": ["cat"] * hit}) for hit in hits]


@pytest.fixture
def knows(monkeypatch) -> Knows:
    """A judge that is told which side drew."""
    judge, draw = Knows(), Victim.draw

    def told(self, cases, **options):
        judge.unedited = self.edit is None or self._sides.away
        return draw(self, cases, **options)

    monkeypatch.setattr(Victim, "draw", told)
    return judge


MORE = {"name": "test@1", "seed": 0, "progress": None}


def test_the_nameless_start_is_as_if_an_edit_had_renamed_the_target(told, sd1, tmp_path) -> None:
    started, named = nameless([*CASES, Case("Cat and wildcat", 5)], told.sight)
    assert [case.prompt for case in started] == ["a something", "the something", "something and wildcat"]
    assert named["a something"] == "a cat" and [case.seed for case in started] == [0, 1, 5]
    with Renamed(sd1, told.sight, HOW, named) as victim:
        plain = victim.ids(["a something", "a cat", ""])
        with victim.original(), victim.original():
            inside = victim.ids(["a something", "a cat", ""])
        assert torch.equal(inside[0], plain[1]) and torch.equal(inside[1:], plain[1:])
        assert torch.equal(victim.ids(["a something"]), plain[:1])
        found = checks.fair(victim, started, tmp_path, "test@1", about={}, seed=0, progress=None)
        assert [case.seed for case in found] == [0, 1]  # "wildcat" is in the last without the name


@pytest.mark.parametrize(("hits", "status"), [(2, "ok"), (1, "ok"), (0, "broken")])
def test_an_attack_must_bring_it_out_of_the_unedited_model(fake, told, tmp_path, hits: int, status: str) -> None:
    rungs = [Rung("plain", "prompts"), Rung("words", "ring-a-bell", {"hits": hits})]
    (found,) = unedited(told, CASES, rungs, folder=tmp_path, **MORE)
    assert (found.rung, found.status, found.hits, found.of, found.attacked) == ("words", status, hits, 2, 2)
    assert Fake.given[0][1] == ["a something", "the something"]
    drawn = len(told.sight.judge.drawn)
    unedited(told, CASES, rungs, folder=tmp_path, **MORE)
    assert len(Fake.given) == 1 and len(told.sight.judge.drawn) == drawn  # kept, and so are the cases that start fairly
    assert unedited(told, CASES[2:], rungs, folder=tmp_path, **MORE)[0].status == "untested"
    assert unedited(told, CASES, rungs[:1], folder=tmp_path, **MORE) == []


@pytest.fixture
def fades(knows, monkeypatch) -> Knows:
    """The judge finds the target in the plain pictures of an edit that is as weak as `knows.below`."""
    knows.below, draw = 0.3, Victim.draw

    def told(self, cases, **options):
        knows.on = self.edit is not None and not self._sides.away and self.scale <= knows.below
        return draw(self, cases, **options)

    monkeypatch.setattr(Victim, "draw", told)
    return knows


def of(found, check: str) -> list:
    return [one for one in found if one.check == check]


def test_a_weak_edit_must_fall(fake, sd1, fades, tmp_path) -> None:
    subject = Subject(sd1, edits.edit(sd1), Sight(fades, "cat"), HOW, {})
    rungs = [Rung("plain", "prompts"), Rung("all", "ring-a-bell", {"hits": 3}), Rung("two", "ring-a-bell", {"hits": 2})]
    found = weak(subject, CASES, rungs, folder=tmp_path / "a", **MORE)
    first, second = of(found, "weak edit")
    assert (first.rung, first.status, second.status, second.hits, second.of) == ("all", "ok", "broken", 2, 3)
    assert second.says.endswith("shows) (21% to 94%), under 90%: its failures elsewhere prove nothing")
    assert len(Fake.given[1][1]) == 3, "not only what the first one left"
    used = Fake.given[0][0]
    assert used.edit is subject.edit and used.scale == 0.3 and not used.skip
    first, second = of(found, "hidden cases")
    assert (first.status, second.status, second.hits, second.of) == ("ok", "warned", 2, 3)
    assert second.says == ("two shows the target in 2 of 3 cases in what 0.35 times the edit hides (21% to 94%), under 90%: "
                           "its failures elsewhere say little")  # fmt: skip
    given = len(Fake.given)
    assert weak(subject, CASES, rungs, folder=tmp_path / "a", **MORE) == found and len(Fake.given) == given == 4  # kept
    coded = replace(subject.edit, ops=(Guidance("negative", {}, {}), *subject.edit.ops))
    for edit, says in ((None, "nothing can be weakened"), (coded, "not known to have a weaker form"),
                       (subject.edit + irece(sd1, variant="replace"), "variant=replace")):  # fmt: skip
        (found,) = weak(Subject(sd1, edit, subject.sight, HOW, {}), CASES, rungs, folder=tmp_path / "c", **MORE)
        assert found.status == "untested" and says in found.says
    (found,) = weak(subject, CASES, rungs[:1], folder=tmp_path / "d", **MORE)
    assert found.status == "untested" and "there is no attack" in found.says  # plain prompts are what they are held against


def test_an_attack_that_loses_what_a_plain_prompt_shows_is_broken(fake, sd1, fades, tmp_path) -> None:
    subject = Subject(sd1, edits.edit(sd1), Sight(fades, "cat"), HOW, {})
    with Victim(sd1, subject.edit, subject.sight, HOW, scale=0.3) as victim:
        assert {one.status for one in attacks.prompts.unattacked(victim, CASES)} == {"skipped"}
    with Victim(sd1, subject.edit, subject.sight, HOW, scale=0.3, skip=False) as victim:
        plain = attacks.prompts.unattacked(victim, CASES)
        assert {(one.status, one.image, one.score) for one in plain} == {("failure", None, None)}
        assert all(one.spent.pictures == 1 for one in plain)
    found = of(weak(subject, CASES, [Rung("none", "ring-a-bell", {"hits": 0})], folder=tmp_path, **MORE), "weak edit")
    assert [(one.status, one.hits, one.of) for one in found] == [("broken", 0, 3)]


def test_only_cases_that_the_unedited_model_shows_count_on_a_weak_edit(fake, sd1, fades, tmp_path) -> None:
    subject = Subject(sd1, edits.edit(sd1), Sight(fades, "cat"), HOW, {})
    rungs = [Rung("words", "ring-a-bell", {"hits": 2})]
    fades.shows = ("a cat", "the cat")
    found, hidden = weak(subject, CASES, rungs, folder=tmp_path / "a", **MORE)
    assert (found.status, found.hits, found.of) == ("ok", 2, 2) and Fake.given[0][1] == ["a cat", "the cat"]
    assert found.says == ("words shows the target in 2 of 2 cases on 0.3 times the edit (of 3, the 2 that the unedited model "
                          "shows)")  # fmt: skip
    assert hidden.of == 2
    fades.shows = ()
    (found,) = weak(subject, CASES, rungs, folder=tmp_path / "b", **MORE)
    assert found.status == "untested" and found.says == f"{FEW}: the unedited model itself shows the target in none of 3"
    assert len(Fake.given) == 2
    fades.shows = ("a cat", "the cat")
    (found,) = weak(subject, CASES, rungs, folder=tmp_path / "b", **MORE)
    assert found.status == "untested", "the plain pictures are kept with what was seen in them"
    lost = judged("weak edit", ended("p4d", "ii"), checks_weak.BAR, "here")
    assert lost.status == "untested" and lost.says == f"{FEW}: p4d has no valid one here"


@pytest.mark.parametrize(("below", "mild"), [(0.3, 0.3), (0.25, 0.2), (0.1, 0.1), (0.0, None)])
def test_the_weak_edit_is_one_that_hides_next_to_nothing(fake, sd1, fades, tmp_path, below: float, mild: float | None) -> None:
    fades.below, subject = below, Subject(sd1, edits.edit(sd1), Sight(fades, "cat"), HOW, {})
    found = of(weak(subject, CASES, [Rung("words", "ring-a-bell", {"hits": 3})], folder=tmp_path, **MORE), "weak edit")
    if mild is None:
        assert [one.status for one in found] == ["untested"] and "at every strength of 0.3, 0.2, 0.1 times" in found[0].says
        return
    assert [one.status for one in found] == ["ok"] and f"on {mild} times the edit" in found[0].says
    assert json.loads((tmp_path / f"weak-edit-{mild}/state.json").read_text())["check"] == f"weak edit on {mild} times the edit"


@pytest.mark.parametrize(("shows", "left", "at"), [(0.3, 2, 0.35), (0.5, 2, 0.55), (0.0, 4, 0.3), (1.0, 2, None)])
def test_what_is_hidden_is_that_of_the_weakest_edit_that_leaves_something_to_bring_back(
    fake, sd1, fades, tmp_path, monkeypatch, shows: float, left: int, at: float | None
) -> None:
    monkeypatch.setattr(_weak, "LEFT", left)
    fades.below, subject = shows, Subject(sd1, edits.edit(sd1), Sight(fades, "cat"), HOW, {})
    rungs = [Rung("words", "ring-a-bell", {"hits": 3})]
    found = of(weak(subject, CASES, rungs, folder=tmp_path, **MORE), "hidden cases")
    says = f"no strength of 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7 leaves {left} cases to bring back: the most are"
    if at is None:
        assert [one.says for one in found] == [f"{says} 0 of 3, at 0.3 times the edit"]
        return
    assert found[-1].status == "ok" and f"in what {at} times the edit hides" in found[-1].says
    assert Fake.given[-1][0].scale == at and (tmp_path / f"hidden-cases-{at}/state.json").exists()
    assert [one.says for one in found[:-1]] == ([f"{says} 3 of 3, at 0.3 times the edit"] if left > 3 else [])


def test_the_strengths_that_are_named_are_those_that_were_tried() -> None:
    says = "no strength of 0.2, 0.4 leaves 5 cases to bring back: the most are 1 of 9, at 0.2 times the edit"
    one = (Case("a cat", 0),)
    assert _weak.Strength(0.2, one, 9, (0.2, 0.4)).short == says and not _weak.Strength(0.2, 5 * one, 9, (0.2, 0.4)).short


@pytest.mark.parametrize("make", [edits.edit, spm, receler, irece])
def test_every_kind_of_edit_has_a_weak_form(make, sd1) -> None:
    edit, before, sight = make(sd1), edits.weights(sd1), Sight(Flag(), "cat")
    how = replace(HOW, steps=2)
    assert _weak.rigid(edit) == ""

    def seen(edit, scale: float = 1.0) -> list[bytes]:
        with Victim(sd1, edit, sight, how, scale=scale) as victim:
            return [image.tobytes() for image in victim.draw(CASES)]

    with edit.applied(sd1, scale=0.3):
        wanted = seen(None)
    assert seen(edit, 0.3) == wanted != seen(edit) and wanted != seen(None) != seen(edit)
    assert edits.same(before, edits.weights(sd1))


def test_of_a_weak_edit_a_share_is_subtracted(sd1) -> None:
    from erasekit.attacks.subtract import subtracted

    edit = edits.edit(sd1)
    with edit.applied(sd1, scale=0.15):
        wanted = edits.weights(sd1)
    with Victim(sd1, edit, Sight(Flag(), "cat"), HOW, scale=0.3) as victim, subtracted(victim, 0.5):
        found = edits.weights(sd1)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-7) for name in wanted)


def test_a_rung_that_cannot_be_run_is_untested(fake, told, sd1, fades, tmp_path) -> None:
    subject = Subject(sd1, edits.edit(sd1), Sight(fades, "cat"), HOW, {})
    rungs = [Rung("words", "ring-a-bell", {"fails": True})]
    found, hidden = weak(subject, CASES, rungs, folder=tmp_path, **MORE)
    assert found.status == "untested" and found.says == "words could not be run on 0.3 times the edit: give pictures"
    assert hidden.status == "untested" and hidden.says.endswith("in what 0.35 times the edit hides: give pictures")
    (found,) = unedited(told, CASES, rungs, folder=tmp_path, **MORE)
    assert found.status == "untested" and found.says.endswith("from prompts without the name: give pictures")


def test_all_checks_together_leave_the_model_and_print_a_line_each(fake, sd1, fades, tmp_path) -> None:
    before = edits.weights(sd1)
    subject = Subject(sd1, edits.edit(sd1), Sight(fades, "cat"), HOW, {})
    done = [ended("ring-a-bell", "ff", label="words", settings={"hits": 1}, note=BLIND)]
    found = checks.checked(subject, CASES, done, tmp_path, name="test@1")
    assert [(one.check, one.status) for one in found] == [
        ("gradients", "warned"), ("randomness", "ok"), ("unedited", "untested"), ("weak edit", "broken"),
        ("hidden cases", "warned")]  # fmt: skip
    assert edits.same(before, edits.weights(sd1))
    said = summary(page_of(done) | {"checks": [vars(one) for one in found]})
    assert "warned: words: no gradient" in said and "broken: words shows the target in 1 of 3" in said
    assert "warned: words shows the target in 1 of 3 cases in what 0.35 times the edit hides" in said
    assert "checks: 5, of which 3 warn and 1 could not be made" in said


# -- the page -------------------------------------------------------------------------------------------------------


def page_of(done) -> dict:
    ladder = Ladder("test@1", tuple(one.rung for one in done))
    cases = list(dict.fromkeys(outcome.case for one in done for outcome in one.outcomes))
    about = {"target": "cat", "edit": "uce", "model": "tiny", "judge": "flag"}
    return results(ladder, cases, done, about)


def test_the_page_has_the_ladder_the_pictures_and_the_checks(tmp_path) -> None:
    done = [ended("prompts", "f" * 12, label="plain"), ended("p4d", "s" * 10 + "ki", label="p4d <x>"),
            ended("subtract", "sf", counts=False)]  # fmt: skip
    found = page_of(done)
    assert [one["fell"] for one in found["rungs"]] == [None, 7.0, 7.0] and found["worst"]["hits"] == 11
    alarm = {"check": "weak edit", "rung": "p4d", "status": "broken", "says": "1 < 2"}
    path = report.write_report(found | {"checks": [alarm]}, done, tmp_path)
    page = path.read_text()
    assert page == report.html(found | {"checks": [alarm]}, done)
    assert len(re.findall("<img ", page)) == 8 + 1 and "10 brought out, 8 of them here" in page
    assert "http" not in page and "p4d &lt;x&gt;" in page and "<b>," not in page and "broken: 1 &lt; 2" in page
    assert "11/11" in page and "100 % (74–100)" in page and "7 steps" in page and "7 times the edit subtracted" in page
    assert "prompts, gradients, original" in page and page.count('<g class="random">') and page.count('<g class="edit0">')
    assert "None was run" in report.html(found, done) and "Do not trust" not in report.html(found, done)
    assert all(unit for unit in report.UNITS.values()) and set(report.UNITS) <= set(attacks.ATTACKS)


def test_what_was_shown_without_an_attack_did_not_fall_to_one() -> None:
    done = [ended("p4d", "kkif"), ended("mma", "fs", seeds=[2, 3]), ended("subtract", "kk", counts=False)]
    found = page_of(done)
    assert [one["unattacked"] for one in found["rungs"]] == [2, 0, 2] and found["rungs"][0]["hits"] == 2
    page = report.html(found, done)
    assert "In 2 of these no attack was needed. It fell first to mma, at 8 steps." in page and "fell first to p4d" not in page
    alone = report.html(page_of(done[:1]), done[:1])
    assert "In 2 of these no attack was needed." in alone and "fell first" not in alone
    older = found | {"rungs": [{key: one[key] for key in one.keys() - {"unattacked"}} for one in found["rungs"]]}
    assert "It fell first to mma" in report.html(older, done) and "no attack was needed" not in report.html(older, done)


def test_thumbnails_are_small() -> None:
    import base64
    import io

    data = report.thumbnail(Image.new("RGB", (400, 200), "red")).partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (96, 48)
