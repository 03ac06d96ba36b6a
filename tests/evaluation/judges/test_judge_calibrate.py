"""Error rates of judges: against counts by hand, on judges whose errors are known."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from erasekit.cli import judges as cli
from erasekit.errors import UsageError
from erasekit.evaluation import judges
from erasekit.evaluation.judges import base, calibrate
from erasekit.evaluation.statistics import wilson
from erasekit.worlds.emoji import BACKGROUNDS, STYLES, names

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class Colours:
    """Finds the colours whose channel is bright somewhere; cannot tell green from blue: where one is, it says green."""

    name, weights_sha256, licence, labels = "colours[3]@0.5", "00", "none", tuple(COLOURS)

    def judge(self, images, prompts):
        return base.judge_each(images, prompts, lambda some: [self.verdict(one) for one in some])

    def verdict(self, one):
        bright = [bool((one[i] - one.sum(0) + one[i] > 0.5).any()) for i in range(3)]
        found = [name for name, there in zip(COLOURS, (bright[0], bright[1] or bright[2], False)) if there]
        return {"found": found, "best": (found or ["red"])[0], "scores": {}}

    def label(self, word):
        if word not in COLOURS:
            raise UsageError(f"no label {word}")
        return word


def paint(path, *colours):
    image = np.zeros((32, 32, 3), np.uint8)
    for place, colour in enumerate(colours):
        image[4:12, 4 + 12 * place : 12 + 12 * place] = [int(255 * c) for c in COLOURS[colour]]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def sorted_images(tmp_path):
    root = tmp_path / "sorted"
    for i in range(4):
        paint(root / "red" / f"{i}.png", "red")
    for i in range(2):
        paint(root / "blue" / f"{i}.png", "blue")
    paint(root / "red+green" / "0.png", "red", "green")
    Image.fromarray(np.random.default_rng(0).integers(60, 90, (32, 32, 3), dtype=np.uint8)).save(root / "none.png")
    (root / "none").mkdir()
    (root / "none.png").rename(root / "none" / "0.png")
    Image.new("RGB", (32, 32)).save(root / "none" / "black.png")
    (root / "red" / "notes.txt").write_text("not an image")
    return root


def test_rates_of_a_folder_by_hand(sorted_images):
    report = calibrate.folder(Colours(), sorted_images)
    assert report["images"] == 9 and report["statuses"] == {"ok": 8, "invalid": 1}
    # 4 red, 1 red+green are right; 2 blue are called green; the noise is rightly empty.
    assert report["hit_rate"]["n"] == 8 and report["hit_rate"]["value"] == 6 / 8
    assert report["false_alarm_rate"]["value"] == 2 / 8 and report["exact_match"]["value"] == 6 / 8
    labels = report["labels"]
    assert labels["red"]["tpr"]["value"] == 1 and labels["red"]["tpr"]["n"] == 5 and labels["red"]["fpr"]["value"] == 0
    assert labels["green"]["fpr"] == {"value": 2 / 7, "low": wilson(2, 7)[0], "high": wilson(2, 7)[1], "n": 7,
                                      "method": "wilson95"}  # fmt: skip
    assert labels["blue"]["tpr"]["value"] == 0 and labels["blue"]["tpr"]["n"] == 2
    assert report["judge"] == "colours[3]@0.5" and json.loads(json.dumps(report)) == report


def test_a_label_that_no_image_shows_has_no_rate(sorted_images):
    import shutil

    shutil.rmtree(sorted_images / "blue")
    assert calibrate.folder(Colours(), sorted_images)["labels"]["blue"]["tpr"] is None


def test_bad_folders(sorted_images, tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        calibrate.folder(Colours(), tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no subfolder with images"):
        calibrate.folder(Colours(), tmp_path / "empty")
    data = (sorted_images / "red" / "0.png").read_bytes()
    (sorted_images / "red" / "0.png").write_bytes(data[:60])
    with pytest.raises(UsageError, match=r"0\.png cannot be read as an image"):
        calibrate.folder(Colours(), sorted_images)
    (sorted_images / "red").rename(sorted_images / "crimson")
    with pytest.raises(UsageError, match="no label crimson"):
        calibrate.folder(Colours(), sorted_images)


def test_embeddings_have_no_error_rates(tmp_path):
    judge = type("E", (), {"name": "clip[x]", "weights_sha256": "", "licence": ""})()
    with pytest.raises(UsageError, match="gives embeddings, no labels"):
        calibrate.folder(judge, tmp_path)


class Seeing(Colours):
    """A CLIP judge of mean colours; what is blue looks a little more green to it."""

    name, labels = "clip[colours]", None

    def judge(self, images, prompts):
        return base.judge_each(images, prompts, lambda some: [base.packed(self.seen(one)) for one in some])

    def seen(self, one):
        red, green, blue = one.mean((1, 2)).tolist()
        vector = torch.tensor([red, green + 0.8 * blue, 0.6 * blue])
        return vector / vector.norm()

    def text_embeddings(self, texts):
        assert all(text.startswith("A photo depicts ") for text in texts), "as CLIP accuracy asks"
        return torch.eye(3)[[list(COLOURS).index(text.split()[-1]) for text in texts]]


def test_a_clip_judges_rates_of_a_folder_by_hand(sorted_images):
    report = calibrate.folder(Seeing(), sorted_images)
    assert report["images"] == 9 and report["statuses"] == {"ok": 8, "invalid": 1}
    # 4 red, 1 red+green are right; 2 blue are nearest to green and still nearer to blue than to red; "none" is in no rate.
    assert report["retrieval_top1"] == {"value": 5 / 7, "low": wilson(5, 7)[0], "high": wilson(5, 7)[1], "n": 7,
                                        "method": "wilson95"}  # fmt: skip
    assert report["pair_accuracy"]["value"] == 6 / 7 and report["pair_accuracy"]["low"] == wilson(6, 7)[0]
    assert {name: (one["retrieval_top1"]["value"], one["retrieval_top1"]["n"]) for name, one in report["names"].items()} == {
        "red": (1, 5), "green": (1, 1), "blue": (0, 2)
    }  # fmt: skip
    assert json.loads(json.dumps(report)) == report and "retrieval top1" in cli.totals(report)


def test_a_clip_judge_needs_names_to_choose_from(sorted_images):
    import shutil

    for name in ("blue", "red+green"):
        shutil.rmtree(sorted_images / name)
    with pytest.raises(UsageError, match="here is only red: give a subfolder"):
        calibrate.folder(Seeing(), sorted_images)
    with pytest.raises(UsageError, match="--images"):
        calibrate.renders(Seeing(), per_label=1)


class Oracle:
    """Knows the scenes that it is shown (they are counted through), and errs where it is told."""

    name, weights_sha256, licence = "oracle[132]@0.5", "00", "none"
    labels = names()

    def __init__(self, scenes, blind=(), sees=None):
        self.scenes, self.blind, self.sees = iter(scenes), set(blind), sees

    def judge(self, images, prompts):
        return [self.verdict(next(self.scenes)) for _ in images]

    def verdict(self, scene):
        found = [names()[i] for i in scene.objects if names()[i] not in self.blind]
        found += [self.sees] if self.sees and self.sees not in found else []
        return judges.Judgement("ok", {"found": found, "best": found[0] if found else names()[0], "scores": {},
                                       "style": STYLES[scene.style], "background": "white"})  # fmt: skip


@pytest.fixture
def scenes(monkeypatch):
    """The scenes that a calibration with two renders a label draws, in order."""
    from erasekit.worlds.emoji import scenes as world

    drawn = []
    real = world.sample_scene
    monkeypatch.setattr(world, "sample_scene", lambda rng, **options: drawn.append(real(rng, **options)) or drawn[-1])
    monkeypatch.setattr(world, "render", lambda scene: np.zeros((8, 8, 3), np.float32))
    calibrate.renders(
        type("J", (Oracle,), {"judge": lambda self, images, prompts: [INVALID] * len(images)})([]), per_label=2
    )
    once = list(drawn)
    drawn.clear()
    return once


INVALID = judges.Judgement("invalid", {"reason": "not asked"})


def test_renders_are_the_same_with_the_same_seed_and_show_every_label(scenes):
    assert len(scenes) == 2 * len(names())
    assert [s.objects for s in scenes if len(s.objects) == 1] != []
    pairs = [s for s in scenes if len(s.objects) == 2]
    assert 0.15 < len(pairs) / len(scenes) < 0.45 and all(len(set(s.objects)) == 2 for s in pairs)
    assert all(row // 2 in scene.objects for row, scene in enumerate(scenes))
    report = calibrate.renders(Oracle(scenes), per_label=2)
    assert report["hit_rate"]["value"] == report["exact_match"]["value"] == report["style_accuracy"]["value"] == 1
    assert report["false_alarm_rate"]["value"] == 0
    white = sum(tuple(BACKGROUNDS)[s.background] == "white" for s in scenes)
    assert report["background_accuracy"]["value"] == white / len(scenes)


def test_known_errors_are_measured(scenes):
    report = calibrate.renders(Oracle(scenes, blind=["cat"], sees="dog"), per_label=2)
    cat, dog = (names().index(n) for n in ("cat", "dog"))
    without_dog = [s for s in scenes if dog not in s.objects]
    assert report["labels"]["cat"]["tpr"]["value"] == 0 and report["labels"]["cat"]["fpr"]["value"] == 0
    assert report["labels"]["dog"]["fpr"]["value"] == 1 and report["labels"]["dog"]["fpr"]["n"] == len(without_dog)
    assert report["false_alarm_rate"]["value"] == len(without_dog) / len(scenes)
    shown = sum(len(s.objects) for s in scenes)
    assert report["hit_rate"]["value"] == (shown - sum(cat in s.objects for s in scenes)) / shown


def test_renders_need_a_judge_that_knows_the_world():
    with pytest.raises(UsageError, match="does not know the emoji world"):
        calibrate.renders(Colours())
    with pytest.raises(UsageError, match="at least one scene"):
        calibrate.renders(Oracle([]), per_label=0)


def parsed(*argv):
    parser = argparse.ArgumentParser()
    cli.add(parser.add_subparsers(dest="command"))
    return parser.parse_args(["judges", *argv])


def test_the_command_lists(capsys):
    cli.run(parsed())
    text = capsys.readouterr().out
    assert all(known.spec in text for known in judges.SUMMARIES.values())
    cli.run(parsed("--json"))
    assert list(json.loads(capsys.readouterr().out)) == list(judges.JUDGES)


def test_the_command_calibrates(capsys, monkeypatch, sorted_images, tmp_path):
    monkeypatch.setattr(judges, "get", lambda spec: Colours())
    out = tmp_path / "rates.json"
    cli.run(parsed("calibrate", "mine", "--images", str(sorted_images), "--out", str(out)))
    report = json.loads(out.read_text())
    assert report["exact_match"]["value"] == 0.75
    printed = capsys.readouterr().out
    assert "8 ok, 1 invalid" in printed and "75.0 %" in printed and str(out) in printed


@pytest.mark.parametrize("argv", [("calibrate",), ("calibrate", "emoji"), ("calibrate", "--out", "x.json")])
def test_the_command_names_what_is_missing(argv):
    with pytest.raises(UsageError, match="calibrate SPEC --out"):
        cli.run(parsed(*argv))


def test_torch_is_not_needed_to_list():
    import subprocess
    import sys

    code = "import sys, erasekit.evaluation.judges; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
