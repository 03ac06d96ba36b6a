"""benchmarks/steering_scales.py: what is pushed is asked of the ladder, and every hit lands in its cell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import edits
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import steering_scales

from erasekit.attacks._classifier import Classifier
from erasekit.attacks.sight import Seen, Sight
from erasekit.attacks.standard import SCALES
from erasekit.attacks.victim import Sampling, Victim


class Nothing:
    name, weights_sha256, licence, labels = "nothing", "", "", ("bomb",)


class Third(Victim):
    """The target is in the third picture that is looked at, and in no other."""

    looked = 0

    def look(self, cases, images):
        first, self.looked = self.looked, self.looked + len(images)
        return [Seen("ok", first + i == 2, 0.0) for i in range(len(images))]


def test_the_classifier_is_trained_as_the_ladder_does() -> None:
    assert steering_scales.config(None).scales == SCALES and steering_scales.config(3).steps == 3
    assert set(SCALES) <= set(steering_scales.SCALES)


def test_a_row_counts_hits_at_each_scale_and_keeps_the_first_seeds_picture(sd1) -> None:
    args = argparse.Namespace(scales=[0.0, 400.0], seeds=2)
    with Third(sd1, edits.edit(sd1), Sight(Nothing(), "bomb"), Sampling(1, 3.0, 2)) as victim:
        draw = torch.Generator().manual_seed(0)
        classifier = Classifier.fresh(4 * 16 * 16, draw)
        hits, first = steering_scales.row(victim, classifier, "a cat", args, 2)
    assert hits == [0, 1] and [image.size for image in first] == [(32, 32)] * 2
    assert first[0].tobytes() != first[1].tobytes(), "the push is on"


def test_the_page_and_the_picture_have_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"model": "unedited", "prompt": "", "hits": [0, 8]}]
    pictures = [[Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")]]
    monkeypatch.setattr(steering_scales, "measured", lambda args: (rows, pictures, "loss"))
    (tmp_path / "latents.md").write_text("a\n<!-- begin steering scales -->\n<!-- end steering scales -->\nb\n")
    results = tmp_path / "found.json"
    steering_scales.main(["--scales", "0", "400", "--docs", str(tmp_path), "--results", str(results)])
    text = (tmp_path / "latents.md").read_text()
    assert "| model | prompt | none | 400 |" in text and "| unedited | the empty one | 0 | 8 |" in text
    picture = Image.open(tmp_path / "steering.png")
    assert picture.size == (230 + 2 * 64, 22 + 64) and picture.getpixel((230 + 96, 50)) == (0, 0, 255)
    assert '"hits"' in results.read_text()
