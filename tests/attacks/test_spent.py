"""What was spent is how often the denoiser was asked, one sample each: with a defence that asks it, too, and whatever the
sampler makes of a number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import edits
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from test_announced import irece
from test_standard import CASES, SMALL, Erased, Flag

from erasekit.attacks import ladder
from erasekit.attacks.ladder import Climbed, Rung
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.edit import Edit, Guidance

HOW = Sampling(2, 3.0, 4)


@contextmanager
def asked(pipe) -> Iterator[list[int]]:
    """The samples of each call of the denoiser, as they are made."""
    rows: list[int] = []

    def count(module, inputs, options) -> None:
        rows.append(len(inputs[0] if inputs else options["sample"]))

    handle = pipe.unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def defence(pipe, at: list[float]) -> Edit:
    """Two targets at these points."""
    edit = irece(pipe, at=at)
    (op,) = edit.ops
    weights = {"features": op.weights["features"].repeat(2, 1, 1), "thresholds": torch.full((2, len(at)), -1.0)}
    return replace(
        edit, ops=(Guidance("irece", weights, op.config | {"targets": ["cat", "dog"], "tokens": [[1], [1]]}),)
    )


@pytest.mark.parametrize("attack", sorted(SMALL))
def test_an_attack_on_a_defended_edit_counts_every_pass(attack: str, sd1) -> None:
    both = edits.edit(sd1) + defence(sd1, [0.0, 0.5])
    for settings in SMALL[attack]:
        rung = Rung("x", attack, settings)
        with Erased(sd1, both, Sight(Flag(), "cat"), HOW) as victim, asked(sd1) as rows:
            found = ladder.run(victim, CASES, rung, seed=0)
        assert Climbed(rung, tuple(found)).spent.passes == sum(rows), settings


def pndm(config):
    return PNDMScheduler.from_config(config, skip_prk_steps=True)


EULER, DPM = EulerDiscreteScheduler.from_config, DPMSolverMultistepScheduler.from_config
SAMPLED = [
    (None, [0.0]),
    (None, [0.3, 0.5, 0.55]),  # two on one step
    (None, [0.25, 1.0]),  # the end
    (pndm, [0.0]),
    (pndm, [0.25, 1.0]),  # PLMS's ignored second
    (EULER, [0.3, 0.5, 0.55]),
    (DPM, [0.3, 0.5, 0.55]),
]


@pytest.mark.parametrize(("make", "at"), SAMPLED)
def test_a_picture_costs_what_its_sampler_and_its_defence_ask_for(make, at: list[float], sd1) -> None:
    if make:
        sd1.scheduler = make(sd1.scheduler.config)
    for guidance in (1.0, 3.0):
        with Victim(sd1, defence(sd1, at), Sight(Flag(), "cat"), Sampling(4, guidance, 4)) as victim:
            with asked(sd1) as rows:
                victim.draw(CASES)
            assert victim.cost(2).passes == sum(rows)
            with victim.original(), asked(sd1) as rows:
                victim.draw(CASES)
                assert victim.cost(2).passes == sum(rows) and victim.acting(4) == 0
    assert victim.cost(2).passes == sum(rows), "nothing acts any more"


def test_a_share_of_a_defence_that_is_subtracted_still_acts_and_counts(sd1) -> None:
    rung = Rung("x", "subtract", {"strength": 0.5})
    with Victim(sd1, defence(sd1, [0.0]), Sight(Flag(), "cat"), HOW) as victim, asked(sd1) as rows:
        found = ladder.run(victim, CASES, rung, seed=0)
    assert Climbed(rung, tuple(found)).spent.passes == sum(rows) == 2 * 2 * (4 + 2)
