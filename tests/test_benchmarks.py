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


def test_startup_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "startup.json"
    run("startup.py", "--small", "--out", str(out))
    assert set(json.loads(out.read_text())["results"]) == {"python -c pass", "import erasekit", "erasekit --help"}
