"""ErasePro's knobs in pictures: what is asked, that it is drawn once and counted right, and how tables and plots show it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_emoji_erasure import drawn, make  # noqa: F401

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import erasepro_knobs  # noqa: E402
import knobs_plan  # noqa: E402
from emoji_prompts import PAIRS  # noqa: E402
from knobs_measure import point  # noqa: E402
from knobs_pictures import Gallery  # noqa: E402
from knobs_plan import OTHERS, PROMPTS, SEEDS, Plan  # noqa: E402
from knobs_settings import KNOBS, Knob, Setting  # noqa: E402
from knobs_world import Case, World  # noqa: E402

import erasekit  # noqa: E402
from erasekit.errors import InfeasibleError, UsageError  # noqa: E402
from erasekit.worlds.emoji.concepts import names  # noqa: E402

ONE = PROMPTS * SEEDS  # pictures of a target
UCE, SAME, OTHER = Setting("UCE", method="uce"), Setting("again", method="uce"), Setting("other", {"lamb": 0.6}, method="uce")


class Two(World):
    """A world of two targets without its model: one token each, the anchor of every rule but the pairs' is the moon."""

    def __init__(self) -> None:
        self.targets = ["cat", "penguin"]
        self.pool = ["cat", "penguin", "dog", "duck", "fox", "moon", "owl", "rose"]

    def anchor(self, target: str, rule: str) -> str:
        return {"pair": PAIRS[target], "empty": ""}.get(rule, "moon")

    def ranked(self, target: str, words) -> list[str]:
        return sorted(w for w in words if w != target)


@pytest.fixture
def plan() -> Plan:
    return Plan(Two())


@pytest.fixture
def fitted(make, monkeypatch):  # noqa: F811
    """`erasekit.erase` fits the tiny pipeline's own words, once for each setting; `asked` says for what it was called."""
    real, edits, asked = erasekit.erase, {}, []

    def erase(pipe, targets, *, anchor, retain, method, **parameters):
        asked.append((tuple(targets), tuple(anchor), tuple(retain), method))
        if retain:
            raise InfeasibleError("no room for what is retained")
        lamb = parameters.get("lamb", 0.5)
        if lamb not in edits:
            edits[lamb] = real(pipe, "cat", anchor="dog", method="uce", lamb=lamb)
        return edits[lamb]

    monkeypatch.setattr(erasekit, "erase", erase)
    return asked


# -- what is asked ------------------------------------------------------------------------------------------------


def test_every_knob_of_the_issue_is_pictured_and_settings_are_known_by_their_values() -> None:
    assert {"solution", "templates", "positions", "layers", "retention", "many", "prefix", "quadrants", "compensate",
            "anchors", "presets"} <= set(KNOBS)  # fmt: skip
    keys = {name: {point(s) for s in knob.settings} for name, knob in KNOBS.items()}
    assert all(len(keys[name]) == len(knob.settings) for name, knob in KNOBS.items())
    paper = point(Setting("any name", {"positions": "all"}, "any line"))
    assert all(paper in keys[name] for name in ("solution", "templates", "positions", "sites", "retention", "presets"))
    others = [Setting("", anchor="near"), Setting("", retain=1), Setting("", concepts=2), Setting("", pairs=(("a", "b"),))]
    assert len({paper, *map(point, others)}) == 5


def test_along_a_curve_the_same_is_asked(plan) -> None:
    sheets = [plan.sheet(plan.cases(Setting("", anchor=rule))[0]) for rule in ("pair", "far", "empty")]
    asked = [[p.text for prompts in sheet.asked.values() for p in prompts] for sheet in sheets]
    assert asked[0] == asked[1] == asked[2] and len(asked[0]) == PROMPTS
    assert [len(sheet.replaced) for sheet in sheets] == [1, 1, 0]
    words = [{p.wanted for p in sheet.others} for sheet in sheets]
    assert all(len(w) == OTHERS and not w & {*PAIRS, *PAIRS.values()} for w in words) and "moon" not in words[1]
    assert words[0] == words[2] and len(words[0] - words[1]) <= 1
    cat, penguin = (plan.sheet(case) for case in plan.cases(Setting("")))
    assert not {p.text for p in cat.others} & {p.text for p in penguin.others}


def test_what_any_setting_retains_is_no_other_in_any(plan) -> None:
    world = plan.world
    world.pool = ["moon", *(word for word in names() if word != "moon" and " " not in word)]
    sheets = {n: [plan.sheet(case) for case in plan.cases(Setting("", retain=n))] for n in (0, 5, knobs_plan.RETAINED)}
    assert [sheet.others for sheet in sheets[0]] == [sheet.others for sheet in sheets[5]] and knobs_plan.RETAINED == 20
    kept = {word for case in plan.cases(Setting("", retain=knobs_plan.RETAINED)) for word in case.retain} | {"fire"}
    for anchor in ("pair", "far"):
        asked = [plan.sheet(case).others for case in plan.cases(Setting("", anchor=anchor))]
        assert asked == [sheet.others for sheet in sheets[20]] and kept.isdisjoint(p.wanted for each in asked for p in each)
    assert all(len(sheet.others) == OTHERS for sheet in sheets[20])


