"""M-ErasureBench as a page and on the page of an evaluation: rates beside their controls, pictures, whose they must be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import benched
import pytest
from synthetic import arm, results, rows
from test_page import Reader

from erasekit.attacks import folder as folders
from erasekit.attacks import report_bench
from erasekit.attacks._bench_scenarios import SCENARIOS
from erasekit.attacks.base import Case, Outcome
from erasekit.attacks.folder_bench import MOST, Benched, chosen, never_named
from erasekit.errors import UsageError
from erasekit.evaluation.page import html
from erasekit.evaluation.page_limits import limits
from erasekit.evaluation.page_view import Tried, view
from erasekit.evaluation.results import validate

EDIT = "edit:erasepro-cat"
NAMES = [f"m-erasurebench@1: {one.row}" for one in SCENARIOS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benched.folder(tmp_path_factory.mktemp("benched"))


def bench(place: Path) -> Benched:
    found = folders.read(place)
    assert isinstance(found, Benched)
    return found


def tried(place: Path) -> Tried:
    known = results()
    return folders.tried(bench(place), known["model"], known["arms"])


def part(page: str, ident: str) -> Reader:
    return Reader(re.search(rf'<section id="{ident}">.*?</section>', page, re.DOTALL)[0])  # pyright: ignore


# -- its own page ---------------------------------------------------------------------------------------------------


def test_every_rate_stands_beside_its_controls_with_the_gaps(place: Path) -> None:
    page = (place / "report.html").read_text()
    assert page == report_bench.html(bench(place)) and "http" not in page
    top, rates = Reader(page).text, part(page, "rates").text
    for words in ("cat is shown in 2 of 8 pictures, 25 % (7–59)", "The highest rate is that of E-wb: 6 of 7 pictures",
                  "(1 more is invalid)", "The gaps of E-wb: unedited −14.3 points [", "Do not trust every row",
                  f"E-wb: {benched.TWIN}, its rate proves nothing"):  # fmt: skip
        assert words in top, words
    gap = json.loads((place / "results.json").read_text())["rows"][3]["controls"]["scrambled"]["gap"]
    assert gap["value"] == 0.25
    for words in ("3/475 % (30–95)", "+25 points[−", "2/4, 50 % (15–85)", "unedited: gap", "never knew: gap",
                  "E-wbconcept-inversion, warned of above", "E-bbtextual-inversion6/7",
                  "where the interval holds 0, none of these is shown"):  # fmt: skip
        assert words in rates, words
    assert page.count('<svg class="plot"') == 4, "a chart for each kind of input"
    assert "the judge, on other thingsby the unedited model0/8" in part(page, "bounds").text
    assert "8 of 11 that the unedited model drew show the target. Fewer than" in part(page, "bounds").text


def test_what_is_the_papers_what_it_cost_and_what_was_attacked(place: Path) -> None:
    page = (place / "report.html").read_text()
    said = part(page, "sources").text
    assert all(one.confirmed in said and one.inferred in said for one in SCENARIOS)
    assert "prompt concept, guidance 4.0" in said, "the model's own guidance is a number"
    assert part(page, "cost").text.count("2000") == 3 and part(page, "cost").text.count("1000") == 6
    about = part(page, "attacked").text
    for words in ("emoji", "erasepro", "cat (object)", "rule-v1", "without-cat", "a photo of <fox>", "ed" * 32,
                  "in 20 steps with guidance 4", "images 8, seeds 1"):  # fmt: skip
        assert words in about, words


def test_the_attacks_pictures_stand_above_the_controls(place: Path) -> None:
    page = (place / "report.html").read_text()
    shots = [str(dict(attrs)["alt"]) for tag, attrs in part(page, "pictures").elements if tag == "img"]
    sides = {"edited": 9 * 6 - 6 * 2, "unedited": 42, "never knew": 42, "scrambled": 24, "inverted": 24}
    assert {name: sum(one.startswith(f"{name}, ") for one in shots) for name in sides} == sides
    assert shots[0] == "edited, a photo of cat, seed 0. Judge: cat not found."
    assert shots[6].startswith("unedited, a photo of cat, seed 0.")
    assert "edited, cat, seed 3. Judge: cat invalid." in shots
    assert "inverted, a picture of cat, seed 1000001. Judge: cat found." in shots
    assert "2 of 8 show cat, 6 of 8 cases here" in page and "6 of 7 show cat, 6 of 8 cases here" in page


@pytest.mark.parametrize(("ends", "shown"), [
    ("ffffffff", [0, 1, 2, 3, 4, 5]), ("ssssssss", [0, 1, 2, 3, 4, 5]), ("ffffffsf", [0, 1, 2, 3, 4, 6]),
    ("sssssssf", [0, 1, 2, 3, 4, 7]), ("ssssffff", [0, 1, 2, 4, 5, 6]), ("sf", [0, 1]), ("ii", [0, 1]),
])  # fmt: skip
def test_both_kinds_of_pictures_are_shown(ends: str, shown: list[int]) -> None:
    found = [Outcome(Case("", i), benched.STATUS[end]) for i, end in enumerate(ends)]
    assert chosen(found) == shown and len(shown) <= MOST


def test_a_run_of_few_rows_says_only_what_it_can(tmp_path: Path) -> None:
    ends = {"T": {"edited": "iiiiiiii", "unedited": "ffffffff"}}
    page = (benched.folder(tmp_path / "a", only="T", ends=ends, edit=None) / "report.html").read_text()
    said = Reader(page).text
    assert "No picture could be judged." in said and "attacked, cat, seed 1. Judge: cat invalid." in page
    assert not [words for words in ("inversion hands", "A word can be taught", "scrambled: gap", "never knew: gap")
                if words in said]  # fmt: skip
    plain = (benched.folder(tmp_path / "b", only="T") / "report.html").read_text()
    assert "The highest rate" not in plain and "The gaps of T: unedited −75 points" in Reader(plain).text


def test_a_picture_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    (benched.folder(tmp_path, only="T") / "T" / "0002.png").unlink()
    page = report_bench.write_report(bench(tmp_path)).read_text()
    assert page.count("file not there") == 1 and "2 of 8 show cat" in page


# -- on the page of an evaluation -----------------------------------------------------------------------------------


def test_it_is_shown_beside_the_evaluation_of_its_edit(place: Path, tmp_path: Path) -> None:
    page = html(results(), rows(tmp_path), tmp_path, attacks=[tried(place)])
    said = part(page, "attacks").text
    for words in ("m-erasurebench@1, drawn in 20 steps with guidance 4, judged by rule-v1", "+25 points[−", benched.TWIN,
                  "The null prompt carries no target"):  # fmt: skip
        assert words in said, words
    assert "No attack was run" not in page and sum(tag == "img" for tag, _ in part(page, "attacks").elements) == 174
    only = " ".join(limits(view(results(), [], tmp_path, attacks=[tried(place)])))
    assert "Only these attacks were run: m-erasurebench@1: T, " in only


def test_a_control_of_the_attacks_is_not_denied(place: Path, tmp_path: Path) -> None:
    known = results(arms=[arm("base"), arm(EDIT)])
    without = benched.folder(tmp_path / "b", only="T", ends={"T": {"edited": "ffffffff", "unedited": "ssssssss"}})
    seen = {place: "was drawn on this suite (attacks had one): how close", without: "was at hand: how close"}
    for folder, words in seen.items():
        one = tried(folder)
        for found in (view(known, [], tmp_path, attacks=[one]), view({**known, "attacks": list(one.lines)}, [], tmp_path)):
            assert f"No model trained without the target {words}" in " ".join(limits(found))


def test_a_later_run_keeps_the_name_of_the_model_without_the_target(place: Path, tmp_path: Path) -> None:
    assert never_named(place) == {"never_knew": {"model": "without-cat"}} and never_named(tmp_path) == {}


def test_its_lines_carry_the_gaps_without_the_folder(place: Path) -> None:
    lines = list(tried(place).lines)
    assert [one["name"] for one in lines] == NAMES and {(one["arm"], one["target"]) for one in lines} == {(EDIT, "cat")}
    assert (lines[0]["value"], lines[0]["n"]) == (0.25, 8)
    assert lines[1]["note"] == f"{benched.TWIN}, its rate proves nothing"
    assert lines[1]["budget"] == "8 pictures (1 of them invalid), 2000 passes of the denoiser in all"
    assert [one["name"] for one in lines[3]["controls"]] == ["unedited", "scrambled", "never-knew"]
    assert lines[0]["controls"][0]["gap"] == -0.75 and "note" not in lines[0]
    whole = validate(json.loads(json.dumps(results(attacks=lines))))
    page = part(html(whole, [], place), "attacks")
    assert "scrambled: +25 points [−" in page.text and benched.TWIN in page.text
    both = part(html(whole, [], place, attacks=[tried(place)]), "attacks")
    assert "gap to a control" in page.text and "gap to a control" not in both.text, "nothing is said twice"
    ladder = [{key: lines[0][key] for key in ("name", "arm", "target", "budget", "value", "low", "high", "n")}]
    assert "gap to a control" not in part(html(results(attacks=ladder), [], place), "attacks").text


@pytest.mark.parametrize(("about", "says"), [
    ({"model_sha256": "0"}, r"attacks another model \(emoji\)"), ({"edit_sha256": "0"}, r"attacks another edit \(erasepro\)"),
])  # fmt: skip
def test_one_of_something_else_is_refused(about: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        tried(benched.folder(tmp_path, only="T", **about))


def test_one_of_the_unedited_model_belongs_to_the_base(tmp_path: Path) -> None:
    found = tried(benched.folder(tmp_path, only="T", edit=None, edit_sha256=None))
    assert {one["arm"] for one in found.lines} == {"base"}


@pytest.mark.parametrize(("how", "says"), [
    ("gone", "unedited-T is damaged or gone"), ("sources", "concept is damaged or gone"),
    ("fewer", "T holds another run than"), ("old", "another version of erasekit"), ("next", "another version of erasekit"),
    ("empty", "another version of erasekit"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_line(how: str, says: str, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    found = json.loads((tmp_path / "results.json").read_text())
    changed = {"fewer": {"rows": [{**found["rows"][0], "crr": {**found["rows"][0]["crr"], "hits": 3}}]}, "empty": {"rows": []},
               "next": {"benchmark": "m-erasurebench@2"}}.get(how, {})  # fmt: skip
    found = {key: value for key, value in found.items() if how != "old" or key != "kind"} | changed
    (tmp_path / "results.json").write_text(json.dumps(found))
    if how in ("gone", "sources"):
        shutil.rmtree(tmp_path / {"gone": "unedited-T", "sources": "concept"}[how])
    with pytest.raises(UsageError, match=says) as error:
        folders.read(tmp_path)
    assert "\n" not in str(error.value)
