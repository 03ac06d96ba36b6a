"""`erasekit evaluate` over a tiny model: what it prints and writes, and one line for what is wrong."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import attacked
import edits
import fakes
import pytest

from erasekit import io, models
from erasekit.cli import evaluate, main, terminal
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import aggregate, arms, drawing, judges, results, suites
from erasekit.files import file_sha256

SUITE = Path(__file__).with_name("small_suite.yaml")


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


def test_attacks_go_into_the_results_and_onto_the_page(parse, fake, edit_file, sd1_folder, tmp_path, capfd) -> None:
    about = {"model_sha256": arms.model_sha256(sd1_folder), "edit_sha256": file_sha256(edit_file)}
    ladder = attacked.folder(tmp_path / "attacked", **about)
    other = attacked.folder(tmp_path / "other", **about | {"edit_sha256": "0"})
    out = tmp_path / "out"
    words = ["--model", sd1_folder, "--edit", edit_file, "--suite", "tiny", "--out", out, "--jobs", 1]
    with pytest.raises(UsageError, match="attacks another edit"):
        evaluate.run(parse(*words, "--attacks", other))
    assert not list(tmp_path.glob("out/images/**/*.png")), "refused before anything is drawn"
    evaluate.run(parse(*words))
    bare, plain = (out / "results.json").read_bytes(), (out / "report.html").read_text()
    assert main(["report", str(out), "--attacks", str(ladder)]) == 0
    page = (out / "report.html").read_text()
    assert "odd words" in page and "cat is shown" not in plain and (out / "results.json").read_bytes() == bare
    assert main(["report", str(out), "--attacks", str(other)]) == 2
    said = capfd.readouterr().err.strip()
    assert "attacks another edit" in said and "\n" not in said and (out / "report.html").read_text() == page
    assert main(["report", str(out)]) == 0 and (out / "report.html").read_text() == plain
    evaluate.run(parse(*words, "--attacks", ladder))  # on the finished run: nothing is drawn again
    found = results.load(out)
    assert [one["name"] for one in found["attacks"]][-1] == "test@1: worst case" and found["metrics"]
    assert "--attacks" in found["created_by"]["command"] and "odd words" in (out / "report.html").read_text()
    assert results.to_bytes(aggregate.recompute(out)) == (out / "results.json").read_bytes()


def test_a_plan_and_the_command_line_over_it(parse, tmp_path) -> None:
    (tmp_path / "plan.yaml").write_text("suites: emoji/object\nbatch: 8\nedits: [a.safetensors]\nseed: 4\n")
    plan = evaluate.plan_of(parse("--plan", tmp_path / "plan.yaml", "--edit", "b.safetensors", "--batch", 2, "--out", "x"))
    assert (plan.batch, plan.seed, plan.control, plan.suites) == (2, 4, "random", ("emoji/object",))
    assert [entry.name for entry in plan.edits] == ["a", "b"]


def test_results_of_another_edit_are_not_replaced_and_cut_rows_not_reported(
    parse, fake, edit_file, sd1_folder, tmp_path, capfd
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.safetensors"
    (2.0 * io.load(edit_file)).save(other)
    words = ["--model", sd1_folder, "--suite", "tiny", "--out", out, "--jobs", 1, "--control", "none"]
    evaluate.run(parse(*words, "--edit", edit_file))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(EraseKitError, match=r"results.json holds the results of .*give another --out, or delete that file"):
        evaluate.run(parse(*words, "--edit", other))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    evaluate.run(parse(*words, "--edit", edit_file, other))
    assert [arm["arm"] for arm in results.load(out)["arms"]] == ["base", "edit:mine", "edit:other"]
    page, lines = (out / "report.html").read_bytes(), (out / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (out / "rows.jsonl").write_bytes(b"".join(lines[:-3]))
    capfd.readouterr()
    assert main(["report", str(out)]) == 1
    said = capfd.readouterr().err.strip()
    assert f"holds {len(lines) - 3} images, not the {len(lines)}" in said and "\n" not in said
    assert (out / "report.html").read_bytes() == page


def test_prompt_files_of_all_suites_or_of_each(parse, tmp_path) -> None:
    def prompts(*words):
        return evaluate.plan_of(parse("--suite", "i2p", "coco", "--out", "x", *words)).prompts

    assert prompts() is None and prompts("--prompts", "a=b.csv") == Path("a=b.csv")
    assert prompts("--prompts", "i2p=a.csv", "coco=b.csv") == {"i2p": Path("a.csv"), "coco": Path("b.csv")}
    for wrong in (["a.csv", "b.csv"], ["i2p=a.csv", "b.csv"], ["i2p=a.csv", "i2p=b.csv"]):
        with pytest.raises(UsageError, match="--prompts takes one file, or SUITE=FILE of i2p, coco"):
            prompts("--prompts", *wrong)
    (tmp_path / "plan.yaml").write_text("suites: [i2p, coco]\nprompts: {i2p: a.csv, coco: b.csv}\n")
    plan = evaluate.plan_of(parse("--plan", tmp_path / "plan.yaml", "--prompts", "coco=c.csv", "--out", "x"))
    assert plan.prompts == {"i2p": tmp_path / "a.csv", "coco": Path("c.csv")}
    words = evaluate.command_of(parse("--suite", "i2p", "--prompts", "i2p=a.csv", "--out", "x"))
    assert words == "erasekit evaluate --suite i2p --prompts i2p=a.csv --out x"


def test_real_images_stand_in_the_command_and_over_the_plan(parse, tmp_path) -> None:
    (tmp_path / "plan.yaml").write_text("suites: coco\nreal: val2014\n")
    assert evaluate.plan_of(parse("--plan", tmp_path / "plan.yaml", "--out", "x")).real == str(tmp_path / "val2014")
    assert evaluate.plan_of(parse("--plan", tmp_path / "plan.yaml", "--real", "emoji", "--out", "x")).real == "emoji"
    assert evaluate.plan_of(parse("--suite", "coco", "--out", "x")).real is None
    words = evaluate.command_of(parse("--suite", "coco", "--real", "my photographs", "--out", "x"))
    assert words == "erasekit evaluate --suite coco --real 'my photographs' --out x"


@pytest.mark.parametrize(("words", "message"), [
    (["--out", "x"], "no suite: give --suite"),
    (["--out", "x", "--suite", "tiny", "--jobs", "0"], "--jobs"),
    (["--out", "x", "--suite", "tiny", "--batch", "0"], "--batch"),
    (["--out", "x", "--plan", "none.yaml"], "cannot read the plan"),
    (["--out", "x", "--suite", "coco", "--real", ""], "real must be a folder of images, or the word emoji, not ''"),
    (["--out", "x", "--suite", "emoji/object", "--real", "no/such"], "the images folder no/such cannot be read"),
    (["--out", "x", "--suite", "no/such"], "suite"),
    (["--out", "x", "--suite", "tiny", "--device", "warp"], "no device 'warp'"),
])  # fmt: skip
def test_bad_usage_is_one_line(parse, words, message) -> None:
    with pytest.raises(UsageError) as error:
        evaluate.run(parse(*words))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_killed_outright_it_goes_on_to_the_same_bytes(edit_file, sd1_folder, tmp_path) -> None:
    """Real processes and real judges; SIGKILL leaves no time to tidy up."""
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE.read_text().replace("seeds: 0-1", "seeds: 0-39").replace("count: 1,", "count: 1, seeds: 40,"))
    words = [sys.executable, "-m", "erasekit", "evaluate", "--model", str(sd1_folder), "--edit",
             str(edit_file), "--suite", str(suite), "--batch", "2", "--jobs", "2", "--out", "out"]  # fmt: skip
    made = ("run.json", "texts.json", "rows.jsonl", "results.json")
    folders = {name: tmp_path / name for name in ("whole", "killed")}  # the command, and so the results, name `out`
    for folder in folders.values():
        folder.mkdir()
    subprocess.run(words, cwd=folders["whole"], check=True, capture_output=True, timeout=300)
    process = subprocess.Popen(words, cwd=folders["killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(images(folders["killed"])) < 10 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL and not (folders["killed"] / "out" / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in images(folders["killed"])}
    assert len(kept) >= 10
    subprocess.run(words, cwd=folders["killed"], check=True, capture_output=True, timeout=300)
    again = [path for path, then in kept.items() if path.stat().st_mtime_ns != then]
    assert len(again) <= 4, "what was drawn is not drawn again, but for a shard that was being written"
    whole, resumed = ({path.relative_to(folder): path.read_bytes() for path in images(folder)} for folder in folders.values())
    assert whole == resumed and whole
    for name in made:
        assert (folders["whole"] / "out" / name).read_bytes() == (folders["killed"] / "out" / name).read_bytes(), name


def images(folder: Path) -> list[Path]:
    """All pictures of a run, its baseline's too."""
    return sorted(path for path in folder.rglob("*.png") if not path.name.startswith("."))