def test_company_is_erased_and_not_pictured_and_few_others_get_more_seeds(plan) -> None:
    pairs = (("cat", "dog"), ("penguin", "duck"), ("owl", "rose"))
    assert plan.measured(Case(pairs)) == [*pairs[:2]] and Plan(Two(), 1).measured(Case(pairs)) == [pairs[0]]
    assert plan.measured(Case((("fire", "rose"),))) == [("fire", "rose")]
    everything = [p.wanted for p in plan._others("cat", {"cat"}, 1000)]
    most = Case((*pairs, *((word, "moon") for word in everything[5:])))
    sheet = plan.sheet(most)
    assert 0 < len(sheet.others) <= 5 and len(sheet.others) * sheet.other_seeds >= 2 * OTHERS


def test_a_sentence_that_names_the_anchor_tells_nothing_of_it() -> None:
    prompt = SimpleNamespace(text="a cat next to a dog, noto style")
    assert knobs_plan.names_it(prompt, "dog") and not knobs_plan.names_it(prompt, "do")


# -- drawing ------------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_once_and_as_many_as_estimated(plan, make, drawn, fitted, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setitem(KNOBS, "one", Knob("One", (UCE, SAME)))
    monkeypatch.setitem(KNOBS, "two", Knob("Two", (UCE, OTHER)))
    said = knobs_plan.estimate(plan, ("one", "two"), {}, rate=0.5)
    points: dict = {}
    Gallery(plan, make()).run([UCE, SAME, OTHER], points.__setitem__)
    base, edited = 2 * (2 * ONE + OTHERS), 2 * (ONE + OTHERS)
    assert len(drawn) == base + 2 * edited and f"at most {len(drawn)} pictures" in said
    assert f"| one | 2 | {base + edited} | {(base + edited) / 30:.0f} |" in said and f"| two | 2 | {edited} |" in said
    assert "at most 0 pictures" in knobs_plan.estimate(plan, ("one", "two"), points, rate=0.5)
    assert len(points) == 2 and len(fitted) == 4, "the same values are one point"
    again: dict = {}
    Gallery(plan, make()).run([UCE, OTHER], again.__setitem__)
    assert again == points and len(drawn) == base + 2 * edited
    real = erasekit.erase
    monkeypatch.setattr(erasekit, "erase", lambda pipe, words, **given: real(pipe, words, **{**given, "lamb": 0.7}))
    Gallery(plan, make()).judge(UCE)
    assert len(drawn) == base + 3 * edited, "what changes something else is drawn anew under the same name"


def test_what_is_found_is_counted_for_target_anchor_and_others(plan, make, fitted) -> None:  # noqa: F811
    found = Gallery(plan, make()).judge(UCE)["measures"]  # the fixture's judge finds what the prompt says
    assert {name: s["images"] for name, s in found.items()} == {
        "target found": 2 * ONE, "target unedited": 2 * ONE, "anchor in its place": 2 * ONE, "anchor asked for": 2 * ONE,
        "others right": 2 * OTHERS, "others unedited": 2 * OTHERS}  # fmt: skip
    assert found["anchor in its place"]["hits"] == 0 < found["anchor asked for"]["hits"]
    assert found["target found"] == found["target unedited"] and found["others right"]["share"] > 0.8
    assert fitted[0] == (("cat",), ("dog",), (), "uce")
    empty = Gallery(plan, make()).judge(Setting("empty", method="uce", anchor="empty"))["measures"]
    assert empty["anchor in its place"]["images"] == empty["anchor asked for"]["images"] == 0


def test_a_run_that_is_stopped_goes_on(plan, make, drawn, fitted, monkeypatch) -> None:  # noqa: F811
    points: dict = {}
    recorder = make()
    whole = recorder._draw

    def stopping(run, part):
        whole(run, part)
        if len(drawn) > 150:
            raise KeyboardInterrupt

    monkeypatch.setattr(recorder, "_draw", stopping)
    with pytest.raises(KeyboardInterrupt):
        Gallery(plan, recorder).run([UCE, OTHER], points.__setitem__)
    assert list(points) == [point(UCE)]
    Gallery(plan, make()).run([UCE, OTHER], points.__setitem__)
    assert len(drawn) == 2 * (2 * ONE + OTHERS) + 4 * (ONE + OTHERS) and list(points) == [point(UCE), point(OTHER)]


def test_an_edit_that_is_refused_is_counted_and_stops_nothing(plan, make, drawn, fitted) -> None:  # noqa: F811
    found = Gallery(plan, make()).judge(Setting("retained", method="uce", retain=1))
    assert found["refused"] == 2 and found["measures"] == {} and not drawn
    assert found["reasons"] == ["no room for what is retained"] and fitted[0][2]


# -- files --------------------------------------------------------------------------------------------------------


