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

import attack_page  # noqa: E402
import attack_table  # noqa: E402

from erasekit import attacks, models  # noqa: E402
from erasekit.attacks import Case, Outcome, standard  # noqa: E402
from erasekit.attacks._weak import Strength as Chosen  # noqa: E402
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
    """Brings out every second case of an edit whose first factor is smaller than `below`, and of what is no edit; a case of
    seed 2 of these shows the target without it."""

    name, title, paper, access, families, Config = "fake", "Fake", "", ("prompts",), ("sd1",), Strength

    def run(self, victim, cases, config, *, seed=0, progress=None):
        size = 0.0 if victim.edit is None else victim.scale * float(victim.edit.ops[0].up.norm())
        RUNS.append((size, len(cases)))
        image = Image.new("RGB", (4, 4))
        return [self.one(case, size < config.below, image, victim.skip) for case in cases]

    @staticmethod
    def one(case: Case, weak: bool, image, skip: bool) -> Outcome:
        shown = "skipped" if case.seed == 2 and skip else "success"
        return Outcome(case, shown if weak and case.seed % 2 == 0 else "failure", 0.5, image)


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
    rungs = (Rung("plain", "fake", {"below": 0.9 * size}), Rung("again", "fake", {"below": 0.8 * size}),
             Rung("apart", "fake", {"below": 2 * size}, counts=False))  # fmt: skip
    monkeypatch.setitem(attacks.ATTACKS, "fake", f"{__name__}:Fake")
    monkeypatch.setitem(attack_table.LADDERS, "standard", Ladder("test@1", rungs))
    monkeypatch.setattr(attack_table, "setup", lambda args: attack_table.Setup(pipe, Judge(), Sampling(1, 3.0, 4)))
    monkeypatch.setattr(attack_table, "fitted", lambda args, method, target: tmp_path / f"{method}.safetensors")
    monkeypatch.setattr(arms, "model_sha256", lambda folder: f"hash of {folder}")
    monkeypatch.setattr(models, "resolve", lambda name: Path(name))
    monkeypatch.setattr(models, "load", lambda name: tiny.sd1(seed=1))
    monkeypatch.setattr(attack_table._weak, "shown", lambda known, cases, *rest, **more: cases[:3])
    monkeypatch.setattr(attack_table._weak, "strength", lambda subject, known, *rest, **more: Chosen(
        0.55, tuple(known[1:3]), len(known), (0.55,)))  # fmt: skip
    monkeypatch.setattr(attack_table.checks_weak, "mild", lambda weakened: 0.3)
    return tmp_path


