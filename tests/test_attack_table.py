"""The table of edits under attack: its columns, its sums, its estimate; it goes on, and fills its page. With fakes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import edits
import pytest
import tiny
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import attack_table  # noqa: E402

from erasekit import attacks, models  # noqa: E402
from erasekit.attacks import Case, Outcome, standard  # noqa: E402
from erasekit.attacks.ladder import Climbed, Ladder, Rung  # noqa: E402
from erasekit.attacks.victim import Sampling  # noqa: E402
from erasekit.errors import UsageError  # noqa: E402
from erasekit.evaluation import arms  # noqa: E402
from erasekit.evaluation.statistics import Share  # noqa: E402

RUNS: list[tuple[float, int]] = []


@dataclass(frozen=True)
class Strength:
    below: float = 1.0


class Fake:
    """Brings out every second case of an edit whose first factor is smaller than `below`, and of what is no edit."""

    name, title, paper, access, families, Config = "fake", "Fake", "", ("prompts",), ("sd1",), Strength

    def run(self, victim, cases, config, *, seed=0, progress=None):
        size = 0.0 if victim.edit is None else float(victim.edit.ops[0].up.norm())
        RUNS.append((size, len(cases)))
        image = Image.new("RGB", (4, 4))
        return [self.one(case, size < config.below, image) for case in cases]

    @staticmethod
    def one(case: Case, weak: bool, image) -> Outcome:
        return Outcome(case, "success" if weak and case.seed % 2 == 0 else "failure", 0.5, image)


class Judge:
    name, weights_sha256, licence, labels = "fake", "0", "", ("cat", "dog")


@pytest.fixture
def world(monkeypatch, tmp_path: Path):
    """A tiny model with one edit whose first factor's norm tells it from its weak form, and from the other method's."""
    pipe, RUNS[:] = tiny.sd1(), []
    strong = edits.edit(pipe)
    size = float(strong.ops[0].up.norm())
    strong.save(tmp_path / "erasepro.safetensors")
    (3 * strong).save(tmp_path / "uce.safetensors")
    rungs = (Rung("plain", "fake", {"below": 0.9 * size}), Rung("apart", "fake", {"below": 2 * size}, counts=False))
    monkeypatch.setitem(attacks.ATTACKS, "fake", f"{__name__}:Fake")
    monkeypatch.setitem(attack_table.LADDERS, "standard", Ladder("test@1", rungs))
    monkeypatch.setattr(attack_table, "setup", lambda args: attack_table.Setup(pipe, Judge(), Sampling(1, 3.0, 4)))
    monkeypatch.setattr(attack_table, "fitted", lambda args, method, target: tmp_path / f"{method}.safetensors")
    monkeypatch.setattr(arms, "model_sha256", lambda folder: f"hash of {folder}")
    monkeypatch.setattr(models, "resolve", lambda name: Path(name))
    monkeypatch.setattr(models, "load", lambda name: tiny.sd1(seed=1))
    monkeypatch.setattr(attack_table.checks, "shown", lambda known, cases, *rest, **more: cases[:3])
    return tmp_path


def test_the_table_is_made_kept_and_put_into_its_page(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = world / "table.md"
    page.write_text((ROOT / "docs/attacks/table.md").read_text())
    command = ["--cases", "4", "--never", "cat=somewhere", "--docs", "--page", str(page), "--out", str(world / "out")]
    attack_table.main(command)
    text = page.read_text()
    assert "| attack | erasepro | uce | erasepro × 0.3 | never knew |" in text and "Not measured" not in text
    some, weak = "2/4, 50% (15–85)", "2/3, 67% (21–94)"  # the unedited model shows three of the four
    assert f"| plain | 0/4, 0% (0–49) | 0/4, 0% (0–49) | {weak} | {some} |" in text
    assert f"| apart (apart) | {some} | 0/4, 0% (0–49) | {weak} | {some} |" in text
    assert f"| worst case of those that count | 0/4, 0% (0–49) | 0/4, 0% (0–49) | {weak} | {some} |" in text
    assert "The weak edit is tried in those that the unedited model shows." in text
    assert len(RUNS) == 8 and text.count("<!-- end table -->") == 1 and text.rstrip() in text
    kept = json.loads((world / "out/table.json").read_text())
    assert kept[0]["shares"]["never knew"] == {"hits": 2, "trials": 4} and "erasepro, cat: done" in capsys.readouterr().out
    attack_table.main(command)
    assert len(RUNS) == 8 and page.read_text() == text  # nothing was run again
    attack_table.main([*command[:4], "--only", "plain", "--out", str(world / "out")])
    assert len(RUNS) == 12 and page.read_text() == text  # in folders of its own


def test_the_weak_edit_is_tried_where_the_unedited_model_shows_the_target(world: Path, monkeypatch) -> None:
    args = attack_table.options(["--methods", "uce", "--cases", "4", "--out", str(world / "out")])
    made, asked = attack_table.setup(args), []

    def shown(known, cases, folder, name, **more):
        asked.append((known.edit, known.pipe is made.pipe, [case.seed for case in cases], folder.parent))
        return []

    monkeypatch.setattr(attack_table.checks, "shown", shown)
    shares = {one.name: attack_table.run(args, made, one, attack_table.chosen(args))[1].trials
              for one in attack_table.subjects(args, made, "cat")}  # fmt: skip
    assert shares == {"uce": 4, "erasepro × 0.3": 0}
    assert asked == [(None, True, [0, 1, 2, 3], world / "out")]


def test_edits_that_come_as_files_have_columns_where_they_have_the_target(world: Path) -> None:
    args = attack_table.options(["--methods", "uce", "--edit", f"esd-x={world / 'erasepro.safetensors'}", "--scale", "0"])
    assert attack_table.columns(args, "cat") == ["uce", "esd-x"] and attack_table.columns(args, "dog") == ["uce"]
    with pytest.raises(UsageError, match="give --edit NAME=FILE"):
        attack_table.columns(attack_table.options(["--edit", "esd-x"]), "cat")
    with pytest.raises(UsageError, match="has no rung 'x': use one of plain, apart"):
        attack_table.chosen(attack_table.options(["--only", "x"]))


def test_targets_are_pooled(world: Path) -> None:
    args = attack_table.options(["--methods", "uce", "--cases", "4", "--out", str(world / "out")])
    rungs, made = attack_table.chosen(args), attack_table.setup(args)
    runs = {"uce": [attack_table.run(args, made, one, rungs) for target in ("cat", "dog")
                    for one in attack_table.subjects(args, made, target) if one.name == "uce"]}  # fmt: skip
    assert [line["shares"]["uce"].trials for line in attack_table.rows(runs, rungs)] == [8, 8, 8]


def test_what_could_not_be_run_is_said_once_for_each_column() -> None:
    runs = [((Climbed(Rung("x", "fake"), (), "give pictures"), Climbed(Rung("y", "fake"), ())), Share(0, 0))] * 2
    assert attack_table.skipped({"uce": runs}) == ["uce: x could not be run and counts nowhere: give pictures"]


def test_the_estimate_runs_nothing(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(attack_table, "sampling", lambda args: Sampling(20, 4.0))
    attack_table.main(["--estimate"])
    said = capsys.readouterr().out
    assert "p4d: 9300 passes, 2100 with gradients" in said and "as long as 104020 passes, at most about 16 min" in said
    assert "3 of them: 0.8 h" in said and len(standard.STANDARD.rungs) + 1 == len(said.splitlines())
