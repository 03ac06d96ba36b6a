"""The benchmarks of methods that train: the same arithmetic on both sides, one rule for all, plain words about noise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fakes
import pytest
import tiny
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import all_suites  # noqa: E402
import measuring  # noqa: E402
import trained_page  # noqa: E402
import trained_rule  # noqa: E402
import trained_table  # noqa: E402
import training_report  # noqa: E402
import training_speed  # noqa: E402
from trained_rule import Rule, rule  # noqa: E402
from trained_verdicts import control, harmonic, verdicts  # noqa: E402

from erasekit.attacks import ATTACKS  # noqa: E402
from erasekit.errors import InfeasibleError, UsageError  # noqa: E402
from erasekit.evaluation import arms, drawing, judges, suites  # noqa: E402
from erasekit.evaluation.plan import read  # noqa: E402
from erasekit.methods import METHODS, get, make_config, trains  # noqa: E402

ASKED = {"kind": "speed", "model": "sd14-small", "device": "cpu", "threads": 0, "batch": 3, "steps": 3,
         "sampling_steps": 4, "repeat": 1}  # fmt: skip
known = [pytest.param(name, marks=pytest.mark.skipif(name not in {*METHODS, *ATTACKS}, reason="not a method yet"))
         for name in training_speed.TASKS]  # fmt: skip


# -- step time and memory -------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch) -> None:
    """Tiny models, and children that are this process."""
    monkeypatch.setattr(training_speed, "pipeline", lambda name, device: tiny.sd2() if name == "sd2" else tiny.sd1())
    monkeypatch.setattr(measuring, "child", lambda script, asked: training_speed.run_child(asked))


@pytest.mark.parametrize("family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", known)
def test_the_plain_loop_has_the_same_losses(small, method: str, family: str) -> None:
    found = training_speed.run_child(ASKED | {"method": method, "model": family})
    assert len(found["losses"]) == 3 and min(found["losses"]) > 1e-8 and len(set(found["losses"])) == 3
    assert found["difference"] < 1e-4 and found["ratio"] == found["plain_seconds"] / found["seconds"] > 0


def test_another_arithmetic_is_refused(small, monkeypatch) -> None:
    task = training_speed.TASKS["esd"]

    def other(pipe, config, **rest):
        return task.plain(pipe, make_config(get("esd"), {**vars(config), "eta": 1.1}), **rest)

    monkeypatch.setitem(training_speed.TASKS, "esd", training_speed.Task(other, task.parameters))
    with pytest.raises(SystemExit, match="not the same arithmetic"):
        short = ["--steps", "2", "--batch", "1", "--sampling-steps", "3", "--repeat", "1"]
        training_speed.measure(training_speed.parsed(["--shape", "sd14-small", "--methods", "esd", *short]))


def test_the_whole_writes_numbers_and_bars(monkeypatch, tmp_path: Path, capsys) -> None:
    asked = []

    def child(script, one):
        asked.append(one)
        if one["kind"] == "speed":
            return {"seconds": 1.0, "plain_seconds": 1.6, "ratio": 1.6, "difference": 1e-6, "losses": [1.0]}
        own = {"inference": 100.0, "training": 150.0}.get(one["what"], 120.0)
        return {"peak_mb": 900 + own, "own_mb": own}  # of whole processes the ratio would be near 1

    monkeypatch.setattr(measuring, "child", child)
    page, out = tmp_path / "training.md", tmp_path / "speed.json"
    page.write_text((ROOT / "docs/training.md").read_text())
    training_speed.main(["--methods", "esd", "--docs", "--page", str(page), "--out", str(out)])
    found = {bar["what"]: (bar["value"], bar["met"]) for bar in json.loads(out.read_text())["bars"]}
    assert found == {"esd: times faster than the plain loop": (1.6, True),
                     "esd: peak memory over inference, training": (1.5, False),
                     "esd: peak memory over inference, training, recompute": (1.2, True)}  # fmt: skip
    assert {one.get("what") for one in asked} >= {"inference", "training", "training, recompute", "plain loop"}
    text = page.read_text()
    assert "bar 1.4: missed" in text and "| esd | 1 | 1.6 | 1.60 | 1e-06 |" in text
    table = [one.partition("<!-- begin table -->")[2].partition("<!-- end table -->")[0]
             for one in (text, (ROOT / "docs/training.md").read_text())]  # fmt: skip
    assert table[0] == table[1] != "" and "bar 1.5: met" in capsys.readouterr().out


def test_a_run_of_one_method_keeps_the_others(monkeypatch, tmp_path: Path) -> None:
    times = {"seconds": 1.0, "plain_seconds": 1.2, "ratio": 1.2, "difference": 1e-6, "losses": [1.0]}
    monkeypatch.setattr(measuring, "child", lambda script, asked: times if asked["kind"] == "speed" else {"peak_mb": 9.0})
    out = tmp_path / "speed.json"
    alone = ["--methods", "concept-inversion", "--out", str(out)]
    training_speed.main(alone)  # the peaks are ESD's
    first = json.loads(out.read_text())
    assert not first["memory"] and [bar["met"] for bar in first["bars"]] == [False]
    assert "--methods esd ac --docs`" in training_report.report(first)
    out.unlink()
    training_speed.main(["--methods", "esd", "ac", "--out", str(out)])
    before = json.loads(out.read_text())
    training_speed.main(alone)
    found = json.loads(out.read_text())
    assert list(found["speed"]) == ["esd", "ac", "concept-inversion"] and len(found["bars"]) == 1 + len(before["bars"])
    assert found["memory"] == before["memory"] and found["speed"]["ac"] == before["speed"]["ac"]
    assert "Not measured" not in training_report.report(found)
    monkeypatch.setattr(measuring, "child", lambda script, asked: pytest.fail("measured, and then refused"))
    with pytest.raises(SystemExit, match="numbers of other settings: measure all methods"):
        training_speed.main([*alone, "--batch", "3"])
    assert json.loads(out.read_text()) == found


def test_peaks_without_an_own_part_are_compared_as_they_are() -> None:
    memory = {what: {"peak_mb": peak} for what, peak in (("inference", 10.0), ("training", 15.0))}
    assert training_report.own_peaks({"memory": memory}) == {"inference": 10.0, "training": 15.0}
    memory["training"]["own_mb"] = 5.0
    assert training_report.own_peaks({"memory": memory})["training"] == 15.0


def test_the_page_has_the_numbers_of_the_committed_file(tmp_path: Path) -> None:
    page, own = tmp_path / "training.md", (ROOT / "docs/training.md").read_text()
    page.write_text(own)
    training_report.main(["--page", str(page)])
    assert page.read_text() == own, "run benchmarks/training_report.py"


@pytest.mark.slow
def test_a_peak_is_that_of_a_process_of_its_own() -> None:
    """And the random shapes make a whole pipeline."""
    asked = ASKED | {"kind": "memory", "what": "inference", "threads": 1}
    command = [sys.executable, str(ROOT / "benchmarks/training_speed.py"), "--child", json.dumps(asked)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["own_mb"] < found["peak_mb"] < 3000


@pytest.mark.parametrize("what", ["inference", "training", "training, recompute", "plain loop"])
def test_every_piece_of_memory_can_be_run(small, what: str) -> None:
    found = training_speed.run_child(ASKED | {"kind": "memory", "what": what, "model": "sd1", "steps": 2})
    assert found["peak_mb"] >= found["own_mb"] >= 0


# -- the table ------------------------------------------------------------------------------------------------------


def test_one_rule_for_every_method_that_trains() -> None:
    chosen = Rule()
    for name in METHODS:
        found = chosen.parameters(name)
        assert ("steps" in found) == trains(get(name))
        if name == "mace-refine":  # it is not trained, and reads the sentences of the whole
            assert set(found) == set(chosen.parameters("mace")) - {"steps", "rate", "picture"}
        elif not trains(get(name)):
            assert not found
        else:
            config = make_config(get(name), {})
            assert found["steps"] == max(1, round(config.steps / 4)) and found["rate"] == pytest.approx(8 * config.rate)
            make_config(get(name), found)
    assert chosen.parameters("esd") == {"steps": 250, "rate": 8e-5}
    assert chosen.parameters("esd:rewrite") == {"steps": 50, "rate": 4e-4}
    assert f"**{ {4: 'a quarter'}[round(1 / chosen.steps)] } of its steps**" in (ROOT / "docs/training.md").read_text()
    assert (
        f"**{ {8: 'eight'}[round(chosen.rate)] } times its learning rate**" in (ROOT / "docs/training.md").read_text()
    )


def test_what_departs_from_the_rule_is_said() -> None:
    chosen = rule(0.5, 2, ["esd.sampling_steps=3", "esd.batch=2"])
    assert chosen.parameters("esd") == {"steps": 500, "rate": 2e-5, "sampling_steps": "3", "batch": "2"}
    (one,) = trained_rule.settings([("esd", "object"), ("esd", "style"), ("uce", "object")], chosen)
    shown = trained_page.page(whole(trained=[one]))
    assert "| esd | 1000 | 500 | 1e-05 | 2e-05 | 2 | sampling_steps=3 |" in shown
    for word in ("esd", "esd=3", "esd.steps", "nonesuch.steps=3"):
        with pytest.raises(UsageError, match=r"METHOD\.KEY=VALUE"):
            rule(1, 1, [word])


def whole(**more) -> dict:
    """A results file."""
    empty = dict.fromkeys(("rows", "refused", "said", "methods", "trained"), ())
    return {"steps": 0.25, "rate": 8, **empty, **more}


def test_what_edits_say_of_themselves_stands_below_the_table() -> None:
    attack = {"target": "cat", "size": 0.01, "loss": 0.5, "loss_without": 0.25, "residual": 0.75}
    lines = trained_page.said("receler on s, cat", {"warnings": ["nothing is held"], "attack": [attack]})
    assert lines[0] == "receler on s, cat: nothing is held" and trained_page.said("esd", {}) == []
    page = trained_page.page(whole(said=lines))
    assert "its loss 0.5, 0.25 without it; residual under it 0.75" in page and "- receler on s, cat: nothing is held" in page


def test_the_page_is_what_the_committed_results_say(tmp_path: Path) -> None:
    page, own = tmp_path / "training.md", (ROOT / "docs/training.md").read_text()
    page.write_text(own)
    if trained_page.RESULTS.exists():
        trained_page.main(["--page", str(page)])
        assert page.read_text() == own, "run benchmarks/trained_page.py"
    else:
        assert "<!-- begin table -->\nNot measured yet" in own, "a table without the numbers that it is from"


def parts(*words: str) -> list[all_suites.Part]:
    return trained_table.parts(trained_table.options(list(words)), Rule())


def test_the_suites_the_targets_and_the_presets() -> None:
    objects, styles = parts("--methods", "esd", "uce", "esd:rewrite")
    assert (objects.suite.name, styles.suite.name) == ("emoji/object", "emoji/style")
    assert [entry.method for entry in objects.entries] == 2 * ["esd:object", "uce", "esd:rewrite"]
    assert {entry.method for entry in styles.entries} == {"esd", "uce", "esd:rewrite"}
    assert objects.entries[0].targets == ("cat",) and objects.entries[0].parameters == {"steps": 250, "rate": 8e-5}
    assert objects.entries[1].parameters == {} and set(objects.labels.values()) == {"esd:object", "uce", "esd:rewrite"}
    default = trained_table.options([])
    assert set(default.methods) == {name for name in METHODS if trains(get(name))} | {"erasepro", "uce"}


def test_targets_are_chosen_by_name() -> None:
    (styles,) = parts("--methods", "uce", "--targets", "ink style")
    assert [entry.targets for entry in styles.entries] == [("ink style",)]
    (objects,) = parts("--methods", "uce", "--targets", "fox", "cat", "--suites", "emoji/object")
    assert {entry.targets[0] for entry in objects.entries} == {"fox", "cat"}
    with pytest.raises(UsageError, match="no target nonesuch in emoji/object, emoji/style"):
        parts("--targets", "cat", "nonesuch", "--methods", "uce")


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """A tiny suite, judges by rule, and the prompts that were drawn."""
    log: list[str] = []

    def draw(pipe, prompts, *given, **options):
        log.extend(prompts)
        return fakes.draw(pipe, prompts, *given, **options)

    for place in (suites, all_suites):
        monkeypatch.setattr(place, "load_suite", lambda name, *, prompts=None: fakes.suite(name))
    monkeypatch.setattr(judges, "get", fakes.get)
    monkeypatch.setattr(drawing, "draw", draw)
    return log


def words(folder: Path, out: Path, *more: str) -> list[str]:
    short = ["--scale-steps", "0.002", "--set", "esd.sampling_steps=2", "esd.save_every=1"]
    return ["--suites", "tiny", "--limit-targets", "1", "--model", str(folder), "--jobs", "1", "--out", str(out),
            "--methods", "esd:rewrite", "esd", "erasepro", *short, *more]  # fmt: skip


def test_the_estimate_counts_training_and_images_and_writes_nothing(drawn, sd1_folder, tmp_path, capsys) -> None:
    trained_table.main(words(sd1_folder, tmp_path / "out", "--estimate"))
    shown = capsys.readouterr().out
    assert f"tiny: 3 edits, {7 * fakes.COUNT} images" in shown and "training esd:rewrite: about 0.0 min" in shown
    assert "in all about" in shown and not (tmp_path / "out").exists() and not drawn


def test_one_table_and_a_second_run_does_nothing(drawn, sd1_folder, tmp_path, monkeypatch, capsys) -> None:
    real, fits = arms.load_edits, []

    def load_edits(plan, *given, **options):
        fits.append(plan.edits[0].method)
        if plan.edits[0].method == "erasepro":
            raise InfeasibleError("no weight can serve both")
        return real(plan, *given, **options)

    monkeypatch.setattr(arms, "load_edits", load_edits)
    page = tmp_path / "training.md"
    page.write_text((ROOT / "docs/training.md").read_text())
    results = tmp_path / "results.json"
    asked = words(sd1_folder, tmp_path / "out", "--docs", "--page", str(page), "--results", str(results))
    trained_table.main(asked)
    text, shown = page.read_text(), capsys.readouterr().out
    assert len(drawn) == 5 * fakes.COUNT and "tiny, esd:object-cat: fitted" in shown
    assert all(f"| tiny | {arm} |" in text for arm in ("unedited", "esd:object", "noise of esd:object", "esd:rewrite"))
    assert "erasepro on tiny, cat: no weight can serve both" in text and "| tiny | erasepro |" not in text
    assert "| esd:object | 1000 | 2 | 1e-05 | 8e-05 | 1 | sampling_steps=2, save_every=1 |" in text
    assert trained_page.page(json.loads(results.read_text())) in text
    own = "<!-- begin speed -->"  # another benchmark's numbers, which stay as they are
    assert "random control" in text and text.split(own)[1] == (ROOT / "docs/training.md").read_text().split(own)[1]
    plan = read(tmp_path / "out/tiny/plan.yaml")
    assert plan.edits[1].parameters == {"steps": 2, "rate": 8e-5, "sampling_steps": "2", "save_every": "1"}
    assert not list((tmp_path / "out/tiny/edits").glob("*.state*"))
    before = len(fits)
    trained_table.main(asked)
    assert len(drawn) == 5 * fakes.COUNT and page.read_text() == text and fits[before:] == fits[:before]


def test_a_training_that_was_ended_goes_on(drawn, sd1_folder, tmp_path, monkeypatch) -> None:
    """The runner itself keeps a checkpoint for each edit that it fits."""
    from erasekit.training import loop

    asked = words(sd1_folder, tmp_path / "out")
    done, real = [], loop.Step

    def ended(seed, index, part=0):
        done.append(index)
        if index == 1 and len(done) < 3:
            raise KeyboardInterrupt
        return real(seed, index, part)

    monkeypatch.setattr(loop, "Step", ended)
    first = [word for word in asked if word not in ("esd:rewrite", "erasepro")]
    with pytest.raises(KeyboardInterrupt):
        trained_table.main(first)
    assert len(list((tmp_path / "out/tiny/edits").glob("esd-object-cat-*.state.safetensors"))) == 1
    trained_table.main(first)
    assert done == [0, 1, 1] and not list((tmp_path / "out/tiny/edits").glob("*.state*"))


def row(arm: str, *values: float, suite: str = "s") -> dict:
    rates = [{"value": v, "low": max(0, v - 0.05), "high": min(1, v + 0.05), "n": 99} for v in values]
    return {"suite": suite, "arm": arm, "fidelity": None} | dict(
        zip(("efficacy", "generality", "specificity"), rates, strict=True)
    )


def test_what_is_worse_than_noise_is_said_plainly() -> None:
    rows = [row("unedited", 0.1, 0.1, 1.0), row("esd", 0.3, 0.3, 0.2), row("noise of esd", 0.5, 0.5, 0.5),
            row("ac", 0.9, 0.9, 0.9), row("noise of ac", 0.2, 0.2, 0.9), row("uce", 0.5, 0.5, 0.6),
            row("noise of uce", 0.5, 0.5, 0.5), row("spm", 0.4, 0.4, 0.4),
            row("receler", 0.9, 0.9, 0.9, suite="t")]  # fmt: skip
    assert harmonic(rows[0], ["efficacy", "specificity"]) == pytest.approx(2 / (10 + 1))
    assert harmonic(row("x", 0.0, 0.5, 0.5), ["efficacy", "specificity"]) == 0
    assert control(rows[7], rows)["arm"] == "noise of esd" and control(rows[8], rows) is None
    said = verdicts(rows, ["esd", "ac", "uce", "spm", "receler"]).splitlines()
    assert "Worse than the random control" in said[0] and "esd on s" in said[0] and "spm on s" in said[0]
    assert "ac on s" not in said[0] and "of noise of esd" in said[0] and said[1].endswith("1 of 5 rows.")
    assert "the intervals meet" in said[2] and "uce on s" in said[2] and said[3].endswith("receler on t.")
    assert verdicts(rows[3:5], ["ac"]).startswith("- No method does worse")
    assert verdicts(rows[8:], ["receler"]) == "- Against the random control: not measured for receler on t."
    assert verdicts([], ["ac"]) == "- Against the random control: not measured."


def test_the_page_says_what_the_model_is() -> None:
    """Sizes that the rule's reason rests on."""
    folder = ROOT / "src/erasekit/worlds/emoji/model/unet"
    config = json.loads((folder / "config.json").read_text())
    assert config["cross_attention_dim"] == 192 and (config["sample_size"], config["in_channels"]) == (8, 16)
    from safetensors import safe_open

    with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as file:
        count = sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys())  # noqa: SIM118
    assert f"{count / 1e6:.1f} million" in (ROOT / "docs/training.md").read_text()
