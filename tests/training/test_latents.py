"""Noisy latents: the level of a latent and the timestep that it is evaluated at agree exactly, for every prediction."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from erasekit.errors import ModelError, UsageError
from erasekit.training.latents import KINDS, Schedule, converted, guided, noised, partly_denoised, parts, truth

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SPACINGS = ["leading", "trailing", "linspace"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def config(kind: str = "epsilon", spacing: str = "leading") -> dict:
    return BETAS | {"prediction_type": kind, "timestep_spacing": spacing, "steps_offset": 1}


def levels(kind: str, steps: int, spacing: str = "leading") -> Schedule:
    if kind != "flow_prediction":
        return Schedule.of(config(kind, spacing), steps)
    return Schedule.of(dict(FlowMatchEulerDiscreteScheduler(shift=3.0).config), steps, flow=True)


def predictor(pipe):
    @torch.no_grad()
    def predict(latents, timestep, text):
        return pipe.unet(latents, timestep, encoder_hidden_states=text).sample

    return predict


@pytest.mark.parametrize("family", ["sd1", "sd2"])  # eps and v
@pytest.mark.parametrize("k", [0, 1, 6])
def test_partial_denoising_is_a_plain_ddim_loop(family: str, k: int, request) -> None:
    pipe = request.getfixturevalue(family)
    text, empty, start = noise(1, 77, 32, seed=1), noise(1, 77, 32, seed=2), noise(2, 4, 16, 16)
    predict = predictor(pipe)
    schedule = Schedule.of(pipe.scheduler.config, 7)
    found = partly_denoised(predict, start, text, empty, schedule=schedule, k=k, guidance=3.0)

    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(7)
    latents = start * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps[:k]:
        without, given = (predict(latents, int(timestep), t.expand(2, -1, -1)) for t in (empty, text))
        latents = scheduler.step(without + 3.0 * (given - without), timestep, latents, eta=0.0).prev_sample
    assert torch.allclose(found, latents, atol=2e-5) and schedule.timesteps[k] == int(scheduler.timesteps[k])
    assert k or torch.equal(found, start)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_latent_stands_exactly_at_the_level_of_its_timestep(kind: str, spacing: str) -> None:
    """A model that knows the clean latents: after any k the rest is noise of the evaluated timestep's sigma alone."""
    schedule, clean, start = levels(kind, 10, spacing), noise(1, 4, 8, 8, seed=3).double(), noise(1, 4, 8, 8).double()

    def knowing(latents, timestep, text):
        alpha, sigma = schedule.level(timestep)
        eps = (latents - alpha * clean) / sigma
        return {"epsilon": eps, "v_prediction": alpha * eps - sigma * clean, "flow_prediction": eps - clean}[kind]

    text = torch.zeros(1, 1, 1)
    alpha, sigma = schedule.level(schedule.timesteps[0])
    eps = (start - alpha * clean) / sigma
    for k in range(10):
        found = partly_denoised(knowing, start, text, text, schedule=schedule, k=k, guidance=1.0)
        assert torch.allclose(found, noised(clean, eps, schedule.level(schedule.timesteps[k])), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_says_what_the_latents_are_made_of(kind: str) -> None:
    clean, eps, level = noise(2, 4, 8, 8).double(), noise(2, 4, 8, 8, seed=1).double(), levels(kind, 10).level(400)
    latents = noised(clean, eps, level)
    alpha, sigma = level
    prediction = {"epsilon": eps, "v_prediction": alpha * eps - sigma * clean, "flow_prediction": eps - clean}[kind]
    for found, wanted in zip(parts(latents, prediction, level, kind), (clean, eps), strict=True):
        assert torch.allclose(found, wanted, atol=1e-9)
    as_eps = converted(latents, prediction, level, kind=kind, wanted="epsilon")
    assert torch.allclose(as_eps, eps, atol=1e-9)
    assert torch.allclose(converted(latents, as_eps, level, kind="epsilon", wanted=kind), prediction, atol=1e-9)
    with pytest.raises(ValueError, match="sample"):
        parts(latents, prediction, level, "sample")


def test_forward_noising_and_v_are_those_of_diffusers() -> None:
    scheduler, schedule = DDPMScheduler(**BETAS), levels("v_prediction", 10)
    clean, eps, t = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1), torch.tensor([700])
    assert torch.allclose(noised(clean, eps, schedule.level(700)), scheduler.add_noise(clean, eps, t), atol=1e-6)
    latents, level = noised(clean, eps, schedule.level(700)), schedule.level(700)
    v = converted(latents, eps, level, kind="epsilon", wanted="v_prediction")
    assert torch.allclose(v, scheduler.get_velocity(clean, eps, t), atol=1e-5)


