"""ErasePro's presets, what they are made of, and that docs/erasepro.md has a place for every table of its benchmark."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from test_erasepro import backbone, fit, gap, others, output, pipe  # noqa: F401

from erasekit import methods
from erasekit.concept import EraseRequest
from erasekit.errors import UsageError
from erasekit.methods._captions import GENERIC, described, written_out
from erasekit.methods.erasepro import ErasePro, EraseProConfig, align
from erasekit.worlds.emoji.captions import HELD_OUT_PAIR, HELD_OUT_SINGLE, sentences

ROOT = Path(__file__).parents[2]
LETTERS = list("qwertyuiopasdfghjklzxcvbnm")


def preset(backbone, name, targets="cat", anchor="dog", retain=()):  # noqa: F811
    _, found = methods.resolve(f"erasepro:{name}")
    return fit(backbone, targets, anchor, retain, **found.values)


def test_the_presets_resolve_and_the_method_stays_the_paper() -> None:
    assert set(ErasePro.presets) == {"balanced", "weighted", "many", "crowd"} and methods.resolve("erasepro")[1].values == {}
    for found in ErasePro.presets.values():
        assert methods.make_config(ErasePro, found.values) != EraseProConfig() and found.doc and found.anchor is None
    assert EraseProConfig() == EraseProConfig(("bare",), "all", "progressive", None, None, 0.0, False)
    assert not EraseProConfig().keep_empty and not EraseProConfig().compensate


def test_balanced_is_as_exact_and_as_small_as_the_paper(pipe, backbone):  # noqa: F811
    paper, balanced = fit(backbone), preset(backbone, "balanced")
    assert balanced.rank_max == paper.rank_max == 1 and balanced.nbytes == paper.nbytes
    assert balanced.self_check["residual"] < 1e-10 and balanced.self_check["warnings"] == []
    wanted = output(pipe, "dog")[others([1])]
    with balanced.applied(pipe):
        assert gap(output(pipe, "cat")[others([1])], wanted) < 1e-10


def moved(pipe, edit, prompt) -> float:  # noqa: F811
    before = output(pipe, prompt)
    with edit.applied(pipe):
        return gap(output(pipe, prompt), before)


def test_keeping_the_empty_prompt_protects_end_and_padding(pipe, backbone):  # noqa: F811
    """An exact edit of the bare word may move the end token at position 1, which only the empty prompt has there."""
    free = fit(backbone, "zeb", "cat")
    kept = preset(backbone, "balanced", "zeb", "cat")
    assert moved(pipe, kept, "") < 0.5 * moved(pipe, free, "")


def test_many_softens_where_exact_edits_grow(backbone):  # noqa: F811
    targets, retained = LETTERS[:13], LETTERS[13:]
    balanced, many = (preset(backbone, name, targets, "dog", retained) for name in ("balanced", "many"))
    assert many.self_check["relative_update"] < balanced.self_check["relative_update"]
    assert balanced.self_check["residual"] < 1e-9 < 1e-4 < many.self_check["residual"] < 1
    assert max(site["relative_update"] for site in many.self_check["sites"]) > 1e-3  # a long list does not disarm it


def test_crowd_keeps_the_retained_where_exact_edits_of_a_crowd_do_not(pipe, backbone):  # noqa: F811
    """Against the same weighting without a ridge; its captions are the letters' own sentences."""
    targets, retained = LETTERS[:13], LETTERS[13:]
    captions = {"captions": tuple(f"{a} {b}" for a in LETTERS for b in LETTERS[::5])}
    exact, crowd = (fit(backbone, targets, "dog", retained, **methods.resolve(f"erasepro:{name}")[1].values | captions)
                    for name in ("weighted", "crowd"))  # fmt: skip
    assert sum(moved(pipe, crowd, word) for word in retained) < 0.8 * sum(moved(pipe, exact, word) for word in retained)
    assert exact.self_check["residual"] < 1e-9 < 1e-4 < crowd.self_check["residual"] < 1


def test_concept_positions_align_the_differing_tokens_alone(pipe, backbone):  # noqa: F811
    walk = align(backbone, EraseRequest.build("zeb", anchor="cat"), EraseProConfig(positions="concept"))
    (bos, *rest), source, reference = walk.plan.hard, walk.plan.source.ids[0], walk.plan.reference.ids[0]
    assert bos == (0, 0) and [p for _, p in rest] == (source != reference).nonzero()[:, 0].tolist()
    edit = fit(backbone, positions="concept")
    assert edit.self_check["residual"] < 1e-12 and edit.rank_max == 1
    wanted = output(pipe, "dog")
    with edit.applied(pipe):  # nothing asks the padding to stay the anchor's
        assert gap(output(pipe, "cat")[others([1])], wanted[others([1])]) > 1e-6