def test_time_left_is_reckoned_from_this_runs_own_images(monkeypatch, capsys) -> None:
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(evaluate.time, "monotonic", lambda: next(clock))
    say = evaluate.Lines()
    for done in (50, 60, 100):
        say(done, 100, "images")
    assert capsys.readouterr().out.splitlines() == ["images: 50/100", "images: 60/100, about 40 s left", "images: 100/100"]


def test_each_kind_of_work_has_lines_of_its_own(capsys) -> None:
    say = evaluate.Lines()
    for done, what in ((2, "images"), (1, "fitting: a, loss 2"), (2, "fitting: a, loss 1"), (2, "pairs"), (1, "pairs")):
        say(done, 2, what)
    said = [line.partition(", about")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["images: 2/2", "fitting: 1/2, a, loss 2", "fitting: 2/2, a, loss 1", "pairs: 2/2", "pairs: 1/2"]


def test_who_draws(parse) -> None:
    from erasekit.evaluation.executors import Local, Processes, Ray

    assert isinstance(evaluate.executor_of(parse("--out", "x"), 1), Local)
    assert evaluate.executor_of(parse("--out", "x"), 3) == Processes(3, terminal.quiet)
    assert evaluate.executor_of(parse("--out", "x", "--ray", "local"), 2) == Ray("local", 2)
    assert evaluate.jobs_of(parse("--out", "x"), "cuda") == 1 <= evaluate.jobs_of(parse("--out", "x"), "cpu")