def test_both_branches_of_the_guidance_are_one_forward_pass() -> None:
    calls = []

    def predict(latents, timestep, text):
        calls.append(len(latents))
        return text.mean((1, 2))[:, None, None, None] * torch.ones_like(latents)

    start, text, empty = noise(3, 4, 8, 8), torch.ones(1, 77, 5), torch.zeros(1, 77, 5)
    found = guided(predict, start, 1, text, empty, guidance=3.0)
    assert calls == [6] and torch.equal(found, torch.full_like(start, 3.0))
    assert torch.equal(guided(predict, start, 1, text, empty, guidance=1), torch.ones_like(start)) and calls == [6, 3]


@pytest.mark.parametrize("options", [{"shift": 3.0}, {}, {"use_karras_sigmas": True}])
@pytest.mark.parametrize("k", [1, 6])
def test_partial_denoising_of_a_flow_is_diffusers_euler(options: dict, k: int) -> None:
    """A toy velocity that depends on everything; the sampler's timesteps lie between the trained ones."""
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    schedule, text = Schedule.of(dict(scheduler.config), 7, flow=True), torch.zeros(1, 1, 1)
    trained = FlowMatchEulerDiscreteScheduler(**options)
    assert torch.allclose(torch.tensor(schedule.trained).flip(0).float(), trained.timesteps, atol=1e-3)

    def predict(latents, timestep, text):
        return torch.tanh(latents) * (timestep / 1000) + text.mean() - 0.3

    scheduler.set_timesteps(7)
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist()) and any(t % 1 for t in schedule.timesteps)
    latents = noise(2, 4, 8, 8)
    found = partly_denoised(predict, latents, text, text, schedule=schedule, k=k, guidance=1.0)
    for timestep in scheduler.timesteps[:k]:
        latents = scheduler.step(predict(latents, float(timestep), text), timestep, latents).prev_sample
    assert torch.allclose(found, latents, atol=1e-5)
    clean, eps, t = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1), trained.timesteps[300:301]
    level = schedule.level(float(t))
    assert torch.allclose(noised(clean, eps, level), trained.scale_noise(clean, t, eps), atol=1e-5)
    assert torch.equal(truth(clean, eps, level, "flow_prediction"), eps - clean)


def test_a_flow_whose_levels_depend_on_the_picture_is_refused() -> None:
    for odd in ("use_dynamic_shifting", "invert_sigmas"):
        with pytest.raises(ModelError, match=odd):
            Schedule.of(dict(FlowMatchEulerDiscreteScheduler(**{odd: True}).config), 4, flow=True)


def test_what_the_schedule_is_not_for_is_one_clear_line() -> None:
    with pytest.raises(ModelError, match="no betas"):
        Schedule.of(FlowMatchEulerDiscreteScheduler().config, 10)
    with pytest.raises(ModelError, match="sample"):
        Schedule.of(config("sample"), 10)
    with pytest.raises(UsageError, match="1000 timesteps"):
        Schedule.of(config(), 1001)


def test_a_sampler_that_leaves_the_models_timesteps_is_refused() -> None:
    """All 1000 timesteps and an offset of one: SD 1.4's scheduler would ask for timestep 1000."""
    own = {"beta_start": 0.1, "beta_end": 0.2, "num_train_timesteps": 10, "steps_offset": 1}
    assert Schedule.of(own, 5).timesteps == (9, 7, 5, 3, 1)
    with pytest.raises(UsageError, match="lower sampling_steps"):
        Schedule.of(own, 10)
    with pytest.raises(UsageError, match="lower sampling_steps"):
        Schedule.of(own, 11)
