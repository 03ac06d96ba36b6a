"""What a stage keeps is used again for the same work only, and what the stages' command line refuses."""

import logging

import pytest
import torch

from erasekit.errors import ModelError, UsageError
from erasekit.worlds.emoji.train import __main__ as command
from erasekit.worlds.emoji.train import denoiser, focus, unpack
from erasekit.worlds.emoji.train.kept import digest, kept
from erasekit.worlds.emoji.train.loop import refuse_finished

FIRST = {"seed": 0, "count": 2, "vae": "a"}


def test_a_tensor_is_kept_for_its_origin_alone(tmp_path):
    path = tmp_path / "latents.pt"
    assert kept(path, FIRST, 2, lambda: torch.zeros(2)).tolist() == [0, 0]
    assert kept(path, FIRST, 2, lambda: torch.ones(2)).tolist() == [0, 0]
    for key, value in (("seed", 1), ("count", 3), ("vae", "b")):
        assert kept(path, FIRST | {key: value}, 2, lambda: torch.ones(2)).tolist() == [1, 1]
        assert kept(path, FIRST, 2, lambda: torch.zeros(2)).tolist() == [0, 0]


def test_a_bare_tensor_of_an_older_version_is_taken_unless_its_rows_are_others(tmp_path, caplog):
    path = tmp_path / "latents.pt"
    torch.save(torch.full((2,), 5.0), path)
    with caplog.at_level(logging.INFO):
        assert kept(path, FIRST, 2, lambda: torch.zeros(2)).tolist() == [5, 5]
    assert "taken as it is" in caplog.text
    assert kept(path, FIRST | {"count": 3}, 3, lambda: torch.zeros(3)).tolist() == [0, 0, 0]


def test_a_failure_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "latents.pt"
    kept(path, FIRST, 2, lambda: torch.zeros(2))

    def dies(pair, place):
        place.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch, "save", dies)
        kept(path, FIRST | {"seed": 1}, 2, lambda: torch.ones(2))
    assert kept(path, FIRST, 2, lambda: torch.ones(2)).tolist() == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["latents.pt"]


def test_latents_and_contexts_follow_seed_and_parts(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        denoiser, "encode_scenes", lambda work, scenes: calls.append("scenes") or torch.zeros(len(scenes))
    )
    monkeypatch.setattr(denoiser, "encode_text", lambda work, texts: calls.append("texts") or torch.zeros(len(texts)))
    for part in ("vae", "text_encoder"):
        (tmp_path / part).mkdir()

    def asked(seed):
        calls.clear()
        denoiser.latents(tmp_path, seed, 4)
        denoiser.contexts(tmp_path, seed, 4)
        return list(calls)

    assert asked(0) == ["scenes", "texts"] and asked(0) == []
    (tmp_path / "vae" / "config.json").write_text("1")
    assert asked(0) == ["scenes"]
    (tmp_path / "text_encoder" / "config.json").write_text("1")
    assert asked(0) == ["texts"] and asked(1) == ["scenes", "texts"]
    assert digest(tmp_path / "vae") != digest(tmp_path / "text_encoder")


def test_onward_is_refused_beside_a_finished_run(tmp_path):
    path = tmp_path / "denoiser.pt"
    refuse_finished(path, 10)
    torch.save({"step": 10}, path)
    refuse_finished(path, 11)
    with pytest.raises(UsageError, match=r"finished run \(10 of 10 steps\).*move it away"):
        refuse_finished(path, 10)
    with pytest.raises(UsageError, match="finished run"):
        denoiser.run(tmp_path, steps=10, count=8, onward=True)


def test_a_focus_without_a_checkpoint_asks_the_unet_or_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="run the stage denoiser, or unpack"):
        focus.run(tmp_path)
    (tmp_path / "unet").mkdir()
    monkeypatch.setattr(focus, "pipeline", lambda work, unet: unet)
    monkeypatch.setattr(focus.UNet2DConditionModel, "from_pretrained", lambda folder: Unet(folder))
    assert focus._average(tmp_path).folder == tmp_path / "unet"


class Unet:
    def __init__(self, folder):
        self.folder = folder

    def eval(self):
        return self

    def set_progress_bar_config(self, *, disable):
        pass


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["unpack", "--seed", "3"], "the stage unpack does not take --seed: it takes no option but --work"),
        (["card", "--steps", "3"], "does not take --steps: it takes --seed"),
        (["focus", "--onward"], "does not take --onward"),
        (["judge", "--without", "cat"], "does not take --without"),
    ],
)
def test_what_a_stage_does_not_take_is_refused_before_anything_is_made(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([*words, "--work", str(tmp_path / "work")])
    assert stop.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "work").exists()


def test_no_steps_at_all_are_refused():
    args = command.build_parser().parse_args(["focus", "--work", "w", "--steps", "0", "--seed", "0"])
    with pytest.raises(UsageError, match="at least 1"):
        command.options_of(args, lambda work, *, seed=0, steps=5: None)


def test_other_errors_of_ours_are_one_line(tmp_path, monkeypatch):
    def run(work):
        raise ModelError("the weights are missing")

    monkeypatch.setattr(unpack, "run", run)
    with pytest.raises(SystemExit, match=r"^error: the weights are missing$"):
        command.main(["unpack", "--work", str(tmp_path)])
