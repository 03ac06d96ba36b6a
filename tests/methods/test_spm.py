"""SPM's objective against the oracles of its paper: the loss, what is pinned, the rate, the sizes; on tiny random models."""

from __future__ import annotations

from itertools import pairwise
from math import pi

import pytest
import torch
from spm_runs import QUICK, fill, naive_conditions, opened, predict

from erasekit.methods import resolve, trains
from erasekit.methods._spm_run import conditions, pinned_conditions, rate, sides, sized
from erasekit.methods.spm import SPM, SPMConfig, loss
from erasekit.training.loop import Step
from erasekit.training.membranes import layers


def test_defaults_are_the_papers() -> None:
    config = SPMConfig()
    assert (config.steps, config.batch, config.rate, config.eta, config.anchoring) == (3000, 1, 1e-4, 1, 1000)
    assert (config.rank, config.alpha, config.conditions, config.gate, config.variant) == (
        1,
        1,
        4,
        "transport",
        "paper",
    )
    assert (config.guidance, config.sampling_steps, config.warmup, config.cycles, config.clip) == (3, 30, 500, 3, 0)
    assert resolve("spm:released")[1].values == {"variant": "released", "gate": "released"} and trains(SPM)


def test_fresh_modules_change_nothing_and_only_up_has_a_gradient(sd1) -> None:
    bench, config = opened(sd1, anchoring=1000.0)
    wanted = predict(sd1, "cat")
    with bench as tools:
        with tools.student.active():
            assert torch.equal(predict(sd1, "cat"), wanted)
        value = loss(tools, config, Step(0, 0))
        free = loss(tools, SPMConfig(**(QUICK | {"anchoring": 0.0})), Step(0, 0))
        assert float(value.detach()) == pytest.approx(float(free.detach()), rel=1e-5)  # nothing has left its place yet
        found = dict(
            zip(tools.student.trained, torch.autograd.grad(value, list(tools.student.trained.values())), strict=True)
        )
    for name, gradient in found.items():
        assert bool(gradient.any()) == name.endswith("up"), name


@pytest.mark.parametrize(("family", "variant"), [("sd1", "paper"), ("sd2", "released")])
def test_the_loss_is_that_of_separate_passes(family: str, variant: str, request) -> None:
    """One forward pass at a time, the modules merged into the weights by hand."""
    pipe = request.getfixturevalue(family)
    options = {"eta": 2.0, "anchoring": 7.0, "batch": 2, "rank": 2, "alpha": 3.0, "variant": variant}
    bench, config = opened(pipe, anchor="dog", conditions=4, resolution="full", **options)
    with bench as tools:
        fill(tools.student)
        value, step = float(loss(tools, config, Step(4, 0)).detach()), Step(4, 0)
        k = int(torch.randint(1, 3, (), generator=step.generator("level cat")))
        noise = torch.randn(2, 4, 16, 16, generator=step.generator("noise cat"))
        with tools.student.active():
            latents, timestep = tools.latents(noise, "cat", k, guidance=3.0)
        others = naive_conditions(tools.text("cat"), step.generator("conditions cat"))
        if variant == "released":
            others = [tools.text("")[0], others[2], tools.text("")[0], others[3]]
        trained = {name: tensor.detach().clone() for name, tensor in tools.student.trained.items()}
        texts = {name: tools.text(name) for name in ("cat", "dog")}
    one = [latents[i : i + 1] for i in (0, 1)]
    cat, dog = ([predict(pipe, texts[name], z, timestep) for z in one] for name in ("cat", "dog"))
    kept = [predict(pipe, other[None], z, timestep) for other in others for z in one]
    with torch.no_grad():
        for name, layer in layers(pipe.unet).items():
            for r in range(2):
                up, down = trained[f"{name}.0.up"][:, r], trained[f"{name}.0.down"][r]
                layer.weight += 3 / 2 * torch.outer(up, down.flatten()).reshape(layer.weight.shape)
    erase = sum(float((predict(pipe, texts["cat"], z, timestep) - (d - 2 * (c - d))).square().mean())
                for z, c, d in zip(one, cat, dog, strict=True))  # fmt: skip
    moved = [predict(pipe, other[None], z, timestep) for other in others for z in one]
    pin = sum(float((a - b).square().mean()) for a, b in zip(moved, kept, strict=True))
    assert value == pytest.approx(erase / 2 + 7 * pin / 8, rel=1e-3)


def test_conditions_avoid_the_target_and_are_of_its_size() -> None:
    """In two dimensions the density is proportional to min(1, 1 - cos): its mean cosine is -pi / 2 over 2 pi - 2."""
    target = torch.tensor([[[3.0, 4.0]]])
    found = conditions(target, 2000, torch.Generator().manual_seed(0))[:, 0]
    sizes = found.norm(dim=-1)
    assert float((found @ target[0, 0] / sizes / 5).mean()) == pytest.approx(-pi / 2 / (2 * pi - 2), abs=0.05)
    assert 4 <= float(sizes.min()) < 4.1 and 5.9 < float(sizes.max()) <= 6
    text = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(1))
    one = conditions(text, 4, torch.Generator().manual_seed(2))
    assert torch.allclose(one, torch.stack(naive_conditions(text, torch.Generator().manual_seed(2))), atol=1e-5)


def test_the_released_order_pins_the_empty_prompt_and_half_of_the_conditions(sd1) -> None:
    with opened(sd1)[0] as tools:
        paper = pinned_conditions(tools, SPMConfig(), "cat", Step(0, 0))
        released = pinned_conditions(tools, SPMConfig(variant="released"), "cat", Step(0, 0))
        empty = tools.text("")[0]
    assert len(paper) == len(released) == 4 and torch.equal(released[1::2], paper[2:])
    assert all(torch.equal(row, empty) for row in released[::2])


def test_the_rate_restarts_as_the_papers() -> None:
    from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup as schedule

    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    wanted = schedule(optimiser, 500, 3000, 3).lr_lambdas[0]
    found = [rate(i, SPMConfig()) for i in range(3000)]
    assert all(abs(a - wanted(i)) < 1e-9 for i, a in enumerate(found))
    assert sum(b - a > 0.9 for a, b in pairwise(found)) == 2
    assert rate(0, SPMConfig(steps=5)) == 1 and rate(50, SPMConfig(steps=300)) == 1 > rate(49, SPMConfig(steps=300))


def test_sizes_are_drawn_where_the_latents_are_large_enough() -> None:
    assert (list(sides(64)), list(sides(96))) == ([32, 40, 48, 56], [48, 56, 64, 72, 80, 88])
    assert list(sides(16)) == list(sides(8)) == [8]
    large, small = torch.zeros(1, 4, 64, 96), torch.zeros(1, 4, 16, 16)
    drawn = {sized(large, SPMConfig(), Step(0, i).generator("size")).shape[2:] for i in range(300)}
    assert drawn == {(h, w) for h in sides(64) for w in sides(96)}
    assert sized(small, SPMConfig(), Step(0, 0).generator("size")).shape == small.shape
    assert sized(small, SPMConfig(resolution="dynamic"), Step(0, 0).generator("size")).shape[2:] == (8, 8)
    assert sized(large, SPMConfig(resolution="full"), Step(0, 0).generator("size")).shape == large.shape
