"""`erasekit evaluate` over a tiny model: what it prints and writes, and one line for what is wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import edits
import fakes
import pytest

from erasekit import models
from erasekit.cli import evaluate
from erasekit.errors import UsageError
from erasekit.evaluation import drawing, judges, suites


@pytest.fixture
def parse():
    parser = argparse.ArgumentParser()
    evaluate.add(parser.add_subparsers(dest="command"))
    return lambda *words: parser.parse_args(["evaluate", *map(str, words)])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "load_suite", lambda name, *, prompts=None: fakes.suite(name))
    monkeypatch.setattr(judges, "get", fakes.get)
    monkeypatch.setattr(drawing, "draw", fakes.draw)


@pytest.fixture
def edit_file(sd1_folder: Path, tmp_path: Path) -> Path:
    edits.edit(models.load(sd1_folder)).save(tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def test_writes_results_and_report_and_prints_the_headlines(parse, fake, edit_file, sd1_folder, tmp_path, capsys) -> None:
    words = ["--model", sd1_folder, "--edit", edit_file, "--suite", "tiny", "--out", tmp_path / "out", "--jobs", 1]
    evaluate.run(parse(*words))
    shown = capsys.readouterr().out
    assert "images: 0/39" in shown and "images: 39/39" in shown
    assert "efficacy" in shown and "noise of the norm of " in shown and f"wrote {tmp_path / 'out'}" in shown
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "--jobs" not in found["created_by"]["command"] and "--suite tiny" in found["created_by"]["command"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    before = (tmp_path / "out" / "results.json").read_bytes()
    evaluate.run(parse(*words))
    assert "images: 39/39" in capsys.readouterr().out and (tmp_path / "out" / "results.json").read_bytes() == before


def test_a_plan_and_the_command_line_over_it(parse, tmp_path) -> None:
    (tmp_path / "plan.yaml").write_text("suites: emoji/object\nbatch: 8\nedits: [a.safetensors]\nseed: 4\n")
    plan = evaluate.plan_of(parse("--plan", tmp_path / "plan.yaml", "--edit", "b.safetensors", "--batch", 2, "--out", "x"))
    assert (plan.batch, plan.seed, plan.control, plan.suites) == (2, 4, "random", ("emoji/object",))
    assert [entry.name for entry in plan.edits] == ["a", "b"]


@pytest.mark.parametrize(("words", "message"), [
    (["--out", "x"], "no suite: give --suite"),
    (["--out", "x", "--suite", "tiny", "--jobs", "0"], "--jobs"),
    (["--out", "x", "--suite", "tiny", "--batch", "0"], "--batch"),
    (["--out", "x", "--plan", "none.yaml"], "cannot read the plan"),
    (["--out", "x", "--suite", "no/such"], "suite"),
    (["--out", "x", "--suite", "tiny", "--device", "warp"], "no device 'warp'"),
])  # fmt: skip
def test_bad_usage_is_one_line(parse, words, message) -> None:
    with pytest.raises(UsageError) as error:
        evaluate.run(parse(*words))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_time_left_is_reckoned_from_this_runs_own_images(monkeypatch, capsys) -> None:
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(evaluate.time, "monotonic", lambda: next(clock))
    say = evaluate.Lines()
    for done in (50, 60, 100):
        say(done, 100, "images")
    assert capsys.readouterr().out.splitlines() == ["images: 50/100", "images: 60/100, about 40 s left", "images: 100/100"]


def test_who_draws(parse) -> None:
    from erasekit.evaluation.executors import Local, Processes, Ray

    assert isinstance(evaluate.executor_of(parse("--out", "x"), 1), Local)
    assert evaluate.executor_of(parse("--out", "x"), 3) == Processes(3)
    assert evaluate.executor_of(parse("--out", "x", "--ray", "local"), 2) == Ray("local", 2)
    assert evaluate.jobs_of(parse("--out", "x"), "cuda") == 1 <= evaluate.jobs_of(parse("--out", "x"), "cpu")
