"""The picture of many concepts: one row for no edit and each method, targets left, what is retained right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import many_picture
from many_fits import Arm
from many_sets import target_prompts, work

from erasekit.errors import InfeasibleError
from erasekit.evaluation.suites import Sampling


def test_every_tenth_prompt_is_drawn_by_its_seed_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked = []

    def draw(pipe, texts, seeds, sampling):
        asked.append((list(texts), list(seeds)))
        return torch.zeros(len(texts), 8, 8, 3, dtype=torch.uint8)

    monkeypatch.setattr(many_picture.drawing, "draw", draw)
    prompts = target_prompts(work(10))
    assert len(many_picture.draw(None, Arm("no edit"), prompts, Sampling(1, 1.0))) == 10
    assert asked == [([p.text for p in prompts[::10]], list(range(0, 100, 10)))]


def test_the_sheet_has_a_row_for_each_and_two_sides() -> None:
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    sheet = many_picture.sheet([("a", [red] * 3, [blue] * 3), ("b", [blue] * 3, [red] * 3)], ("left", "right"))
    tile, gap, head = many_picture.TILE, many_picture.GAP, many_picture.HEAD
    assert sheet.size == (6 * tile + gap, head + 2 * (tile + head))
    middle = 2 * head + tile // 2
    assert sheet.getpixel((tile, middle)) == (255, 0, 0) and sheet.getpixel((3 * tile + gap + 5, middle)) == (0, 0, 255)
    assert sheet.getpixel((tile, middle + tile + head)) == (0, 0, 255)


def test_a_method_that_refuses_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(many_picture, "fit", lambda pipe, task, spec: Arm(spec, refused="too many"))
    monkeypatch.setattr(many_picture.erasekit, "load", lambda name: None)
    with pytest.raises(InfeasibleError, match="uce: too many"):
        many_picture.main(["--count", "1", "--methods", "uce", "--out", str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()
