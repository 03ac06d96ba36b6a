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


def test_the_script_measures_judges_and_writes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    options = ("--small", "--shapes", "sd14", "--only", "uce", "--cache", str(folder.parent), "--out", str(out))
    printed = run("closed_form.py", *options)
    found = json.loads(out.read_text())
    ours = found["results"]["sd14"]["uce"]["ours"]
    assert ours["edit_bytes"] > 0 and ours["peak_rss_mb"] < 1500
    assert abs(sum(ours["parts"].values()) - ours["seconds"]) < 0.01
    assert {bar["what"]: bar["met"] for bar in found["bars"]}["uce: relative difference"]
    assert "uce: peak MB" in printed and "met" in printed


@pytest.mark.parametrize("task", ["uce", "large", "rece", "speed"])
def test_methods_equal_their_textbook_forms(folder: Path, tmp_path: Path, task: str) -> None:
    from comparing import COMPARE
    from tasks import TASKS

    chosen = TASKS[task]
    found = COMPARE[chosen.against](chosen.work(True), folder, tmp_path / "edit.safetensors", True)
    assert found["relative_difference"]["weight"] < 1e-6
    assert found["relative_difference"]["update"] < 1e-4
    assert found["relative_difference"]["features"] < 1e-5
    assert all(ratio > 0 for ratio in found["ratios"].values())


def test_a_bar_is_met_or_missed() -> None:
    from tasks import bars

    ours = {"seconds": 4.0, "peak_rss_mb": 1600}
    rows = bars({"sd14": {"rece": {"ours": ours, "ratios": {"as_released": 30.0, "encoded_once": 2.0}}}})
    assert {row["what"]: row["met"] for row in rows} == {
        "rece: seconds": False,
        "rece: times faster, as_released": True,
        "rece: times faster, encoded_once": False,
        "rece: peak MB": False,
    }


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


def test_startup_measures_what_it_has_bars_for(tmp_path: Path, capsys, monkeypatch) -> None:
    import startup

    out, page = tmp_path / "startup.json", tmp_path / "page.md"
    page.write_text("a\n<!-- begin startup -->\n<!-- end startup -->\nb\n")
    taken = startup.seconds(["-c", "pass"], 1)
    assert 0 < taken["min"] == taken["median"]
    monkeypatch.setattr(startup, "seconds", lambda arguments, runs: taken)  # both without new processes that import torch
    monkeypatch.setattr(startup.measuring, "child", lambda script, asked: startup.run_child(asked))
    monkeypatch.setattr(sys, "argv", ["startup", "--small", "--out", str(out), "--docs", str(page)])
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
    assert "imports, s" in said and "- rece: seconds" in said
    assert said in (ROOT / "docs" / "benchmarks.md").read_text(), "run benchmarks/closed_form_page.py"
    page = tmp_path / "page.md"
    page.write_text("<!-- begin closed_form -->\n<!-- end closed_form -->")
    closed_form_page.write(found, page)
    assert said in page.read_text()


def test_the_ablation_prints_every_part_by_layer(sd1_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    import ablation_erasepro as ablation

    out = tmp_path / "numbers.json"
    monkeypatch.setattr(sys, "argv", ["ablation", "--model", str(sd1_folder), "--json", str(out), "--set", "positions=content"])
    ablation.main()
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert list(found) == ["progressive", "text", "deep", "kv", "v_only"]
    assert set(found["progressive"]["levels"]) == {"text layer 0", "text layer 1", "cross"} and "last gap" in printed
    assert set(found["deep"]["levels"]) == {"cross"} and set(found["text"]["levels"]) == {"text layer 0", "text layer 1"}
    assert found["progressive"]["levels"]["cross"]["relative_update"] < found["deep"]["levels"]["cross"]["relative_update"]


def test_make_bench_runs_scripts_that_exist() -> None:
    named = [line.split("/")[1].split()[0] for line in (ROOT / "Makefile").read_text().splitlines() if "$(BENCH)/" in line]
    assert "ablation_erasepro.py" in named and all((ROOT / "benchmarks" / name).is_file() for name in named)
