"""Inversion: each step up is the inverse of diffusers' step down, the loop closes, and whose model inverts is what is said."""

from __future__ import annotations

import edits
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from test_probes import BETAS, CASES, held, near, scene, unchanged, victim

from erasekit.attacks import Case, get
from erasekit.attacks._ddim import CLEAN, Text, inverted, risen, sampled, texts
from erasekit.attacks.latent_inversion import LatentInversion, LatentInversionConfig
from erasekit.attacks.victim import Sampling
from erasekit.errors import UsageError
from erasekit.training.latents import Schedule, converted

NONE = Text(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
KINDS = ("epsilon", "v_prediction")


def config(**options) -> LatentInversionConfig:
    return LatentInversionConfig(**({"steps": 2} | options))


def two_modes(schedule: Schedule):
    """The exact prediction for numbers near -1 and 1 (standard deviation 0.3)."""

    def predict(x, timestep, text):
        alpha, sigma = level = schedule.level(timestep)
        spread = 0.09 * alpha**2 + sigma**2
        eps = sigma * (x - alpha * torch.tanh(alpha * x / spread)) / spread
        return converted(x, eps, level, kind="epsilon", wanted=schedule.prediction)

    return predict


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_up_is_undone_by_diffusers_step_down(kind: str) -> None:
    scheduler = DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(4)
    schedule = Schedule.of(BETAS | {"prediction_type": kind}, 4)
    draw = torch.Generator().manual_seed(0)
    latents, prediction = (torch.randn(2, 4, 3, 3, generator=draw) for _ in (0, 1))
    lowers = [CLEAN, *map(schedule.level, reversed(schedule.timesteps))]
    for lower, timestep in zip(lowers, reversed(schedule.timesteps), strict=False):
        upper = risen(latents, prediction, lower, schedule.level(timestep), kind)
        down = scheduler.step(prediction, timestep, upper).prev_sample
        torch.testing.assert_close(down, latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_closes_with_steps_and_much_faster_with_rounds(kind: str) -> None:
    draw = torch.Generator().manual_seed(1)
    clean = torch.randint(0, 2, (4, 1, 4, 4), generator=draw).double() * 2 - 1
    clean += 0.3 * torch.randn(clean.shape, generator=draw, dtype=torch.float64)

    def missed(steps: int, rounds: int) -> float:
        schedule = Schedule.of(BETAS | {"prediction_type": kind}, steps)
        predict = two_modes(schedule)
        noise = inverted(predict, clean, NONE, schedule=schedule, rounds=rounds)
        return float((sampled(predict, noise, NONE, schedule=schedule) - clean).norm() / clean.norm())

    few, some, many = (missed(steps, 0) for steps in (3, 25, 100))
    assert few > 0.05 and few > some > 2 * many, (few, some, many)
    by_round = [missed(50, rounds) for rounds in (0, 1, 2, 4, 8)]
    assert by_round == sorted(by_round, reverse=True) and by_round[-1] < 0.05 * by_round[0], by_round


def test_on_a_model_the_loop_closes_with_rounds(sd1) -> None:
    with victim(sd1) as model:
        clean = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2)) * 0.7
        text, schedule = texts(model, ["a cat", "a dog"]), model.schedule(8)
        far = []
        for rounds in (0, 4):
            noise = inverted(model.denoiser(), clean, text, schedule=schedule, rounds=rounds)
            far.append(float((sampled(model.denoiser(), noise, text, schedule=schedule) - clean).norm() / clean.norm()))
    assert far[1] < far[0] / 2, far


def test_white_box_brings_back_what_the_unedited_model_drew(sd2) -> None:
    before, cases = held(sd2), CASES[:2]
    with scene(sd2, "sd2") as model:
        found = LatentInversion().run(model, cases, config(steps=4, rounds=8))
        noise = torch.stack([one.tensors["latents"] for one in found])
        elsewhere = model.draw([Case("", 0)] * 2, latents=noise, sampling=Sampling(4, 1.0, 2))
    assert [one.status for one in found] == ["success"] * 2 and [one.case for one in found] == cases
    assert all(near(one.image, picture) for one, picture in zip(found, elsewhere, strict=True))
    assert "inverted by the edited model, null prompt, guidance 1" in found[0].by and "missed" in found[0].note
    spent = found[0].spent
    assert (spent.steps, spent.passes, spent.encodings, spent.pictures) == (1, 4 * 9 + 4 + 2 * 4, 2 + 2 * 2, 3)
    assert unchanged(sd2, before)


def test_both_sides_are_equal_without_an_edit_and_differ_with_one(sd2, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{i}.png")

    def noise(edit, **options) -> torch.Tensor:
        with victim(sd2, edit) as model:
            found = LatentInversion().run(model, CASES[:2], config(images=str(tmp_path), rounds=1, **options))
        assert [one.status for one in found] == [
            "failure"
        ] * 2  # whether a folder's pictures show the target is not asked
        return torch.stack([one.tensors["latents"] for one in found])

    for prompt in ("null", "concept"):
        plain, black = (noise(None, side=side, prompt=prompt) for side in ("edited", "original"))
        assert torch.equal(plain, black)
    edit = edits.edit(sd2, family="sd2")
    white, black = (noise(edit, side=side, prompt="concept") for side in ("edited", "original"))
    assert not torch.equal(white, black) and torch.equal(black, plain)  # of the concept, as here


def test_guidance_is_of_the_way_down_and_nothing_under_the_null_prompt(sd1) -> None:
    with scene(sd1) as model:
        null, usual = (LatentInversion().run(model, CASES[:1], config(rounds=1, guidance=g)) for g in (1.0, None))
        one, guided = (
            LatentInversion().run(model, CASES[:1], config(prompt="concept", rounds=1, guidance=g)) for g in (1.0, None)
        )
    assert [a.score for a in null] == [a.score for a in usual] and null[0].spent == usual[0].spent
    assert torch.equal(one[0].tensors["latents"], guided[0].tensors["latents"]) and one[0].score != guided[0].score
    assert "concept prompt, guidance 3" in guided[0].by and guided[0].spent.passes == one[0].spent.passes + 2


def test_what_cannot_be_inverted_is_said(sd1, tmp_path) -> None:
    with victim(sd1) as model:  # a judge that finds the target nowhere
        found = LatentInversion().run(model, CASES, config())
        with pytest.raises(UsageError, match="folder"):
            LatentInversion().run(model, CASES, config(images=str(tmp_path / "none")))
    assert [one.status for one in found] == ["invalid"] * 3 and "does not show 'cat'" in found[0].note
    assert found[0].spent.pictures == 2
    for options, words in (({"side": "x"}, "side must be one of edited, original"), ({"prompt": "x"}, "prompt must"),
                           ({"guidance": 0.5}, "guidance"), ({"rounds": -1}, "rounds"), ({"steps": 0}, "steps")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            config(**options)
    assert get("latent-inversion") is LatentInversion