def test_the_table_is_made_kept_and_put_into_its_page(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = world / "table.md"
    page.write_text((ROOT / "docs/attacks/table.md").read_text())
    command = ["--cases", "4", "--never", "cat=somewhere", "--methods", "erasepro", "uce", "--out", str(world / "out")]
    docs = ["--docs", "--page", str(page), "--results", str(world / "kept.json")]
    attack_table.main([*command, *docs])
    text = page.read_text()
    assert "### cat" in text and "| attack | erasepro | uce | advunlearn | never knew |" in text and "Not measured" not in text
    nothing, some = "0/4, 0% (0–49)", "2/4 [1], 50% (15–85)"
    assert f"| plain | {nothing} | {nothing} | – | {some} |" in text
    assert f"| again | {nothing} | {nothing} | – | {some} |" in text, "tried on all cases, not on what plain left"
    assert f"| apart (apart) | {some} | {nothing} | – | {some} |" in text
    assert f"| worst case of those that count | {nothing} | {nothing} | – | 2/4, 50% (15–85) |" in text
    mild, hidden = "2/3, 67% (21–94)", "1/2, 50% (9–91)"  # three of four are shown by the unedited model, two are hidden
    assert "| attack | weak edit | hidden cases | never knew |" in text and "#### cat: do the attacks work?" in text
    assert all(f"| {rung} | {mild} | {hidden} | {some} |" in text for rung in ("plain", "again", "apart (apart)"))
    assert "- 0 of 3 attacks show the target in 90% on the weak edit; broken: plain 2/3, again 2/3, apart 2/3.\n" in text
    assert "- weak edit: 0.3 times ErasePro's edit\n- hidden cases: 2 of the 3 that 0.55 times ErasePro's edit hides" in text
    assert len(RUNS) == 15 and text.count("<!-- end table -->") == 1 and "erasepro, cat: done" in capsys.readouterr().out
    kept = (world / "kept.json").read_bytes()
    assert json.loads(kept)["targets"][0]["rows"][0]["shares"]["never knew"] == {"hits": 2, "trials": 4}
    assert kept == (world / "out/table.json").read_bytes()
    attack_table.main([*command, *docs])
    assert len(RUNS) == 15 and page.read_text() == text  # nothing was run again
    attack_table.main([*command, "--only", "plain"])
    assert len(RUNS) == 20 and page.read_text() == text  # in folders of its own
    page.write_text((ROOT / "docs/attacks/table.md").read_text())
    attack_table.main(["--reprint", *docs[1:]])
    assert len(RUNS) == 20 and page.read_text() == text
    with pytest.raises(UsageError, match="is not there: measure with --docs first"):
        attack_table.main(["--reprint", "--results", str(world / "none.json")])


def test_a_model_that_knows_the_target_is_no_control(world: Path) -> None:
    (world / "without.json").write_text(json.dumps({"concepts": ["dog"], "styles": []}))
    command = ["--cases", "4", "--never", f"cat={world}", "--methods", "uce", "--out", str(world / "out")]
    with pytest.raises(UsageError, match=r"^--never cat=.*: the model there was trained with 'cat', and without dog"):
        attack_table.main(command)
    assert not RUNS and attack_table.columns(attack_table.options(["--never", f"dog={world}"]), "dog")[-1] == "never knew"


def test_the_page_is_what_the_results_say() -> None:
    page = (ROOT / "docs/attacks/table.md").read_text()
    kept = attack_table.RESULTS
    said = attack_page.text(json.loads(kept.read_text())) if kept.exists() else attack_page.UNMEASURED
    assert f"<!-- begin table -->\n{said.strip()}\n<!-- end table -->" in page


def test_attacks_are_held_to_the_bar_on_the_weak_edit_and_on_what_is_hidden() -> None:
    def line(rung: str, mild, hidden, attacks: bool = True) -> dict:
        shares = {"weak edit": mild, "hidden cases": hidden}
        named = {name: dict(zip(("hits", "trials"), share, strict=True)) for name, share in shares.items()}
        return {"rung": rung, "attacks": attacks, "shares": named}

    lines = [line("plain prompts", (1, 10), (0, 8), attacks=False), line("p4d", (9, 10), (8, 8)),
             line("mma", (8, 10), (0, 8)), line("noise", (0, 0), (0, 0))]  # fmt: skip
    first, second = attack_page.verdict(lines).splitlines()
    assert first == "- 1 of 2 attacks show the target in 90% on the weak edit; broken: mma 8/10; not tried: noise."
    assert second.startswith("- 1 of 2 attacks show the target in 90% of the hidden cases; too weak there")
    assert "mma 0/8; not tried: noise." in second
    assert "none is under it." in attack_page.verdict(lines[1:2])


def test_methods_that_train_are_fitted_by_the_one_rule(monkeypatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(models, "resolve", lambda name: Path(name))
    monkeypatch.setattr(arms, "model_sha256", lambda folder: "")
    monkeypatch.setattr(arms, "load_edits", lambda plan, *rest: asked.append(plan.edits[0]) or [arms])
    monkeypatch.setattr(arms, "file", tmp_path, raising=False)
    args = attack_table.options([])
    for method in args.methods:
        attack_table.fitted(args, method, "cat")
    assert [entry.method for entry in asked] == ["erasepro", "uce", "esd:object"]
    assert [entry.parameters for entry in asked] == [{}, {}, attack_table.trained_rule.Rule().parameters("esd:object")]


def test_the_weak_edit_is_tried_where_the_unedited_model_shows_the_target(world: Path, monkeypatch) -> None:
    args = attack_table.options(["--methods", "uce", "--cases", "4", "--out", str(world / "out")])
    made, asked = attack_table.setup(args), []

    def shown(known, cases, folder, name, **more):
        asked.append((known.edit, known.pipe is made.pipe, [case.seed for case in cases], folder.parent))
        return []

    monkeypatch.setattr(attack_table._weak, "shown", shown)
    shares = {one.name: attack_table.run(args, made, one, attack_table.chosen(args))[1].trials
              for one in attack_table.subjects(args, made, "cat")}  # fmt: skip
    assert shares == {"uce": 4, "weak edit": 0, "hidden cases": 0}
    assert asked == [(None, True, [0, 1, 2, 3], world / "out")]


def test_edits_that_come_as_files_have_columns_where_they_have_the_target(world: Path) -> None:
    args = attack_table.options(["--methods", "uce", "--edit", f"esd-x={world / 'erasepro.safetensors'}", "--scale", "0"])
    assert attack_table.columns(args, "cat") == ["uce", "esd-x"] and attack_table.columns(args, "dog") == ["uce"]
    with pytest.raises(UsageError, match="give --edit NAME=FILE"):
        attack_table.columns(attack_table.options(["--edit", "esd-x"]), "cat")
    with pytest.raises(UsageError, match="has no rung 'x': use one of plain, again, apart"):
        attack_table.chosen(attack_table.options(["--only", "x"]))


def test_each_target_has_tables_of_its_own(world: Path) -> None:
    command = ["--methods", "uce", "--cases", "4", "--scale", "0", "--never", "--out", str(world / "out")]
    attack_table.main([*command, "--targets", "cat", "dog"])
    kept = json.loads((world / "out/table.json").read_text())
    assert [(one["target"], len(one["rows"])) for one in kept["targets"]] == [("cat", 4), ("dog", 4)]
    text = attack_page.text(kept)
    assert text.index("### cat") < text.index("### dog") and "do the attacks work" not in text


def test_what_could_not_be_run_is_said() -> None:
    run = ((Climbed(Rung("x", "fake"), (), "give pictures"), Climbed(Rung("y", "fake"), ())), Share(0, 0))
    assert attack_page.skipped({"uce": run}) == ["uce: x could not be run and counts nowhere: give pictures"]


def test_the_estimate_runs_nothing(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(attack_table, "sampling", lambda args: Sampling(20, 4.0))
    attack_table.main(["--estimate", "--never"])
    said = capsys.readouterr().out
    assert "p4d: 9300 passes, 2100 with gradients" in said and "as long as 112820 passes, at most about 17 min" in said
    assert "5 of them: 1.5 h" in said and len(standard.STANDARD.rungs) + 1 == len(said.splitlines())


def test_the_shipped_model_stands_where_it_never_saw_the_target() -> None:
    folder = attack_table.models.resolve("emoji-never")
    for target, wanted in {"bomb": folder, "ink style": folder, "dog": None}.items():
        assert attack_table.never_folder(attack_table.options([]), target) == wanted
    assert attack_table.never_folder(attack_table.options(["--never"]), "bomb") is None
    assert attack_table.never_folder(attack_table.options(["--model", "elsewhere"]), "bomb") is None
