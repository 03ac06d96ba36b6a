"""The page: self-contained, honest words, verdicts, limits made from what was not done."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic import JUDGE, RATES, arm, estimate, metrics, results, rows

from erasekit.errors import EraseKitError
from erasekit.evaluation import cautions, page_pictures, page_record, page_style
from erasekit.evaluation.page import html, write_report
from erasekit.evaluation.page_limits import limits
from erasekit.evaluation.page_parts import duration, interval, number, size
from erasekit.evaluation.page_summary import claim, warnings
from erasekit.evaluation.page_view import TITLES, View, complement, view
from erasekit.evaluation.rows import Row
from erasekit.evaluation.suites.groups import GROUPS

VOID = {"meta", "link", "img", "br", "rect", "path", "circle", "polygon", "line"}
EDIT = "edit:erasepro-cat"


class Reader(HTMLParser):
    """Elements, their attributes and the text; complains about tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] not in (["style"], ["script"]):
            self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], str]:
    folder = tmp_path_factory.mktemp("run")
    drawn = rows(folder)
    return folder, drawn, write_report(results(), drawn, folder).read_text()


def seen(drawn: list[dict[str, Any]], **changes: Any) -> View:
    return view(results(**changes), drawn, Path())


def test_the_page_stands_alone_and_repeats(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    folder, drawn, page = run
    parsed = Reader(page)
    links = [
        attrs.get("src") or attrs.get("href") for tag, attrs in parsed.elements if "src" in attrs or "href" in attrs
    ]
    assert links and all(str(link).startswith(("data:", "#")) for link in links)
    assert "@import" not in page and "url(" not in page and "localStorage" not in page and "http" not in page
    targets = {attrs.get("id") for _, attrs in parsed.elements}
    assert all(str(link)[1:] in targets for link in links if str(link).startswith("#"))
    assert write_report(results(), drawn, folder).read_text() == page
    assert html(results(), [Row(**row) for row in drawn], folder) == page, "rows do as well as mappings"


def test_it_is_accessible(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    elements = Reader(run[2]).elements
    images = [attrs for tag, attrs in elements if tag == "img"]
    assert len(images) == 140 and all("seed" in str(i["alt"]) and "Judge: " in str(i["alt"]) for i in images)
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for tag, attrs in elements if tag == "svg")
    assert all("scope" in attrs for tag, attrs in elements if tag == "th" and attrs) and run[2].count('lang="en"') == 1


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [page_style.LIGHT, page_style.DARK])
def test_text_can_be_read_on_every_surface(colours: dict[str, str]) -> None:
    """WCAG 2.1: 4.5 : 1 for text, 3 : 1 for the marks of the charts."""
    for surface in page_style.SURFACES:
        for name in colours.keys() - set(page_style.SURFACES) - {"line"}:
            light, dark = sorted((luminance(colours[name]), luminance(colours[surface])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= (4.5 if name in page_style.TEXT_COLOURS else 3), (name, surface)


def test_forbidden_words_do_not_occur(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    bare = html(results(arms=[arm("base")], metrics=[], differences=[], counts={"base": results()["counts"]["base"]}),
                [], run[0])  # fmt: skip
    for page in (run[2], bare):
        words = Reader(page).text.lower()
        for word in ("safe", "certified", "compliant", "cannot generate", "removed", "todo"):
            assert not re.search(rf"\b{word}\b", words), word
    assert "suppresses cat on the tested prompts (rate 96.7 % → 1.7 %)" in Reader(run[2]).text


def test_the_claim_needs_intervals_that_part() -> None:
    before, after = estimate("target_rate", "base", 58, 60), estimate("target_rate", EDIT, 1, 60)
    assert claim(before, after, "cat").startswith("suppresses cat on the tested prompts (rate 96.7 %")
    assert claim(before, estimate("target_rate", EDIT, 55, 60), "cat").startswith("shows no clear effect on cat")
    assert claim(after, before, "cat").startswith("shows no clear effect")
    assert "not measured" in claim(None, after, "cat")


def test_rates_come_from_the_target_rate_or_from_efficacy(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    whole = seen(run[1])
    rate = whole.rate(EDIT, ["cat"])
    assert rate is not None and rate["value"] == pytest.approx(1 / 60)
    derived = seen(run[1], metrics=[m for m in metrics() if m["metric"] == "efficacy"]).rate(EDIT, ["cat"])
    assert derived is not None and derived["value"] == pytest.approx(1 / 60)
    assert derived["low"] == pytest.approx(rate["low"]) and derived["high"] == pytest.approx(rate["high"])
    assert complement({"value": 0.2, "low": None, "high": None})["low"] is None


def test_arms_are_compared_on_the_same_targets(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    """The unedited model also drew another edit's target: its rate for the first one is counted from the rows."""
    other = [
        {**r, "target": "dog", "prompt": f"dog/{r['prompt']}"} for r in run[1] if r["arm"] == "base" and r["target"]
    ]
    both = seen([*run[1], *other], metrics=[m for m in metrics() if m["target"] is None])
    rate = both.rate("base", ["cat"])
    assert rate is not None and (rate["value"], rate["n"]) == (1.0, 15), "16 images for cat, one of which failed"
    rate = both.rate("base", ["dog"])
    assert rate is not None and rate["value"] == 0


def test_style_suites_read_the_judges_style(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    row = Row(**{**run[1][1], "group": "plain", "target": "noto style", "style": "noto"})
    styles = view(
        {**results(labels={"noto style": ["noto"]}), "suite": {**results()["suite"], "kind": "style"}}, [row], Path()
    )
    assert styles.verdict(row) == ("found", "noto style")
    kept = Row(**{**run[1][1], "group": "unrelated", "target": "", "style": "ink"})
    assert styles.verdict(kept) == ("absent", "cat + ink")


def test_times_are_shown_where_they_are_known(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    page = html(results(), run[1], run[0], timing={"images": {"base": 840.0}, "fit": {EDIT: 3.2}})
    assert "<td>14 min</td><td>2 s</td>" in page and "<td>3.2 s</td>" in page


def test_the_record_says_what_the_edit_was_told_and_which_plan_it_was() -> None:
    known = results()
    known["created_by"]["plan_sha256"] = "9f" * 32
    assert "fox, a blue bird" in page_record.edits(seen([])) and "told to keep" in page_record.edits(seen([]))
    assert "9f" * 32 in page_record.provenance(seen([], created_by=known["created_by"]))
    for one in known["arms"]:
        for name in ("retain", "seed"):
            (one["edit"] or {}).pop(name, None)
    assert "told to keep" not in page_record.edits(seen([], arms=known["arms"])), "older results hold neither"


def test_the_deciding_judge_is_the_suites_first(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    second = {**metrics()[0], "judge": "clip[emoji]", "value": 0.5}
    entry = seen(run[1], metrics=[second, *metrics()]).entry("efficacy", "base")
    assert entry is not None and entry["judge"] == JUDGE


@pytest.mark.parametrize(("change", "expected"), [
    ({}, ("found", "cat")),
    ({"group": "plain", "judgements": {JUDGE: {"status": "ok", "found": ["dog"], "best": "dog"}}}, ("absent", "cat")),
    ({"judgements": {JUDGE: {"status": "failed", "reason": "x"}}}, ("failed", "cat")),
    ({"judgements": {JUDGE: {"status": "invalid", "reason": "x"}}}, ("invalid", "cat")),
    ({"judgements": {"clip[emoji]": {"status": "ok", "embedding": "", "dim": 4}}}, ("failed", "cat")),  # not asked
    ({"target": "lion"}, ("absent", "lion")),
    ({"target": "pet"}, ("found", "pet")),  # by `labels`
    ({"group": "neighbour", "wanted": ["fox", "cat"]}, ("absent", "fox + cat")),
    ({"group": "style", "wanted": [], "style": "ink", "target": ""}, ("unjudged", "")),
    ({"group": "unrelated", "wanted": ["cat"], "style": "ink"}, ("found", "cat")),
])  # fmt: skip
def test_verdicts(
    run: tuple[Path, list[dict[str, Any]], str], change: dict[str, Any], expected: tuple[str, str]
) -> None:
    row = next(r for r in run[1] if r["arm"] == "base" and r["seed"] == 1 and r["target"] == "cat")
    assert seen(run[1], labels={"pet": ["dog", "cat"]}).verdict(Row(**{**row, **change})) == expected


def test_pictures_show_sign_and_word_for_every_verdict(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    page = run[2]
    for kind, sign, word in (("found", "●", "cat"), ("absent", "○", "no cat"), ("failed", "!", "failed"),
                             ("invalid", "✕", "invalid")):  # fmt: skip
        assert f'<span class="verdict {kind}"><i aria-hidden="true">{sign}</i>{word}</span>' in page, kind
    assert "before 7/7 · ErasePro 0/8" in Reader(page).text, "the failed image counts neither way"


def test_pictures_are_limited_and_spread_over_groups(monkeypatch: pytest.MonkeyPatch,
                                                     run: tuple[Path, list[dict[str, Any]], str]) -> None:  # fmt: skip
    folder, drawn, _ = run
    monkeypatch.setattr(page_pictures, "MOST_LINES", 10)
    every = page_pictures.lines(view(results(), drawn, folder))
    chosen = page_pictures.choose(every, view(results(), drawn, folder))
    assert len(every) == 28 and len(chosen) == 10
    assert {line.group for line in chosen} == {"plain", "synonym", "complex", "neighbour", "unrelated"}
    page = html(results(), drawn, folder)
    assert "10 of 28 pairs of prompt and seed are shown" in page and page.count("<img ") == 50
    monkeypatch.setattr(page_pictures, "MOST_BYTES", 5 * (folder / drawn[0]["image"]).stat().st_size * 3)
    assert 1 <= html(results(), drawn, folder).count("<img ") <= 20


def test_files_that_are_gone_damaged_or_changed_are_said(tmp_path: Path) -> None:
    drawn = rows(tmp_path, seeds=1)
    (tmp_path / drawn[0]["image"]).unlink()
    cut = tmp_path / drawn[1]["image"]
    cut.write_bytes(cut.read_bytes()[:200])
    (tmp_path / drawn[2]["image"]).write_bytes((tmp_path / drawn[5]["image"]).read_bytes())
    page = html(results(), drawn, tmp_path)
    assert page.count("file not there") == page.count("file damaged") == page.count("changed since it was judged") == 1


def test_limits_follow_from_what_was_not_done(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    said = " ".join(limits(seen(run[1])))
    for words in ("No attack was run", "the target described, not named", "No language but that of", "No image inputs",
                  "scheduler DDIMScheduler, steps 20", "Error rates were not measured for clip[emoji]", "No probe",
                  "1 target at most", "subtracted"):  # fmt: skip
        assert words.lower() in said.lower(), words
    assert "No random change" not in said and "No model trained without" not in said
    attack = {"name": "search", "arm": EDIT, "target": "cat", "budget": "50 queries", "value": 0.2, "low": 0.1,
              "high": 0.3, "n": 50}  # fmt: skip
    arms = [arm("base"), arm(EDIT)]
    other = " ".join(limits(seen(run[1], attacks=[attack], arms=arms)))
    assert "No attack" not in other and "Only these attacks were run: search" in other
    assert "No random change" in other and "No model trained without" in other
    page = html(results(attacks=[attack]), run[1], run[0])
    assert "50 queries" in page and "No attack was run" not in page


def test_warnings_name_counts_and_groups_that_test_little(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    drawn = [{**r, "judgements": {JUDGE: {"status": "ok", "found": [], "best": "dog"}}} if r["group"] == "synonym" else r
             for r in run[1]]  # fmt: skip
    text = Reader(html(results(), drawn, run[0])).text
    assert "UCE was fitted with 20 retained concepts only." in text
    assert "before: of 420 images, 2 could not be judged (failed); they are in no rate." in text
    assert "“The target by another word”: the unedited model itself shows what is asked for in only 0 of 4" in text
    assert "“The target by its name”: the unedited" not in text


def test_edits_are_compared_with_each_other_apart(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    pair = {"metric": "specificity", "arm": "edit:uce-cat", "against": EDIT, "group": None, "target": None, "value": -0.05,
            "low": -0.1, "high": 0.0, "n": 240, "p": 0.04, "p_holm": 0.4}  # fmt: skip
    text = Reader(html(results(differences=[*results()["differences"], pair]), run[1], run[0])).text
    assert "Edit against edit" in text and "UCE − ErasePro" in text and "Edit against edit" not in Reader(run[2]).text


def test_what_a_reader_must_know_of_a_number_stands_beside_it(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    one = {**metrics()[0], "low": None, "high": None}
    lines = [{**one, "metric": "ua", "note": "not UnlearnCanvas's own"},
             {**one, "metric": "h_c", "terms": ["efficacy", "wanted"]},
             {**one, "metric": "m3-local(clip[emoji])", "value": 1.0, "raw": 1.25, "unit": "fraction"},
             {**one, "metric": "valid_rate", "value": None, "n": 0,
              "pessimistic": {"value": 0.125, "low": 0.0, "high": 0.5, "n": 9}, "corrected": {"value": 0.25}}]  # fmt: skip
    text = Reader(html(results(metrics=[*metrics(), *lines]), run[1], run[0])).text
    for words in ("not UnlearnCanvas's own", "mean of efficacy, wanted", "unclipped 1.25", "pessimistic 12.5 % [0, 50]",
                  "corrected for the judge 25 %"):  # fmt: skip
        assert words in text, words
    assert "unclipped" not in Reader(run[2]).text


def test_what_stands_in_or_is_not_stated_is_said(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    local = {**metrics()[0], "metric": "m1-local(clip[emoji])", "substitute": "embeddings for captions"}
    page = html(results(metrics=[*metrics(), local], omitted=["fid is not stated: 3 pairs of images, and 16 are needed"],
                        extractors=[{"name": "LPIPS-x", "weights_sha256": "4d" * 32}]), run[1], run[0])  # fmt: skip
    text = Reader(page).text
    for words in ("local substitutes: embeddings for captions", "fid is not stated: 3 pairs", "LPIPS-x", "4d" * 32):
        assert words in text
    assert "EraseEval, arXiv 2502.13989" in text, "the metric behind the longer name is explained"


def test_nothing_is_warned_of_twice(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    """What the aggregates say of counts and groups, the page does not say again in its own words."""
    drawn = [{**r, "judgements": {JUDGE: {"status": "ok", "found": [], "best": "dog"}}} if r["group"] == "synonym" else r
             for r in run[1]]  # fmt: skip
    counts = results()["counts"]
    said = [cautions.unjudged(one["label"], counts[one["arm"]]) for one in results()["arms"]]
    said += [f"{JUDGE} finds the target in 0 of 4 images of the unedited model in the group synonym: what is measured there "
             "says little about an edit"]  # fmt: skip
    said += ["no random control was drawn for UCE, so damage is not told from erasure"]
    shown = warnings(seen(drawn, warnings=said))
    assert shown.count("<li>") == len(said)
    arms = [arm("base"), arm(EDIT)]
    assert "No random change" not in " ".join(limits(seen(drawn, warnings=said, arms=arms)))


def test_many_targets_share_a_card_and_fold_their_lines(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    many = [f"t{i}" for i in range(15)]
    arms = [arm(name) for name in ("base", EDIT)]
    arms[1]["edit"] |= {"targets": many, "anchors": ["dog"] * 15}
    entries = [m for m in metrics() if m["arm"] in ("base", EDIT) and m["metric"] != "target_rate"]
    entries += [
        estimate("target_rate", a, RATES[a], 60, target=t, direction="down") for t in many for a in ("base", EDIT)
    ]
    entries += [estimate("target_rate", a, 15 * RATES[a], 900, direction="down") for a in ("base", EDIT)]
    page = html(results(arms=arms, metrics=entries, differences=[]), run[1][:0], run[0])
    assert (
        page.count("<article") == 1
        and "suppresses 15 targets (t0, t1, t2, t3 and 11 more) on the tested prompts" in page
    )
    assert "<h3>By target</h3>" in page


def test_text_is_escaped(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    nasty = "<script>alert(1)</script>\"'"
    drawn = [{**row, "text": nasty, "group": nasty, "wanted": [nasty]} for row in run[1][:3]]
    document = results(warnings=[nasty], model={"id": nasty, "sha256": nasty})
    document["arms"][0]["label"] = document["created_by"]["command"] = document["suite"]["title"] = nasty
    page = html(document, drawn, run[0])
    Reader(page)
    assert page.count("<script>") == 1 and "alert(1)" in page


def test_bad_results_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(EraseKitError, match="version 2"):
        write_report(results(erasekit_results=2), [], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_group_of_the_suites_has_a_title() -> None:
    assert set(TITLES) == set(GROUPS)


def test_numbers_as_people_read_them() -> None:
    assert [number(v, "share") for v in (0.0, 1.0, 0.9833, None)] == ["0 %", "100 %", "98.3 %", "–"]
    assert number(-0.217, "points") == "−21.7 points" and number(0.61234) == "0.612" and number(1234.5) == "1234"
    assert number(0.0, "x") == "0" and number(2e-7) == "2.0e−07" and number(-0.0, "share") == "0 %"
    assert interval({"low": 0.1, "high": 0.25}, "share") == "[10, 25]" and interval({"low": None, "high": None}) == ""
    assert (
        size(80056) == "78.2 KiB"
        and size(10) == "10 bytes"
        and duration(71.3) == "71.3 s"
        and duration(600) == "10 min"
    )
