"""The demo over a tiny random model and a judge that answers by rule: what it writes, and that its numbers are right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import erasekit
from erasekit import demo, models
from erasekit.evaluation.statistics import Share

STYLES = ("twemoji", "noto", "blob", "flat", "ink")


class RuleJudge:
    """Finds a word in the first images of a call: `rates[word]` of them; the style is always the second."""

    styles = STYLES

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates = rates

    def found(self, images: torch.Tensor, word: str) -> torch.Tensor:
        assert images.ndim == 4 and images.shape[1] == 3 and images.min() >= 0 and images.max() <= 1
        return torch.arange(len(images)) < self.rates.get(word, 0.0) * len(images)

    def __call__(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(style=torch.eye(5)[1].repeat(len(images), 1))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new" / "out"


@pytest.fixture(scope="module")
def result(sd1_folder: Path, out: Path):
    few = [demo.Case("target", "a photo of a cat", "dog", "fox", "noto"), demo.Case("anchor", "a dog", "dog")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "cases", lambda: few)
        patch.setattr(demo, "judge", lambda: RuleJudge({"cat": 0.5, "dog": 1.0}))
        patch.setattr(models, "defaults", lambda folder: {"steps": 1, "guidance": 1.0})
        return demo.run(out, model=str(sd1_folder), seeds=(0, 1))


def test_writes_every_file_whole(result: demo.Result, out: Path) -> None:
    assert sorted(p.name for p in out.iterdir()) == ["edit.safetensors", "grid.png", "report.html", "results.json"]
    page = (out / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page must refer to no other file"
    assert page.count("data:image/png;base64,") == 2 * 2 * 2 and "<svg" in page
    with Image.open(out / "grid.png") as picture:
        assert picture.size[0] > 400


def test_numbers_are_the_judges(result: demo.Result, out: Path) -> None:
    target, anchor = result.drawn
    assert target.found["cat"] == (Share(1, 2), Share(1, 2)) and target.found["fox"][1] == Share(0, 2)
    assert target.found["style"] == (Share(2, 2), Share(2, 2)) and "style" not in anchor.found
    gone, new, kept, styled = result.headline
    assert (gone.after, new.after, kept.after, styled.after) == (Share(1, 2), Share(2, 2), Share(2, 2), Share(2, 2))
    stored = json.loads((out / "results.json").read_text())
    assert stored["headline"][0]["after"]["hits"] == 1 and stored["self_check"]["modules"] == 14


def test_the_pipeline_is_edited_only_after(result: demo.Result) -> None:
    """The same seed before and after differ where the edit acts: the target's prompt."""
    target = result.drawn[0]
    assert target.before[0].tobytes() != target.after[0].tobytes()


def test_the_edit_is_the_papers_and_its_drift_is_measured(result: demo.Result, sd1_folder: Path, out: Path) -> None:
    plain = erasekit.erase(sd1_folder, "cat", anchor="dog")
    assert [op.site for op in plain.ops] == [op.site for op in result.edit.ops]
    for one, two in zip(plain.ops, result.edit.ops, strict=True):
        assert torch.allclose(one.up @ one.down, two.up @ two.down, atol=1e-6)
    assert plain.retain == () and result.edit.self_check["retained_drift"] > 1e-3
    assert "fox, wolf" in (out / "report.html").read_text()


def test_cases_fit_the_world_and_the_budget() -> None:
    from erasekit.worlds.emoji.concepts import STYLES, names

    cases = demo.cases()
    assert 2 * len(cases) * len(demo.SEEDS) <= 150
    assert {case.wanted for case in cases} | {case.also for case in cases} - {""} <= set(names()) | {""}
    assert [case.style for case in cases if "five" in case.group] == list(STYLES)
    assert not any(word in case.prompt for case in cases if not case.erased for word in ("cat", "kitten", "feline"))


@pytest.mark.slow
def test_the_command_writes_a_report_whose_numbers_are_read_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "erasekit", "demo", "--seeds", "0", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "") and "drift of what is kept" in done.stdout
    stored = json.loads((out / "results.json").read_text())
    gone, new, kept, _ = stored["headline"]
    assert {row["group"] for row in stored["rows"]} == {case.group for case in demo.cases()}
    assert gone["before"]["images"] == sum(case.erased for case in demo.cases()) and kept["after"]["images"] == 7
    assert gone["after"]["share"] <= 0.2 < 0.6 <= gone["before"]["share"] and new["after"]["share"] >= 0.5
    assert stored["self_check"]["retained_drift"] > 1e-3 and stored["self_check"]["residual"] <= 1e-5
    edit = erasekit.load_edit(out / "edit.safetensors")
    assert edit.self_check == stored["self_check"] and edit.targets == ("cat",)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * len(demo.cases()) and "Erasing" in page
    with Image.open(out / "grid.png") as picture:
        assert picture.size[1] > 400
