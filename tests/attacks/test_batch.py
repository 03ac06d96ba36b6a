"""How much is computed at once, and in which dtype: what a large model needs, and what the deployed one does."""

from __future__ import annotations

import argparse

import edits
import pytest
from test_standard import CASES, SMALL, Erased, Flag

from erasekit.attacks import ladder, unlearndiffatk, victim
from erasekit.attacks.ladder import Rung
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling
from erasekit.cli import attack as command
from erasekit.errors import UsageError
from erasekit.training.bench import Denoiser


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
    assert seen == {"cases": {batch}, "samples": {batch}}


@pytest.mark.parametrize("attack", ["noise", "completion", "inpainting", "latent-inversion", "steering"])
def test_loops_that_make_pictures_compute_as_the_pipeline(sd1, attack: str, monkeypatch) -> None:
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
    assert asked == {"stored"}
    asked.clear()
    run(sd1, "textual-inversion", SMALL["textual-inversion"][0])
    assert asked == {"model"}  # gradients are another matter


def test_the_command_says_how_many_at_once(monkeypatch) -> None:
    def how(**given) -> Sampling:
        plain = {"model": "emoji", "steps": None, "guidance": None, "batch": None}
        return command.sampling(argparse.Namespace(**(plain | given)))

    assert how().batch == Sampling.batch == 16 and how(batch=3, steps=7) == Sampling(7, how().guidance, 3)
    with pytest.raises(UsageError, match="--batch takes a number from 1 on"):
        how(batch=0)
