"""How much is computed at once, and in which dtype: what a large model needs, and what the deployed one does."""

from __future__ import annotations

import argparse
from dataclasses import replace

import edits
import pytest
import torch
from test_standard import CASES, SMALL, Erased, Flag

from erasekit.attacks import ladder, relearn, unlearndiffatk, victim
from erasekit.attacks._finetune import Lesson
from erasekit.attacks.ladder import Rung
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling
from erasekit.cli import attack as command
from erasekit.errors import TrainingError, UsageError
from erasekit.training.bench import Denoiser
from erasekit.training.loop import Step


def run(pipe, attack: str, settings: dict, *, batch: int = 4):
    with Erased(pipe, edits.edit(pipe), Sight(Flag(), "cat"), Sampling(1, 3.0, batch)) as model:
        return ladder.run(model, CASES, Rung("x", attack, settings), seed=0)


@pytest.mark.parametrize("batch", [1, 2])
def test_searches_and_lessons_have_no_more_side_by_side_than_pictures(sd1, batch: int, monkeypatch) -> None:
    seen: dict[str, set[int]] = {"cases": set(), "samples": set()}
    improve, call = unlearndiffatk.improve, Denoiser.__call__

    def noted(group, *rest):
        seen["cases"].add(len(group))
        return improve(group, *rest)

    def counted(self, latents, timestep, text):
        seen["samples"].add(len(latents))
        return call(self, latents, timestep, text)

    monkeypatch.setattr(unlearndiffatk, "improve", noted)
    run(sd1, "unlearndiffatk", SMALL["unlearndiffatk"][0] | {"batch": 20}, batch=batch)
    monkeypatch.setattr(Denoiser, "__call__", counted)
    run(sd1, "concept-inversion", SMALL["concept-inversion"][0] | {"batch": 4}, batch=batch)
    run(sd1, "relearn", SMALL["relearn"][1] | {"batch": 2}, batch=batch)
    assert seen == {"cases": {batch}, "samples": {batch}}


def test_a_lesson_in_parts_has_the_gradients_of_the_whole(sd1) -> None:
    config = relearn.RelearnConfig("dreambooth", pictures=2, prior_pictures=2, batch=3, prior=0.5)
    with Erased(sd1, edits.edit(sd1), Sight(Flag(), "cat"), Sampling(1, 3.0, 6)) as model:
        whole = relearn.prepared(model, config, 0)
        assert whole.training.accumulate == 1 and config.setting(2)[0].course(5, 4, clip=0, recompute=False).accumulate == 2
        found = []
        for count in (1, 4):  # of six samples: parts of one and of two
            lesson = replace(whole, training=replace(whole.training, accumulate=count))
            value = sum(lesson.loss(Step(7, 2, part)) for part in range(count)) / count
            found.append((value, *torch.autograd.grad(value, list(lesson.learner.trained.values()), allow_unused=True)))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_lesson_too_large_for_the_gpu_names_what_the_command_has(sd1, recompute: bool, monkeypatch) -> None:
    def full(self, step):
        raise torch.cuda.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(Lesson, "loss", full)
    with pytest.raises(TrainingError) as error:
        run(sd1, "relearn", SMALL["relearn"][0] | {"recompute": recompute})
    alone = "" if recompute else ", relearn by itself with --set recompute=true"
    assert str(error.value) == ("the GPU's memory is full: have fewer pictures at once (--batch N)" + alone
                                + ", or free memory of other programs")  # fmt: skip


LOOPS = ["noise", "completion", "inpainting", "latent-inversion", "steering"]


@pytest.mark.parametrize(("attack", "precision"), [*((name, "stored") for name in LOOPS), ("textual-inversion", "model")])
def test_loops_that_make_pictures_compute_as_the_pipeline(sd1, attack: str, precision: str, monkeypatch) -> None:
    """Gradients are another matter."""
    asked: set[str] = set()

    class Noted(Denoiser):
        def __init__(self, unet, precision: str) -> None:
            super().__init__(unet, precision)
            self.precision = precision

        def __call__(self, latents, timestep, text):
            asked.add(self.precision)
            return super().__call__(latents, timestep, text)

    monkeypatch.setattr(victim, "Denoiser", Noted)
    run(sd1, attack, SMALL[attack][0])
    assert asked == {precision}


def test_the_command_says_how_many_at_once(monkeypatch) -> None:
    def how(**given) -> Sampling:
        plain = {"model": "emoji", "steps": None, "guidance": None, "batch": None}
        return command.sampling(argparse.Namespace(**(plain | given)))

    assert how().batch == Sampling.batch == 16 and how(batch=3, steps=7) == Sampling(7, how().guidance, 3)
    with pytest.raises(UsageError, match="--batch takes a number from 1 on"):
        how(batch=0)