def test_points_of_another_model_judge_or_count_are_not_kept(plan) -> None:
    by = knobs_plan.made(plan, {"model_sha256": "m", "judge": "eye"})
    results = json.loads(json.dumps({"pictures": {"made": by, "points": {"a": {}}}}))
    assert knobs_plan.kept(results, by) == {"a": {}}
    assert knobs_plan.kept({}, by) == knobs_plan.kept({"pictures": None}, by) == {}
    fewer = knobs_plan.made(Plan(Two(), 1), by)
    old = {key: value for key, value in by.items() if key != "prompts_sha256"}
    for other, said in ((by | {"judge": "ear"}, "judge"), (fewer, "targets, prompts_sha256"), (old, "prompts_sha256")):
        with pytest.raises(UsageError, match=f"^the file has judged pictures of other {said}: name another --out$"):
            knobs_plan.kept(results, other)
        assert knobs_plan.kept({"pictures": {"made": by, "points": {}}}, other) == {}


def test_the_command_draws_plots_and_keeps_points_as_they_come(tmp_path, monkeypatch, make, fitted) -> None:  # noqa: F811
    monkeypatch.setitem(KNOBS, "layers", Knob("Few", (UCE, OTHER), axis="lamb"))
    recorder = make()
    recorder.made = {**recorder.made, "judge": "eye"}
    monkeypatch.setattr(erasepro_knobs, "recorder", lambda model, folder: recorder)
    monkeypatch.setattr(erasepro_knobs, "_sha256", lambda model: "m")
    without_a_model(monkeypatch)
    out = tmp_path / "out.json"
    facts = {"model": "m", "model_sha256": "m", "targets": 2, "pairs": [["cat", "dog"]], "sentences": 1, "unrelated": 1}
    out.write_text(json.dumps({**facts, "knobs": {}, "pictures": None}))
    words = ["--again", "--images", "--only", "layers", "--out", str(out), "--plots", str(tmp_path / "plots")]
    erasepro_knobs.main(words)
    kept = json.loads(out.read_text())["pictures"]
    assert set(kept["points"]) == {point(UCE), point(OTHER)} and kept["made"]["targets"] == ["cat", "penguin"]
    plots = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert plots == {"layers", "quadrants", "many", "presets"}, "these have UCE's point too"
    whole = out.read_bytes()
    with pytest.raises(UsageError, match=r"judged pictures of other targets.*name another --out"):
        erasepro_knobs.main([*words, "--image-targets", "1"])
    assert out.read_bytes() == whole


def without_a_model(monkeypatch) -> None:
    monkeypatch.setattr(knobs_plan, "World", lambda model, targets: Two())
    monkeypatch.setattr(knobs_plan, "maker", lambda model, judge: {"judge": "eye"})
    monkeypatch.setattr(knobs_plan.emoji, "load", lambda: None)


def test_an_estimate_measures_nothing(tmp_path, monkeypatch, capsys) -> None:
    for name in ("measure", "recorder", "save"):
        monkeypatch.setattr(erasepro_knobs, name, lambda *given: pytest.fail("it began"))
    without_a_model(monkeypatch)
    erasepro_knobs.main(["--estimate", "--only", "quadrants", "--out", str(tmp_path / "none.json"), "--rate", "1"])
    pictures = 2 * (2 * ONE + OTHERS) + 5 * 2 * (ONE + OTHERS)
    assert f"at most {pictures} pictures, about {pictures / 60:.0f} minutes at 1 a second" in capsys.readouterr().out
    with pytest.raises(UsageError, match="leave --again out"):
        erasepro_knobs.main(["--again", "--out", str(tmp_path / "none.json")])


def test_knobs_of_other_weights_do_not_stay_beside_new_ones(monkeypatch) -> None:
    new = {"model": "emoji", "model_sha256": "m", "pairs": [["cat", "dog"]], "knobs": {"templates": [1]}}
    old = new | {"knobs": {"solution": [2]}, "pictures": {}}
    assert set(erasepro_knobs.merged(old, new)["knobs"]) == {"templates", "solution"}
    monkeypatch.setattr(erasepro_knobs, "_sha256", lambda model: "m")
    whole, only = (erasepro_knobs.arguments(["--targets", "1", *more]) for more in ([], ["--only", "templates"]))
    assert all(erasepro_knobs.comparable(found, args) == found for found in (old, {}) for args in (whole, only))
    unknown = {key: value for key, value in old.items() if key != "model_sha256"}
    for other in (old | {"model_sha256": "n"}, unknown, old | {"pairs": [["cat", "dog"], ["sun", "cloud"]]}):
        assert erasepro_knobs.comparable(other, whole) == {}
        with pytest.raises(UsageError, match=r"other weights or targets than these: leave --only out.*another --out"):
            erasepro_knobs.comparable(other, only)
    args = erasepro_knobs.arguments(["--again", "--images"])
    assert erasepro_knobs.remembered(old, args) == old
    with pytest.raises(UsageError, match="without --again"):
        erasepro_knobs.remembered(old | {"model_sha256": "n"}, args)