def test_retained_prompts_are_kept_at_all_their_words_with_concept_positions(backbone):  # noqa: F811
    request = EraseRequest.build("cat", anchor="dog", retain=["a fox"])
    places = align(backbone, request, EraseProConfig(positions="concept")).plan.kept
    ends = backbone.tokenize(["a fox"]).ends[0]
    assert {p for _, p in places} >= set(range(1, ends + 1))


def test_covariance_protects_the_captions_that_it_is_given(pipe, backbone):  # noqa: F811
    mine = ("a photo of a fox", "the house in the photo")
    drift = [
        sum(moved(pipe, fit(backbone, positions="content", covariance=True, captions=captions), p) for p in mine)
        for captions in ((), mine)
    ]
    assert drift[1] < 0.5 * drift[0]


def test_captions_from_text_and_without_covariance():
    config = methods.make_config(ErasePro, {"covariance": "yes", "captions": "a fox;a house, red"})
    assert config.captions == ("a fox", "a house, red")
    with pytest.raises(UsageError, match="covariance=true"):
        EraseProConfig(captions=("a fox",))


def test_parameters_in_the_edit_are_plain(backbone):  # noqa: F811
    edit = fit(backbone, covariance=True, captions="a fox", positions="content")
    assert json.loads(json.dumps(edit.parameters))["captions"] == ["a fox"]
    assert all(isinstance(op.up, torch.Tensor) for op in edit.ops)


def test_captions_by_name_and_from_a_file(tmp_path):
    (tmp_path / "mine.txt").write_text("a fox\n\n a  house \na fox\n")
    assert written_out([f"@{tmp_path / 'mine.txt'}", "a tree"]) == ("a fox", "a house", "a tree")
    assert written_out([]) == GENERIC == written_out(["generic"])
    assert described(["a fox"])["count"] == 1 and described(["a fox"]) != described(["a house"])
    (tmp_path / "empty.txt").write_text("\n")
    for name in ("empty.txt", "missing.txt"):
        with pytest.raises(UsageError, match="one caption a line"):
            EraseProConfig(covariance=True, captions=(f"@{tmp_path / name}",))


def test_the_worlds_captions_are_those_of_training():
    texts = written_out(["emoji"])
    assert len(texts) == len(set(texts)) == 400 and texts == sentences(400)
    forms = [re.sub(r"\\{.\\}", "[a-z ]+", re.escape(f)) for f in (*HELD_OUT_SINGLE, *HELD_OUT_PAIR)]
    assert re.fullmatch(forms[4], "a ink style picture of a cat")  # the patterns know their own
    assert not any(re.fullmatch(form, text) for form in forms for text in texts)


def test_weighted_is_as_exact_and_spares_what_its_captions_say(pipe, backbone):  # noqa: F811
    mine, words = ("a photo of a fox", "the house in the photo", "a fox and a house"), ("a fox in the photo", "a house")
    _, found = methods.resolve("erasepro:weighted")
    moves = []
    for values in ({"captions": mine}, {"covariance": False}):
        edit = fit(backbone, **{**found.values, **values})
        assert edit.self_check["residual"] < 1e-9
        moves.append(sum(moved(pipe, edit, prompt) for prompt in words))
    assert moves[0] < moves[1]


def test_generic_captions_are_warned_of(backbone):  # noqa: F811
    assert any("generic" in line for line in fit(backbone, covariance=True).self_check["warnings"])
    edit = fit(backbone, covariance=True, captions="a fox;a house")
    assert not any("generic" in line for line in edit.self_check["warnings"])
    assert edit.self_check["captions"]["count"] == 2


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    import knobs_tables

    return knobs_tables


def row(label: str, line: str = "", refused: int = 0) -> dict:
    return {"label": label, "line": line, "refused": refused, "mean": {"gap": 0.25, "drift": 0.5, "rank": 3.0},
            "sd": {"gap": 0.125, "drift": 0.0, "rank": 0.0}}  # fmt: skip


def test_tables_go_between_their_markers_and_the_page_has_all(tables, tmp_path):
    page = tmp_path / "erasepro.md"
    page.write_text((ROOT / "docs" / "erasepro.md").read_text())
    kept = page.read_text().splitlines()[0]
    names = [*tables.KNOBS, "conflicts", "pictures", "run"]
    assert tables.rewrite(page, {name: f"table of {name}" for name in names}) == []
    assert all(page.read_text().count(f"table of {name}\n") == 1 for name in names)
    assert page.read_text().splitlines()[0] == kept
    assert tables.rewrite(page, {"nothing": "x"}) == ["nothing"]


def test_a_table_and_a_curve_of_known_numbers(tables):
    knob = tables.Knob("Title", (), ("rank",), axis="templates")
    text = tables.table(knob, [row("1", "exact"), row("2", "exact", refused=1)])
    assert text.splitlines()[2] == "| exact | 1 | 0.250 ± 0.125 | 0.500 | 3 |  |"
    assert text.splitlines()[3].endswith("| 3 | 1 |")
