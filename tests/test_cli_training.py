"""`erasekit erase` with a method that trains: steps, resuming, the dry run, and one clear line for each slip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from erasekit import cli, io

QUICK = ["--method", "esd", "--set", "sampling_steps=3", "rate=1e-3", "save_every=2"]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]):
    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main([str(word) for word in words])
        return code, *capfd.readouterr()

    return call


def test_steps_resume_and_the_edit_are_those_of_python(run, sd1_folder: Path, tmp_path: Path) -> None:
    words = ["erase", "cat", "--model", sd1_folder, *QUICK, "--steps", 3, "--retain", "dog"]
    code, out, err = run(*words, "--resume", tmp_path / "run", "--out", tmp_path / "a.safetensors")
    assert (code, err) == (0, "")
    assert "training: 3/3, loss " in out and "numbers trained:" in out and "esd does not hold on" in out
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
    code, out, err = run(*words, "--resume", tmp_path / "run", "--out", tmp_path / "b.safetensors")
    assert (code, err) == (0, "") and "training: " not in out  # the run was done
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    edit = io.load(tmp_path / "a.safetensors")
    assert edit.parameters["steps"] == 3 and edit.parameters["sampling_steps"] == 3
    assert all(bool(torch.isfinite(op.difference).all()) for op in edit.ops)


def test_the_dry_run_says_what_it_would_take_and_writes_nothing(run, sd1_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "none.safetensors"
    code, said, err = run("erase", "cat", "--model", sd1_folder, *QUICK, "--dry-run", "--out", out)
    assert (code, err) == (0, "") and not list(tmp_path.iterdir())
    for part in ("esd, variant x: ", "numbers in", "share of the denoiser:", "steps:", "expected time:", "expected memory:"):
        assert part in said
    assert run("erase", "cat", "--model", sd1_folder, *QUICK, "--dry-run")[0] == 0  # needs no --out


def test_a_list_that_is_too_long_is_said_on_stderr_before_the_work(run, sd1_folder: Path) -> None:
    targets = [a + b for a in "bcdfgh" for b in "kmnpqr"]
    code, said, err = run("erase", *targets, "--model", sd1_folder, *QUICK, "--steps", 72, "--dry-run")
    assert code == 0 and "nothing was written" in said and err.count("\n") == 1
    assert err.startswith("erasekit: warning: 36 targets") and "share 72 turns of training, about 2 each" in err


@pytest.mark.parametrize(
    ("words", "named", "code"),
    [
        ([*QUICK, "--steps", "0"], "steps must be between 1", 2),
        (["--method", "uce", "--steps", "5"], "uce has no parameter steps", 2),
        (["--method", "uce", "--resume", "run"], "uce does not train and has no use for a checkpoint", 2),
        (["--method", "uce", "--dry-run"], "uce does not train and has no use for a plan", 2),
        ([*QUICK, "variant=y"], "variant must be one of x, x-strict, u", 2),
        (["--method", "esd:nonesuch"], "it has object, rewrite", 2),
    ],
)
def test_a_slip_is_one_line(run, sd1_folder: Path, tmp_path: Path, words: list, named: str, code: int) -> None:
    out = tmp_path / "none.safetensors"
    found, _, err = run("erase", "cat", "--model", sd1_folder, *words, "--out", out)
    assert found == code and named in err and err.count("\n") == 1 and not out.exists()


def test_the_checkpoint_of_another_run_is_refused(run, sd1_folder: Path, tmp_path: Path) -> None:
    words = ["--model", sd1_folder, *QUICK, "--steps", 2, "--resume", tmp_path / "run.safetensors"]
    assert run("erase", "cat", *words, "--out", tmp_path / "a.safetensors")[0] == 0
    code, _, err = run("erase", "dog", *words, "--out", tmp_path / "b.safetensors")
    assert code == 1 and "the checkpoint of another run (other targets)" in err and err.count("\n") == 1
    assert not (tmp_path / "b.safetensors").exists()
