"""The pictures of single erasures: which rows belong to what, what is drawn again, and that each counts once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import emoji_bars  # noqa: E402
import emoji_erasure  # noqa: E402
import emoji_erasure_page  # noqa: E402
import emoji_rows  # noqa: E402
from emoji_prompts import PAIRS, complex_prompts, other_prompts  # noqa: E402
from emoji_rows import Recorder  # noqa: E402

import erasekit  # noqa: E402
from erasekit.errors import UsageError  # noqa: E402
from erasekit.evaluation.judges import emoji  # noqa: E402
from erasekit.worlds.emoji.concepts import names  # noqa: E402
from erasekit.worlds.emoji.judge import Verdict  # noqa: E402

PROMPTS = other_prompts("", "", 10)
MADE = {"model_sha256": "m", "sampling": {"steps": 2, "guidance": 3.0}}
Log = list[tuple[str, int]]


@pytest.fixture
def drawn(monkeypatch) -> Log:
    """What was drawn, in order."""
    log: Log = []

    def sample(pipe, part, *, batch, steps, guidance):
        for shot in part:
            log.append((shot.prompt, shot.seed))
            yield shot, np.zeros((64, 64, 3), dtype=np.uint8)

    monkeypatch.setattr(emoji_rows, "sample", sample)
    monkeypatch.setattr(emoji_rows, "BATCH", 4)
    return log


@pytest.fixture
def make(drawn, sd1, tmp_path):
    """A recorder of the same file each time; its judge finds every word of the prompt that it has a label for."""

    def judge(images) -> Verdict:
        texts = [text for text, _ in drawn[-len(images) :]]
        said = torch.tensor([[float(f" {name} " in f" {text} ") for name in names()] for text in texts])
        return Verdict(said, torch.eye(5)[[0] * len(texts)], torch.eye(8)[[0] * len(texts)])

    return lambda: Recorder(tmp_path / "rows.jsonl", sd1, judge, MADE)


def uce(pipe, lamb: float) -> erasekit.Edit:
    return erasekit.erase(pipe, "cat", anchor="dog", method="uce", lamb=lamb)


def test_a_stopped_run_goes_on_behind_its_last_whole_line(make, drawn) -> None:
    make().record("base", PROMPTS[:4], range(1))
    path = make().path
    with path.open("a") as file:
        file.write('{"run": "half a li')
    rows = make().record("base", PROMPTS, range(1))
    assert drawn == [(p.text, 0) for p in PROMPTS] and [row.best for row in rows] == [p.wanted for p in PROMPTS]
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == [p.text for p in PROMPTS]
    assert make().record("base", PROMPTS, range(1)) == rows and len(drawn) == 10


def test_a_run_is_known_by_what_its_edit_changes(sd1) -> None:
    first, second = uce(sd1, 0.5), uce(sd1, 0.6)
    assert emoji_rows.run_of("uce|cat", first) != emoji_rows.run_of("uce|cat", second)
    assert emoji_rows.run_of("uce|cat", first) == emoji_rows.run_of("uce|cat", uce(sd1, 0.5))
    op = SimpleNamespace(describe=lambda: {"config": {"at": 1}}, tensors=dict)
    other = SimpleNamespace(describe=lambda: {"config": {"at": 2}}, tensors=dict)
    digests = {emoji_rows.edit_digest(SimpleNamespace(ops=[one])) for one in (op, other)}
    assert len(digests) == 2, "an op that is code has settings beside its tensors"


def test_rows_of_another_model_judge_or_sampling_are_in_another_file(sd1_folder, tmp_path, monkeypatch) -> None:
    facts = {"judge": "a" * 64, "model": "b" * 64, "steps": 2}

    def path() -> Path:
        return emoji_rows.recorder(str(sd1_folder), tmp_path / "out").path

    monkeypatch.setattr(erasekit, "load", lambda model: None)
    monkeypatch.setattr(emoji, "load", lambda: SimpleNamespace(name="eye", weights_sha256=facts["judge"], world=None))
    monkeypatch.setattr(emoji_rows, "model_sha256", lambda folder: facts["model"])
    monkeypatch.setattr(emoji_rows.models, "defaults", lambda folder: {"steps": facts["steps"], "guidance": 3.0})
    found = [path(), path()]
    for key, value in {"judge": "c" * 64, "model": "d" * 64, "steps": 3}.items():
        facts[key] = value
        found.append(path())
    assert found[0] == found[1] and len(set(found)) == 4 and found[0].match("out/rows-*.jsonl")


def test_a_picture_that_targets_share_counts_once(make, monkeypatch, capsys) -> None:
    real = erasekit.erase
    monkeypatch.setattr(erasekit, "erase", lambda pipe, target, *, anchor, method, **more: real(
        pipe, "cat", anchor="dog", method=method, **more))  # fmt: skip
    words = "--targets 2 --prompts 3 --seeds 2 --base-seeds 1 --others 5 --other-seeds 1"
    args = emoji_erasure.options(words.split())
    found = emoji_erasure.one_method(make(), "uce:lamb=0.6", args)
    shared = {p.text for target in ("cat", "wolf") for p in other_prompts(target, PAIRS[target], 5)}
    count = {name: measure["images"] for name, measure in found["all"].items()}
    assert count["others before"] == len(shared) < 10 and count["others after"] == 10
    assert count["target before"] == 6 and count["target after"] == count["anchor asked for"] == 12
    assert found["all"]["others before"]["hits"] == len(shared) and found["all"]["target after"]["hits"] == 12
    assert list(found["targets"]) == list(found["edits"]) == ["cat", "wolf"] and found["plan"]["base_seeds"] == 1
    printed = capsys.readouterr().out
    assert f"n = {len(shared)}" in printed and "| target found | 100.00 % (75.75 to 100.00), n = 12 |" in printed
    assert "| anchor found, against the unedited model asked for it | -100.00 points" in printed
    assert {bar["name"]: bar["met"] for bar in found["bars"]} == {
        "target": False, "anchor": False, "others": True, "style": True, "background": True}  # fmt: skip
    seen = {kind: shares["target after"]["images"] for kind, shares in found["sentences"].items()}
    assert seen == {"one object": 8, "two objects": 4} and set(found["missed"]) == {"cat", "wolf", *seen}


def pictures(run: str, right: list[bool], text: str = "p") -> dict:
    """Ten seeds of each prompt."""
    return {(run, f"{text}{i // 10}", i % 10): hit for i, hit in enumerate(right)}


@pytest.mark.parametrize(("bar", "most"), [("target", 1), ("anchor", 5), ("others", 2), ("style", 1)])
def test_a_bar_is_met_up_to_its_bound_and_missed_beyond(bar: str, most: int) -> None:
    (one,) = (each for each in emoji_bars.BARS if each.name == bar)
    twins = {f"p{i}": f"q{i}" for i in range(10)}

    def met(lost: int) -> bool:
        wrong = [i < lost for i in range(100)]
        after = pictures("uce|cat", wrong if bar == "target" else [not hit for hit in wrong])
        before = pictures("base", [True] * 100, "q" if bar == "anchor" else "p")
        (found,) = emoji_bars.judged({one.after: after, one.before: before}, twins)
        assert found["n"] == 100 and found["low"] <= found["value"] <= found["high"]
        return found["met"]

    assert met(most) and not met(40 if bar == "style" else most + 1)  # 40: four whole prompts of ten


def test_a_twin_weighs_as_often_as_it_is_compared_and_lacking_ones_not_at_all() -> None:
    before = {("base", "x", 0): False, ("base", "y", 0): True}
    after = {("a", "x", 0): False, ("b", "x", 0): False, ("a", "y", 0): True, ("a", "y", 1): False}
    (found,) = emoji_bars.judged({"others before": before, "others after": after}, {})
    assert (found["value"], found["n"], found["met"]) == (0, 3, True)
    assert emoji_bars.judged({"others after": after}, {}) == []


def of_cats(seeds: int) -> dict:
    """What a results file has of a method that drew every cat as a dog, but beside a second object."""
    args = emoji_erasure.options(["--prompts", "4", "--seeds", str(seeds)])
    asked, replaced = (complex_prompts("cat", "dog", noun, 4) for noun in ("cat", "dog"))

    def hits(run: str, prompts: list, right) -> dict:
        return {(run, p.text, seed): right(p) for p in prompts for seed in range(seeds)}

    each = {"cat": {
        "target before": hits("base", asked, lambda p: True), "target after": hits("e", asked, lambda p: p.objects == 2),
        "anchor asked for": hits("base", replaced, lambda p: True), "anchor after": hits("e", asked, lambda p: p.objects == 1),
        "others before": hits("base", PROMPTS, lambda p: True), "others after": hits("e", PROMPTS, lambda p: True),
    }}  # fmt: skip
    plan = {key: getattr(args, key) for key in emoji_erasure.PLAN}
    return {"plan": plan, "edits": {}, **emoji_erasure.numbers(each, 4)}


def test_pages_have_the_bars_and_what_misses_them(tmp_path) -> None:
    long, short = tmp_path / "long.md", tmp_path / "short.md"
    long.write_text("a\n<!-- begin erasure -->\nold\n<!-- end erasure -->\nb")
    short.write_text("a\n<!-- begin erasure table -->\nold\n<!-- end erasure table -->\nb")
    found = {"methods": {"uce": of_cats(2), "rece": of_cats(2), "erasepro": of_cats(3)}}
    results = tmp_path / "results.json"
    results.write_text(json.dumps(found))
    emoji_erasure_page.main(["--results", str(results), "--docs", str(long), str(short)])
    said, table = long.read_text(), short.read_text()
    assert "old" not in said + table and said.count("| missed |") == 3 * 2 and "missed" not in table
    assert "--methods uce rece --targets 1 --prompts 4 --seeds 2" in table and table.count("| no edit |") == 2
    assert "1 targets instead of 10, 4 prompts instead of 20, 2 seeds instead of 8" in table
    assert "| `rece` | 50.0 % (21.5 to 78.5) | 50.0 % (21.5 to 78.5) | 100.0 %" in table
    assert said.count("| cat to dog | 50.0 % | 50.0 % | 100.0 % | 100.0 % | target, anchor |") == 3
    assert "| sentences of one object | 0.0 % | 100.0 % | 100.0 % | – |  |" in said
    assert "| sentences of two objects | 100.0 % | 0.0 % | 100.0 % | – | target, anchor |" in said


def test_a_page_without_a_place_is_said_before_anything_is_drawn(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(emoji_erasure, "recorder", lambda *given: pytest.fail("it began"))
    (page := tmp_path / "page.md").write_text("no markers")
    for path, said in {page: "begin erasure", tmp_path / "none.md": "cannot be read"}.items():
        with pytest.raises(UsageError, match=said):
            emoji_erasure.main(["--methods", "uce", "--docs", str(path), "--out", str(tmp_path)])
    for old in ({"erasepro": {"all": {}}}, {"made": MADE, "methods": {"uce": of_cats(1), "erasepro": {"all": {}}}}):
        with pytest.raises(UsageError, match=r"of erasepro are .* measure them again .* --methods erasepro$"):
            emoji_erasure_page.blocks(old)
    emoji_erasure_page.check(emoji_erasure_page.PAGES)


def test_the_pages_have_the_committed_numbers() -> None:
    found = json.loads(emoji_erasure_page.RESULTS.read_text())
    if "methods" not in found:
        pytest.skip("the committed pictures were counted in an older layout")
    texts, pages = emoji_erasure_page.blocks(found), (page.read_text() for page in emoji_erasure_page.PAGES)
    assert all(text in page for text, page in zip((texts["erasure"], texts["erasure table"]), pages, strict=True)), (
        "run benchmarks/emoji_erasure_page.py")


def test_results_keep_the_other_methods_of_the_same_model(tmp_path) -> None:
    path = tmp_path / "results.json"
    emoji_erasure.save("erasepro", {"all": 1}, MADE, path)
    emoji_erasure.save("uce", {"all": 2}, MADE, path)
    emoji_erasure.save("uce", {"all": 3}, MADE, path)
    assert json.loads(path.read_text()) == {"made": MADE, "methods": {"erasepro": {"all": 1}, "uce": {"all": 3}}}
    emoji_erasure.save("uce", {"all": 4}, MADE | {"model_sha256": "n"}, path)
    assert json.loads(path.read_text())["methods"] == {"uce": {"all": 4}}


def test_numbers_of_an_older_layout_beside_the_new_ones_are_said_before_anything_is_drawn(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(emoji_erasure, "recorder", lambda *given: SimpleNamespace(made=MADE))
    monkeypatch.setattr(emoji_erasure, "one_method", lambda draw, method, args: of_cats(1))
    (page := tmp_path / "page.md").write_text("<!-- begin erasure table -->\n<!-- end erasure table -->")
    emoji_erasure.save("rece", {"all": {}}, MADE, tmp_path / "results.json")
    words = ["--docs", str(page), "--out", str(tmp_path), "--methods", "uce"]
    with pytest.raises(UsageError, match="the results of rece are of an older layout"):
        emoji_erasure.main(words)
    assert list(emoji_erasure.earlier(MADE, tmp_path / "results.json")) == ["rece"]
    emoji_erasure.main([*words, "rece"])
    assert "| `uce` |" in page.read_text() and "| `rece` |" in page.read_text()


@pytest.mark.parametrize("method", ["erasepor", "erasepro:nonesuch", "uce:nonesuch=1"])
def test_a_wrong_method_is_said_before_anything_is_drawn(method, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(emoji_erasure, "recorder", lambda *given: pytest.fail("it began"))
    with pytest.raises(UsageError, match=method.split(":")[-1].split("=")[0]):
        emoji_erasure.main(["--methods", "uce", method, "--out", str(tmp_path)])


@pytest.mark.parametrize("words", ["--targets 0", "--targets 13", "--seeds 0", "--others 0"])
def test_a_count_of_nothing_is_bad_usage(words, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        emoji_erasure.options(words.split())
    assert error.value.code == 2 and words.split()[0] in capsys.readouterr().err
