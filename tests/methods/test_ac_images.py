"""AC: runs that were ended and go on, and the images that they keep or are given; on tiny random models."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from ac_runs import fit, opened, same, state
from PIL import Image
from safetensors.torch import load_file

from erasekit.cli import terminal
from erasekit.errors import TrainingError, UsageError
from erasekit.methods._templates import listed
from erasekit.training.checkpoint import Checkpoint


@pytest.mark.parametrize("options", [{"augment": True, "regulariser": 0.2}, {"variant": "embedding"}])
def test_a_killed_run_goes_on_to_the_same_edit(sd1, tmp_path: Path, options: dict) -> None:
    options = {"steps": 4, "save_every": 2, "targets": ["cat", "fox"]} | options
    before, said = state(sd1), []

    def kill(done: int, total: int, what: str) -> None:
        if what.startswith("training") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(sd1, **options, checkpoint=tmp_path, progress=kill)
    assert state(sd1) == before
    resumed = fit(sd1, **options, checkpoint=tmp_path, progress=lambda *report: said.append(report[2]))
    assert not any("drawing" in what for what in said)  # the images were kept
    whole = fit(sd1, **options)
    assert same(resumed, whole) and resumed.self_check == whole.self_check
    for other in ({"targets": ["cat", "a"]}, {"seed": 1}, {"anchor": "photo"}, {"loss": "noise"}, {"images": 3}):
        with pytest.raises(TrainingError, match="another run"):
            fit(sd1, **(options | other), checkpoint=tmp_path)
    sibling = tiny.sd1()
    sibling.unet = tiny.sd1(seed=7).unet  # of which nothing is trained where rows of the token table are
    with pytest.raises(TrainingError, match="another run"):
        fit(sibling, **options, checkpoint=tmp_path)


def test_a_checkpoint_of_another_run_is_refused_before_images_are_drawn(sd1, tmp_path: Path) -> None:
    said: list[str] = []
    Checkpoint.at(tmp_path, {"method": "esd"}).save({"trained.x": torch.zeros(1)}, [0.0])
    with pytest.raises(TrainingError, match="another run"):
        fit(sd1, checkpoint=tmp_path, progress=lambda *report: said.append(report[2]))
    assert not said


def test_images_drawn_before_a_kill_are_not_drawn_again(sd1, tmp_path: Path) -> None:
    options, file = {"images": 20, "steps": 4}, tmp_path / "checkpoint.images.safetensors"
    before, said = state(sd1), []

    def kill(done: int, total: int, what: str) -> None:
        if what.startswith("drawing") and done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(sd1, **options, checkpoint=tmp_path, progress=kill)
    assert state(sd1) == before
    known = load_file(file)["latents"]
    assert len(known) in (2, 4)
    with pytest.raises(TrainingError, match=r"another run \(other seed\)"):
        fit(sd1, **options, seed=1, checkpoint=tmp_path)
    resumed = fit(sd1, **options, checkpoint=tmp_path, progress=lambda *report: said.append(report))
    drawing = [done for done, _, what in said if what.startswith("drawing")]
    assert drawing[0] == len(known) and min(drawing[1:]) > len(known)
    assert torch.equal(load_file(file)["latents"][: len(known)], known)
    whole = fit(sd1, **options)
    assert same(resumed, whole) and resumed.self_check == whole.self_check


def test_drawn_images_are_kept_whatever_the_autoencoder(sd1, tmp_path: Path) -> None:
    """It only augments them, later: drawing them is the longest part of a run."""
    options, said, other = {"augment": True}, [], tiny.sd1()
    other.vae = tiny.sd1(seed=7).vae

    def kill(done: int, total: int, what: str) -> None:
        if what.startswith("training"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(sd1, **options, checkpoint=tmp_path, progress=kill)
    gone_on = fit(other, **options, checkpoint=tmp_path, progress=lambda *report: said.append(report[2]))
    assert not any("drawing" in what for what in said) and same(gone_on, fit(other, **options))


def test_progress_says_before_the_first_image_how_many_there_are_and_how_to_have_fewer(sd1, capsys) -> None:
    said: list[tuple[int, int, str]] = []
    with opened(sd1) as run:
        count = len(run.used)
    fit(sd1, progress=lambda *report: said.append(report))
    done, total, what = said[0]
    assert (done, total) == (0, count) and what.startswith("drawing anchor images: 2 sampling steps each")
    assert "lower images (now 4)" in what and "folder" in what
    assert [done for done, *_ in said[1:3]] == [2, min(4, count)] and said[1][2].endswith(" s left")
    with terminal.progress() as report:  # no terminal: plain lines
        for line in said[:3]:
            report(*line)
    assert capsys.readouterr().out.startswith(f"drawing anchor images: 0/{count}, 2 sampling steps each")


def test_a_folder_of_images_with_captions_is_learned_from_and_belongs_to_the_run(sd1, tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (50, 40), (ord(name), 90, 10)).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("the dog in a photo")
    (folder / "b.txt").write_text("a fox")
    with opened(sd1, folder=str(folder)) as run:
        assert [item.caption for item in run.gallery.items[0]] == ["the dog in a photo", "a photo of dog"]
        assert [item.targets for item in run.gallery.items[0]] == [("the cat in a photo",), ("a photo of cat",)]
        assert run.images.shape == (3, 4, 16, 16)
    before = state(sd1)
    edit = fit(sd1, folder=str(folder), checkpoint=tmp_path / "run")
    assert state(sd1) == before and edit.parameters["folder"] == "dogs"
    assert any("not used: 1" in said for said in edit.self_check["warnings"])
    assert edit.self_check["captions"] == listed(["the dog in a photo", "a photo of dog"])
    sibling = tiny.sd1()
    sibling.vae = tiny.sd1(seed=7).vae  # its latents of the images are others
    with pytest.raises(TrainingError, match=r"another run \(other data\)"):
        fit(sibling, folder=str(folder), checkpoint=tmp_path / "run")
    (folder / "c.txt").write_text("another dog")
    with pytest.raises(TrainingError, match="another run"):
        fit(sd1, folder=str(folder), checkpoint=tmp_path / "run")
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(UsageError, match="holds no image"):
        fit(sd1, folder=str(folder))
