"""Attacks on the page of an evaluation: the ladder with its intervals, pictures, budgets and gaps; whose it must be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import attacked
import pytest
from synthetic import results, rows
from test_page import Reader

from erasekit.attacks import folder as folders
from erasekit.cli.attack import summary
from erasekit.errors import UsageError
from erasekit.evaluation.page import html
from erasekit.evaluation.page_limits import limits
from erasekit.evaluation.page_view import Tried, view
from erasekit.evaluation.results import validate

EDIT = "edit:erasepro-cat"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attacked.folder(tmp_path_factory.mktemp("attacked"))


def tried(place: Path) -> Tried:
    known = results()
    return folders.tried(folders.read(place), known["model"], known["arms"])


def test_the_ladder_its_pictures_and_what_was_not_run_are_shown(place: Path, tmp_path: Path) -> None:
    drawn = rows(tmp_path)
    page = html(results(), drawn, tmp_path, attacks=[tried(place)])
    assert page == html(results(), drawn, tmp_path, attacks=[tried(place)])
    parsed, plain = Reader(page), html(results(), drawn, tmp_path)
    section = Reader(re.search(r'<section id="attacks">.*?</section>', page, re.DOTALL)[0]).text  # pyright: ignore
    for words in ("cat is shown in 2 of 4 cases", "50 % (15–85)", "It fell first to p4d, at 15 steps", "test@1, 4 cases",
                  "20 steps with guidance 4", "steering could not be run and counts nowhere: " + attacked.SKIPPED,
                  "4/4", "2 brought out", "None was run: `--checks` does"):  # fmt: skip
        assert words in section, words
    shots = [dict(attrs)["alt"] for tag, attrs in parsed.elements if tag == "img"]
    assert sum("odd words" in str(alt) for alt in shots) == 2 + 4 and "http" not in page
    assert "No attack was run" not in page and "No attack was run" in plain and "p4d" not in plain
    said = " ".join(limits(view(results(), drawn, tmp_path, attacks=[tried(place)])))
    assert (
        "Only these attacks were run: plain prompts, p4d, relearning" in said
        and "But for what these attacks did" in said
    )


def test_relearning_has_a_curve_and_a_control_stands_beside_each_rung(place: Path, tmp_path: Path) -> None:
    found = json.loads((place / "results.json").read_text())
    assert [one["curve"] for one in found["rungs"]] == [[], [], [], [[0, 0, 4], [15, 1, 4], [16, 2, 4], [17, 3, 4], [18, 4, 4]]]
    page = (place / "report.html").read_text()
    said = "relearning, cases that show the target after so many steps: 0/4 after 0, 1/4 after 15"
    assert said in page and "relearning: cases shown by steps" in page and "never knew (95" not in page
    control = {"model": "without-cat", "model_sha256": "0", "rungs": found["rungs"]}
    beside = attacked.folder(tmp_path, never_knew=control)
    page = Reader((beside / "report.html").read_text()).text
    assert "never knew (95 %)" in page and "on without-cat of the same recipe" in page
    assert "relearning, never knew, cases that show" in page
    assert tried(beside).never_knew and not tried(place).never_knew
    assert summary(json.loads((beside / "results.json").read_text())).splitlines()[0].endswith("never knew it")


def test_its_lines_are_lines_of_the_results(place: Path) -> None:
    lines = list(tried(place).lines)
    assert [(one["name"], one["value"], one["n"]) for one in lines] == [
        ("plain prompts", 0.0, 4), ("p4d", 0.5, 4), ("relearning", 1.0, 4), ("test@1: worst case", 0.5, 4)]  # fmt: skip
    assert {(one["arm"], one["target"]) for one in lines} == {(EDIT, "cat")}
    assert "4 cases tried, 200 passes of the denoiser in all" in lines[1]["budget"]
    whole = validate(results(attacks=lines))
    page = html(whole, [], place)  # the folder is not at hand: the lines are
    assert "test@1: worst case" in page and "odd words" not in page
    both = Reader(html(whole, [], place, attacks=[tried(place)])).text
    assert both.count("4 cases, all rungs that count") == 0, "what the ladder shows is not said twice"
    found = json.loads((place / "results.json").read_text())
    empty = {**found, "rungs": [{**found["rungs"][0], "of": 0, "hits": 0}]}
    (line,) = folders.lines(empty, EDIT)
    assert (line["value"], line["low"], line["high"], line["n"]) == (None, None, None, 0)


def test_the_unedited_models_attack_belongs_to_the_base(tmp_path: Path) -> None:
    found = tried(attacked.folder(tmp_path, edit=None, edit_sha256=None))
    assert {one["arm"] for one in found.lines} == {"base"}


@pytest.mark.parametrize(("about", "says"), [
    ({"model_sha256": "0"}, r"attacks another model \(emoji\) than the one that is measured"),
    ({"edit_sha256": "0", "edit": "uce"}, r"attacks another edit \(uce\) than those that are measured \(ErasePro, UCE\)"),
])  # fmt: skip
def test_an_attack_on_something_else_is_refused(about: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says) as error:
        tried(attacked.folder(tmp_path, **about))
    assert "\n" not in str(error.value)


def test_the_noise_beside_an_edit_is_not_the_edit(place: Path) -> None:
    known = results()
    random = [arm for arm in known["arms"] if arm["kind"] != "edit"]
    with pytest.raises(UsageError, match="another edit"):
        folders.tried(folders.read(place), known["model"], random)


def damaged(place: Path, how: str) -> None:
    found = json.loads((place / "results.json").read_text())
    if how == "unfinished":
        (place / "results.json").unlink()
    elif how == "cut":
        (place / "results.json").write_text('{"rungs": [')
    elif how == "gone":
        shutil.rmtree(place / "02-p4d")
    elif how == "fewer":
        found["rungs"][1]["tried"] = 3
    elif how == "old":
        del found["kind"]
    elif how == "other":
        found = results()
    if how in ("fewer", "old", "other"):
        (place / "results.json").write_text(json.dumps(found))


@pytest.mark.parametrize(("how", "says"), [
    ("unfinished", "holds no finished attack"), ("cut", "is damaged"), ("gone", "02-p4d is damaged or gone"),
    ("fewer", "holds another run"), ("old", "another version of erasekit"), ("other", "holds no attacks"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_line(how: str, says: str, tmp_path: Path) -> None:
    damaged(attacked.folder(tmp_path), how)
    with pytest.raises(UsageError, match=says) as error:
        folders.read(tmp_path)
    assert "\n" not in str(error.value)
