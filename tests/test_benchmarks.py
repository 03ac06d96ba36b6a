"""The benchmark scripts run on tiny shapes, and every method gives there what its textbook form gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))


def run(script: str, *options: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shapes
    import torch

    cache = tmp_path_factory.mktemp("shapes")
    place = shapes.folder_of(cache, "sd14", True)
    with torch.random.fork_rng(devices=[]):
        shapes.build(place, "sd14-small")
    return place


@pytest.mark.slow
def test_the_script_measures_judges_and_writes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    options = ("--small", "--shapes", "sd14", "--only", "uce", "--cache", str(folder.parent), "--out", str(out))
    printed = run("closed_form.py", *options)
    found = json.loads(out.read_text())
    ours = found["results"]["sd14"]["uce"]["ours"]
    assert ours["edit_bytes"] > 0 and ours["peak_rss_mb"] < 1500
    assert abs(sum(ours["parts"].values()) - ours["seconds"]) < 0.01
    assert found["results"]["sd14"]["uce"]["relative_difference"]["weight"] < 1e-6
    assert found["bars"] == [] and "bar " not in printed  # the bars are for the real shapes


@pytest.mark.parametrize("script", ["closed_form", "startup"])
def test_tiny_shapes_never_get_into_the_docs(script: str, monkeypatch, capsys) -> None:
    module = __import__(script)
    monkeypatch.setattr(sys, "argv", [script, "--small", "--docs"])
    with pytest.raises(SystemExit):
        module.main()
    assert "leave out --small" in capsys.readouterr().err


def test_a_call_keeps_what_others_measured_and_writes_every_number(tmp_path: Path) -> None:
    from closed_form_kept import Kept

    from erasekit.errors import UsageError

    path, ours = tmp_path / "found.json", {"ours": {"seconds": 1.0, "peak_rss_mb": 9}}
    Kept(path, {"cpus": 2}, small=False).task("sd14", "mace", ours)
    kept = Kept(path, {"cpus": 2}, small=False)
    kept.task("sd14", "trce", {"error": "no"})
    points = [{"shape": "sd14", "line": "uce", "targets": n, "retained": 0} for n in (1, 10, 100)]
    for point, found in zip(
        points, ({"seconds": 1.0}, {"skipped": "over 60 s"}, {"failed": "exit code 1"}), strict=True
    ):
        kept.point(point | found)
    kept.point(points[2] | {"failed": "exit code 2"})
    found = json.loads(path.read_text())
    assert set(found["results"]["sd14"]) == {"mace", "trce"} and len(found["sweep"]) == 3
    again = Kept(path, {"cpus": 2}, small=False)
    assert [p["targets"] for p in again.measured("sd14", 60)] == [1, 10]
    assert [p["targets"] for p in again.measured("sd14", 90)] == [1] and again.measured("sd21", 60) == []
    kept.point(points[2] | {"skipped": "10 targets and 0 retained: over 60 s", "cached": {"seconds": 2.0}})
    assert kept.measured("sd14", 60)[-1] == points[2] | {"cached": {"seconds": 2.0}}, "why it is skipped is asked anew"
    assert kept.measured("sd14", 90)[-1] == kept.measured("sd14", 60)[-1]
    for environment, small in (({"cpus": 3}, False), ({"cpus": 2}, True)):
        with pytest.raises(UsageError, match="another --out"):
            Kept(path, environment, small=small)


def test_a_sweep_takes_known_points_and_gives_every_point_away() -> None:
    import sweep

    known, kept, asked = [{"line": "uce", "targets": 1, "retained": 0, "skipped": "over 60 s"}], [], []
    sweep.sweep(["uce"], lambda work: asked.append(work) or {}, small=True, known=known, keep=kept.append)
    assert asked == [] and [point["targets"] for point in kept] == [1, 1, 2, 2]


def test_a_sweep_that_goes_on_makes_no_call_again(tmp_path: Path) -> None:
    import sweep
    from closed_form_kept import Kept

    asked, kept = [], Kept(tmp_path / "found.json", {}, small=True)

    def measure(work) -> dict:
        asked.append((len(work.targets), len(work.retain), bool(work.retain_cache)))
        slow = len(work.retain) > 0 and not work.retain_cache
        return {"skipped": "over 60 s"} if slow else {"seconds": 1.0, "parts": {}, "peak_rss_mb": 1, "edit_bytes": 1}

    def again(limit: float) -> list[dict]:
        return sweep.sweep(["uce"], measure, small=True, fill=lambda work: {}, known=kept.measured("sd14", limit),
                           keep=lambda point: kept.point({"shape": "sd14"} | point))  # fmt: skip

    again(60)
    (whole, first), asked[:] = (kept.points, list(asked)), []
    assert sorted(first) == [(1, 0, False), (1, 3, False), (1, 3, True), (2, 0, False), (2, 3, True)]
    assert again(60) == whole and asked == []
    again(90)
    assert asked == [(1, 3, False)], "of another limit the one that took too long"


def test_the_fastest_of_several_runs_is_that_of_each_side() -> None:
    from beside import together
    from closed_form import fastest

    def run(ours: float, solve: float) -> dict:
        parts = {"solve": ours, "fingerprint": 0.0}
        taken = {"encode": 1.0, "prompts": [2, 3], "encodings": 1, "solve": solve}
        return together({"seconds": ours, "parts": parts}, taken, {"weight": 0.0})

    best = fastest([run(2.0, 9.0), run(1.0, 8.0), run(3.0, 7.0)])
    assert (
        best["ours"]["seconds"] == 1.0 and best["textbook"]["solve"] == 7.0 and best["ratios"]["after_encoding"] == 7.0
    )
    assert fastest([run(1.0, 1.0), {"failed": "why"}]) == {"failed": "why"}


def test_encoding_is_never_counted_as_solving_nor_twice() -> None:
    from beside import numbers, together

    assert numbers(["a", "", "b", "", ""]) == [3, 5]
    taken = {"encode": 3.0, "prompts": [3, 5], "encodings": 10, "rounds": 2, "solve": 4.0}
    found = together({"seconds": 1.0, "parts": {"solve": 1.0, "fingerprint": 1.0}}, taken, {})
    assert found["textbook_seconds"] == {
        "as_released": 12 * 5.0 + 4,
        "encoded_once": 3 * 3.0 + 4,
        "after_encoding": 4.0,
    }
    assert found["ratios"]["after_encoding"] == 2.0


@pytest.mark.parametrize("task", ["uce", "large", "rece", "rece_many", "speed"])
def test_methods_equal_their_textbook_forms(folder: Path, tmp_path: Path, task: str) -> None:
    from comparing import COMPARE
    from tasks import TASKS

    chosen = TASKS[task]
    found = COMPARE[chosen.against](chosen.work(True), folder, tmp_path / "edit.safetensors", True)
    assert found["relative_difference"]["weight"] < 1e-6
    assert found["relative_difference"]["update"] < 1e-4
    assert found["relative_difference"]["features"] < 1e-5
    assert all(seconds > 0 for seconds in found["textbook_seconds"].values())


def test_a_bar_is_met_or_missed() -> None:
    from tasks import bars, told

    ours = {"seconds": 4.0, "peak_rss_mb": 1600}
    taken = {"prompts": [2, 3], "matrices": [32, 32]}
    rows = bars(
        {"sd14": {"rece": {"ours": ours, "textbook": taken, "ratios": {"as_released": 30.0, "encoded_once": 2.0}}}}
    )
    (missing,) = bars({"sd14": {"trce": {"error": "no"}}})
    assert told(missing) == "trce: not measured" and told(rows[0]) == "rece: seconds: 4, bar 3: missed"
    assert {row["what"]: row["met"] for row in rows} == {
        "rece: seconds": False,
        "rece: times faster, as_released (computed)": True,
        "rece: times faster, encoded_once (run)": False,
        "rece: peak MB": False,
    }


@pytest.mark.parametrize(("residual", "met"), [(5.6e-8, True), (2e-5, False)])
def test_the_residual_of_erasepro_has_a_bar(residual: float, met: bool) -> None:
    from tasks import TASKS, bars

    ours = {"seconds": 1.0, "peak_rss_mb": 900, "residual": residual}
    names = [name for name in TASKS if name.startswith("erasepro")]
    found = [bar for bar in bars({"sd14": {name: {"ours": ours} for name in names}}) if "residual" in bar["what"]]
    assert [(bar["bound"], bar["met"]) for bar in found] == [(1e-5, met)] * len(names) and len(names) == 3


def test_a_ratio_says_whether_the_textbook_ran_whole() -> None:
    from beside import together
    from tasks import basis

    parts, taken = (
        {"solve": 1.0, "fingerprint": 1.0},
        {"encode": 3.0, "prompts": [111, 121], "encodings": 32, "solve": 4.0},
    )
    part = together({"seconds": 1.0, "parts": parts}, taken | {"matrices": [3, 32]}, {})
    assert {basis(kind, part["textbook"]) for kind in part["ratios"]} == {"computed"}
    whole = together({"seconds": 1.0, "parts": parts}, taken | {"matrices": [32, 32], "full": True, "loop": 99.0}, {})
    assert {basis(kind, whole["textbook"]) for kind in whole["ratios"]} == {"run"} and len(whole["ratios"]) == 3
    assert whole["textbook_seconds"]["as_released"] == 99.0, "by the clock, whatever one encoding took"
    assert basis("encoded_once", taken | {"matrices": [32, 32], "full": True, "rounds": 3}) == "computed"


def test_the_released_loop_encodes_every_prompt_for_every_matrix_and_gives_the_edit(
    folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    import comparing
    import textbook
    from tasks import TASKS

    from erasekit import erase

    work, asked = TASKS["uce"].work(True), []
    plain = textbook.Encoder.subject
    monkeypatch.setattr(textbook.Encoder, "subject", lambda self, prompt: asked.append(prompt) or plain(self, prompt))
    edit = erase(str(folder), work.targets, **work.options())
    old = comparing.originals(folder, edit)
    seconds, found = comparing.released_uce(work, folder, old, max(0.1, 1 / (1 + len(work.retain))))
    assert seconds > 0 and list(found) == list(old)
    once = [*(name for target in work.targets for name in (target, "")), "", *work.retain]
    assert asked == ["", *once * len(old)], "the first only warms"
    assert textbook.difference(edit, old, found)["weight"] < 5e-3, "as near as inverses in float32 come"
    assert f"{len(old)} of {len(old)} matrices" in capsys.readouterr().err


def test_no_retained_concept_begins_with_a_targets_word() -> None:
    from shapes import concepts
    from tasks import TASKS

    work = TASKS["erasepro_large"].work(False)
    assert (len(work.targets), len(work.retain), len(set(work.retain))) == (100, 1000, 1000)
    assert not {name.split()[0] for name in work.retain} & {*work.targets, work.anchor}
    assert TASKS["large"].work(False).retain == tuple(concepts(1000, start=100))


def test_a_command_is_measured_as_typed(folder: Path, tmp_path: Path, monkeypatch) -> None:
    import typed
    from measuring import Work

    asked, work = [], Work("uce", ("big cat",), ("a fox",), "dog", {"tokens": "last"})
    ended = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(typed.subprocess, "run", lambda command, **_: asked.append(command) or ended)
    found = typed.run(work, folder)
    assert found["command"] == ("erasekit erase 'big cat' --model FOLDER --method uce --out EDIT.safetensors --anchor dog "
                                "--retain 'a fox' --set tokens=last")  # fmt: skip
    assert (
        asked[0][1:5] == ["-m", "erasekit", "erase", "big cat"] and found["seconds"] >= 0 and found["peak_rss_mb"] >= 0
    )


def test_a_command_that_failed_once_failed(monkeypatch) -> None:
    import closed_form
    import measuring

    runs = [{"seconds": 2.0}, {"failed": "exit code 1"}, {"seconds": 1.0}, {"failed": "late"}]
    for left, wanted in ((runs, runs[1]), (runs[::2], runs[2])):
        each = iter(left)
        monkeypatch.setattr(closed_form.measuring, "child", lambda *given, each=each: next(each))
        assert closed_form.as_typed(Path(), measuring.Work("uce", ("cat",)), len(left)) == wanted


@pytest.mark.slow
def test_the_command_as_typed_runs(folder: Path) -> None:
    import typed
    from measuring import Work

    found = typed.run(Work("uce", ("cat",)), folder)
    assert found["seconds"] > 0 and found["peak_rss_mb"] > 50


def test_a_sweep_skips_what_asks_for_more_than_what_took_too_long() -> None:
    import sweep

    asked = []

    def measure(work) -> dict:
        asked.append((len(work.targets), len(work.retain)))
        if len(work.retain) >= 1000:
            return {"skipped": "over 60 s"}
        return {"seconds": 1.0, "parts": {}, "peak_rss_mb": 1, "edit_bytes": 1}

    points = sweep.sweep(["uce"], measure, small=False)
    assert len(points) == len(sweep.TARGETS) * len(sweep.RETAINED)
    assert max(asked) == (1000, 100) and (1, 1000) in asked and (1, 10_000) not in asked and (10, 1000) not in asked
    assert points[-1]["skipped"] == "1 targets and 1000 retained: over 60 s"


def test_a_sweep_fills_its_cache_once_without_a_limit_and_times_it_where_the_plain_call_took_too_long() -> None:
    import sweep

    filled, timed = [], []

    def measure(work) -> dict:
        timed.append(work)
        slow = len(work.retain) >= 1000 and not work.retain_cache
        return {"skipped": "over 60 s"} if slow else {"seconds": 1.0, "parts": {}, "peak_rss_mb": 1, "edit_bytes": 1}

    points = sweep.sweep(["uce", "rece", "erasepro"], measure, small=False, fill=lambda work: filled.append(work) or {})
    assert [(w.method, len(w.targets), len(w.retain)) for w in filled] == [
        (name, 1, count) for name in ("uce", "rece") for count in sweep.RETAINED[1:]
    ]
    assert len({w.retain_cache for w in timed + filled} - {None}) == 1
    assert len({w.retain for w in timed if w.method != "erasepro"}) == len(sweep.RETAINED), "one list a size"
    cached = [p for p in points if "cached" in p]
    assert {p["line"] for p in cached} == {"uce", "rece"} and len(cached) == 2 * 16
    assert all(p["cached"]["seconds"] for p in cached) and sum("skipped" in p for p in cached) == 2 * 12


def test_what_the_exact_method_is_asked_for_can_be_served_at_every_point() -> None:
    import sweep

    works = [sweep.asked("erasepro", count, kept) for count in sweep.TARGETS for kept in sweep.RETAINED]
    assert len({w.retain for w in works}) == len(sweep.RETAINED), "one list a size"
    for work in works:
        assert all(" " not in target for target in work.targets) and len(set(work.retain)) == len(work.retain)
        assert not {one.split()[0] for one in work.retain} & set(work.targets), "no column is asked to go to two places"


def test_a_process_is_asked_for_more_than_an_argument_holds(tmp_path: Path) -> None:
    import measuring

    script = tmp_path / "script.py"
    script.write_text(f"import sys, json\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\nimport measuring\n"
                      "print(json.dumps(len(measuring.given(sys.argv[2])['retain'])))\n")  # fmt: skip
    assert measuring.child(script, {"retain": ["a retained concept"] * 30_000}) == 30_000
    assert measuring.given('{"retain": []}') == {"retain": []}


def test_a_sweep_leaves_out_lists_whose_cache_takes_too_long_to_fill() -> None:
    import sweep

    filled = []

    def fill(work) -> dict:
        filled.append((work.method, len(work.retain)))
        return {"skipped": "over 300 s"} if len(work.retain) >= 1000 else {}

    found = {"seconds": 1.0, "parts": {}, "peak_rss_mb": 1, "edit_bytes": 1}
    points = sweep.sweep(["uce", "rece", "speed"], lambda work: dict(found), small=False, fill=fill)
    assert filled == [("uce", 100), ("uce", 1000), ("rece", 100), ("speed", 100), ("speed", 1000)], "one moment of two lines"
    cached = {(p["line"], p["targets"], p["retained"]): p["cached"] for p in points if "cached" in p}
    assert len(cached) == 3 * 4 * 4 and all("seconds" in cached[line, 1000, 100] for line in ("uce", "rece", "speed"))
    assert cached["uce", 1, 1000] == cached["rece", 1000, 30_000] == {"skipped": sweep.UNFILLED}


def test_a_sweep_measures_every_point(folder: Path, tmp_path: Path) -> None:
    import sweep
    from measuring import measured

    points = sweep.sweep(["uce, last tokens"], lambda work: measured(work, folder, tmp_path / "edit")[0], small=True)
    assert [(p["targets"], p["retained"]) for p in points] == [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert all(p["seconds"] > 0 for p in points)
    assert all("seconds" in p["cached"] for p in points if "cached" in p)


def test_sd21_is_of_the_other_family(tmp_path: Path) -> None:
    import torch
    from measuring import Work, measured
    from shapes import build, concepts

    with torch.random.fork_rng(devices=[]):
        build(tmp_path, "sd21-small")
    found, edit = measured(Work("uce", tuple(concepts(1))), tmp_path, tmp_path / "edit")
    assert edit.base.family == "sd2" and found["modules"] == len(edit.ops) > 0


def test_names_are_different_and_one_token_each(folder: Path) -> None:
    from shapes import concepts, words
    from transformers import CLIPTokenizer

    assert len(set(concepts(31_000))) == 31_000 and not set(concepts(1000)) & set(concepts(30_000, start=1000))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert len(set(words(1000))) == 1000
    assert {len(ids) for ids in tokenizer(words(200))["input_ids"]} == {3}
    assert {len(ids) for ids in tokenizer(concepts(200))["input_ids"]} == {4}


def test_sdxl_has_140_cross_attention_matrices() -> None:
    from shapes import xl_matrices

    assert xl_matrices(small=False) == {(640, 2048): 20, (1280, 2048): 120}


def test_the_solves_alone_equal_the_textbook() -> None:
    import solver_only
    import torch

    with torch.random.fork_rng(devices=[]):
        found = solver_only.run(small=True)
    compared = [case["difference"] for case in found["cases"].values() if "difference" in case]
    assert len(compared) == 2 and max(compared) < 1e-6


def test_charts_are_well_formed(tmp_path: Path) -> None:
    import plot_closed_form as plot

    ours = {"seconds": 2.0, "peak_rss_mb": 900, "parts": {"read": 0.5, "encode": 1.0, "solve": 0.5}}
    results = {"sd14": {"uce": {"ours": ours, "ratios": {"encoded_once": 25.0}}, "rece": {"error": "no <method>"}}}
    points = [
        {"line": "uce", "targets": 1, "retained": 0, "seconds": 1.0},
        {"line": "uce", "targets": 1, "retained": 100, "seconds": 2.0, "cached": {"seconds": 1.0}},
        {"line": "uce", "targets": 10, "retained": 0, "skipped": "over 60 s"},
    ]
    for chart in (plot.tasks_chart(results), plot.ratios_chart(results), plot.sweep_chart(points)):
        assert ElementTree.fromstring(chart).tag.endswith("svg") and "nan" not in chart
    assert plot.sweep_chart(points) == plot.sweep_chart(points[::-1]), "whatever was measured first"
    assert plot.sweep_chart(points).count('fill="white" stroke') == 1, "a cached point alone has a mark"


def test_startup_measures_what_it_has_bars_for(tmp_path: Path, capsys, monkeypatch) -> None:
    import startup

    out, page = tmp_path / "startup.json", tmp_path / "page.md"
    page.write_text("a\n<!-- begin startup -->\n<!-- end startup -->\nb\n")
    taken = startup.seconds(["-c", "pass"], 1)
    assert 0 < taken["min"] == taken["median"]
    monkeypatch.setattr(
        startup, "seconds", lambda arguments, runs: taken
    )  # both without new processes that import torch
    monkeypatch.setattr(startup.measuring, "child", lambda script, asked: startup.run_child(asked))
    monkeypatch.setattr(startup, "IMAGES", 1)
    monkeypatch.setattr(startup, "STEPS", 1)
    monkeypatch.setattr(sys, "argv", ["startup", "--out", str(out), "--docs", str(page)])
    startup.main()
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert set(found["results"]) == {"python -c pass", "import erasekit", "erasekit --help"}
    assert [bar["what"] for bar in found["bars"]] == list(startup.BARS) and printed.strip() in page.read_text()
    assert found["emoji"]["tensor_bytes"] < found["emoji"]["edit_bytes"] < found["emoji"]["weight_bytes"] / 20


def test_startups_bars_are_met_or_missed() -> None:
    import startup

    taken = {"python -c pass": {"median": 0.02}, "import erasekit": {"median": 0.1}, "erasekit --help": {"median": 0.6}}
    world = {"seconds": 9.0, "load_seconds": 1.0, "edit_bytes": 2000, "tensor_bytes": 900, "weight_bytes": 100_000}
    rows = startup.bars(taken, world)
    assert [row["met"] for row in rows] == [True, False, True, False]
    said = startup.report({"emoji": world, "results": taken, "bars": rows, "environment": {"cpus": 2, "threads": 2}})
    assert "| erasekit --help | 0.6 s | 0.5 s | missed |" in said and "| 1/50 | 1/100 | missed |" in said
    assert "1,100 what it says of itself" in said


def test_the_page_of_closed_forms_has_the_imports_beside_the_seconds(tmp_path: Path) -> None:
    import closed_form_page

    found = json.loads(closed_form_page.RESULTS.read_text())
    said = closed_form_page.report(found)
    ours = found["results"]["sd14"]["erasepro"]["ours"]
    assert f"| `erasepro` | {ours['seconds']:.2f} |" in said and f"| {ours['import_seconds']:.2f} |" in said
    assert "imports, s" in said and "- rece: seconds" in said and "- erasepro: residual after the cast" in said
    assert "`as_released` of `rece` was not run" in said
    took = {"command": "erasekit erase a --model FOLDER", "seconds": 4.5, "peak_rss_mb": 960}
    typed = {"results": {"sd14": {"erasepro": found["results"]["sd14"]["erasepro"] | {"typed": took}}}}
    assert "`erasekit erase a --model FOLDER`: 4.50 s" in (beside := closed_form_page.report(typed))
    assert f"- erasepro: seconds: {ours['seconds']:.4g}, bar 3" in beside, "the bar keeps its number"
    failed = {"results": {"sd14": {"erasepro": found["results"]["sd14"]["erasepro"] | {"typed": {"failed": "exit code 1"}}}}}
    assert "as typed" not in closed_form_page.report(failed) and "as typed" in beside
    assert said in (ROOT / "docs" / "benchmarks.md").read_text(), "run benchmarks/closed_form_page.py"
    page = tmp_path / "page.md"
    names = ("closed_form", "closed_form_sd21", "closed_form_sdxl", "closed_form_sweep")
    page.write_text("".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in names))
    closed_form_page.write(found, page)
    assert said in page.read_text()


def test_the_page_has_the_other_shapes_and_the_sweep() -> None:
    import closed_form_page as page

    ours = {"seconds": 2.0, "parts": dict.fromkeys(page.PARTS, 0.4), "import_seconds": 1.0, "peak_rss_mb": 900,
            "edit_bytes": 2_000_000, "weights_over_edit": 9.0}  # fmt: skip
    head, rule, row = page.tasks({"uce": {"ours": ours}, "rece": {"error": "no"}})
    assert head.endswith("| weights over edit |") and row.startswith("| `uce` | 2.00 |") and row.count("|") == rule.count("|")
    case = {"seconds": 1.5, "shared_solve": 0.5, "edit_bytes": 3e6}
    said = page.sdxl({"matrices": 140, "peak_rss_mb": 9, "cases": {"a": case | {"ratio": 7.0, "difference": 1e-8}, "b": case}})
    assert "| a | 1.50 | 0.50 | 3 | 7 | 1e-08 |" in said and "| b | 1.50 | 0.50 | 3 |  |  |" in said
    points = [{"line": "uce", "targets": 1, "retained": 0, "seconds": 1.0},
              {"line": "uce", "targets": 1, "retained": 1000, "skipped": "over 60 s", "cached": {"seconds": 0.5}},
              {"line": "uce", "targets": 10, "retained": 0, "error": "refused"}]  # fmt: skip
    assert page.swept(points).splitlines()[2:] == ["| `uce` | 1 | 1.00 | – (0.50) |", "| `uce` | 10 | refused | – |"]
    points[0]["peak_rss_mb"], points[0]["cached"] = 900, {"seconds": 0.5, "peak_rss_mb": 1100}
    points.append({"line": "speed", "targets": 1, "retained": 1000, "seconds": 1.0, "peak_rss_mb": 1200})
    assert page.swept(points).splitlines()[-1] == (
        "The most memory of each: `speed` 1,200 MB (1 targets, 1,000 retained); `uce` 1,100 MB (1 targets, 0 retained, cached)."
    )


def test_the_ablation_prints_every_part_by_layer(sd1_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    import ablation_erasepro as ablation

    out = tmp_path / "numbers.json"
    monkeypatch.setattr(
        sys, "argv", ["ablation", "--model", str(sd1_folder), "--json", str(out), "--set", "positions=content"]
    )
    ablation.main()
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert list(found) == ["progressive", "text", "deep", "kv", "v_only"]
    assert set(found["progressive"]["levels"]) == {"text layer 0", "text layer 1", "cross"} and "last gap" in printed
    assert set(found["deep"]["levels"]) == {"cross"} and set(found["text"]["levels"]) == {
        "text layer 0",
        "text layer 1",
    }
    assert (
        found["progressive"]["levels"]["cross"]["relative_update"] < found["deep"]["levels"]["cross"]["relative_update"]
    )


def test_make_bench_runs_scripts_that_exist() -> None:
    named = [
        line.split("/")[1].split()[0] for line in (ROOT / "Makefile").read_text().splitlines() if "$(BENCH)/" in line
    ]
    assert "ablation_erasepro.py" in named and all((ROOT / "benchmarks" / name).is_file() for name in named)
