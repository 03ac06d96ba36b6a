"""AC: the objective against plain passes, its gradients and its teacher; on tiny random models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ac_runs import gradients, opened, plain
from diffusers import FlowMatchEulerDiscreteScheduler

from erasekit.methods import make_config, resolve
from erasekit.methods._ac_batch import draw
from erasekit.methods._ac_students import bos_detached
from erasekit.methods.ac import AC, loss
from erasekit.training.latents import Schedule
from erasekit.training.loop import Step
from erasekit.training.parameters import select


def test_defaults_are_the_papers() -> None:
    config = make_config(AC, {})
    assert (config.steps, config.batch, config.rate, config.variant) == (100, 8, 1.6e-5, "cross.kv")
    assert config.rate == pytest.approx(2e-6 * 4 * 2) and (config.decay, config.clip) == (0.01, 1.0)
    assert (config.loss, config.teacher, config.images, config.regulariser) == ("model", "student", 1000, 0)
    method, preset = resolve("ac:style")
    assert not make_config(method, dict(preset.values)).augments and config.augments and preset.anchor == "painting"
    memory = make_config(method, dict(resolve("ac:memorised")[1].values))
    assert (memory.steps, memory.variant, memory.kind) == (400, "full", "memorised") and not memory.augments
    assert memory.rate == pytest.approx(5e-7 * 2 * 2) and memory.regulariser > 0
    nudity = make_config(method, dict(resolve("ac:nudity")[1].values))
    assert (nudity.steps, nudity.variant, nudity.batch) == (400, "attention", 4)
    assert nudity.rate == pytest.approx(4e-6 * 4 * 2) and nudity.regulariser == 1


@pytest.mark.parametrize(
    ("family", "kind", "teacher", "regulariser"),
    [("sd1", "model", "student", 0.0), ("sd1", "model", "student", 0.5), ("sd1", "model", "frozen", 0.5),
     ("sd1", "noise", "student", 0.0), ("sd2", "model", "frozen", 0.0), ("sd2", "noise", "student", 0.5)],
)  # fmt: skip
def test_the_loss_is_the_papers_sample_by_sample(
    family: str, kind: str, teacher: str, regulariser: float, request
) -> None:
    """Against single forward passes and plain sums, also under masks, and where the student has moved."""
    pipe = request.getfixturevalue(family)
    with opened(pipe, loss=kind, teacher=teacher, regulariser=regulariser) as run:
        batch = draw(run, Step(0, 0))
        mask = torch.zeros(2, 1, 16, 16)
        mask[0, :, 2:9, 3:5], mask[1, :, :, 4:] = 1, 1
        batch = replace(batch, mask=mask)
        with torch.no_grad():
            for tensor in run.bench.student.trained.values():
                tensor.mul_(1.1)
        value = float(loss(run, batch).detach())
        with run.bench.student.active():
            target, anchor = plain(pipe, batch, batch.targets), plain(pipe, batch, batch.captions)
        frozen = plain(pipe, batch, batch.captions)
    naive = 0.0
    for i in range(2):
        wanted = batch.truth if kind == "noise" else frozen if teacher == "frozen" else anchor
        inside = [(c, y, x) for c in range(4) for y, x in mask[i, 0].nonzero().tolist()]
        naive += sum(float((target - wanted)[(i, *at)]) ** 2 for at in inside) / len(inside) / 2
        naive += regulariser * sum(float((anchor - batch.truth)[(i, *at)]) ** 2 for at in inside) / len(inside) / 2
    assert value == pytest.approx(naive, rel=2e-4)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_latents_are_noised_to_exactly_their_timestep_and_truth_is_what_the_model_predicts(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    levels = pipe.scheduler.alphas_cumprod.double()
    times: set[int] = set()
    with opened(pipe, batch=4, steps=8) as run:
        for index in range(8):
            batch, again = draw(run, Step(0, index)), draw(run, Step(0, index))
            assert torch.equal(batch.latents, again.latents) and batch.targets == again.targets
            times |= set(batch.timesteps.tolist())
            noise = run.bench.noise(Step(0, index).generator("noise"))
            for i, t in enumerate(batch.timesteps.tolist()):
                a, s = float(levels[t].sqrt()), float((1 - levels[t]).sqrt())
                clean = (batch.latents[i] - s * noise[i]) / a
                assert min(float((clean - image).abs().max()) for image in run.images) < 1e-3 * float(run.images.abs().max())
                wanted = noise[i] if family == "sd1" else a * noise[i] - s * clean
                torch.testing.assert_close(batch.truth[i], wanted, rtol=1e-3, atol=1e-3)
    assert len(times) > 24 and max(times) > 700 and min(times) < 300  # each sample has its own


def test_the_same_caption_twice_gives_no_loss_and_no_gradient(sd1) -> None:
    for options in ({}, {"teacher": "frozen"}):
        with opened(sd1, **options) as run:
            batch = draw(run, Step(0, 0))
            value = loss(run, replace(batch, targets=batch.captions))
            assert float(value.detach()) == 0
            assert all(g is None or not bool(g.any()) for g in gradients(run, value).values())
            assert float(loss(run, batch).detach()) > 1e-9


def test_a_full_mask_is_the_plain_mean_and_what_is_outside_counts_for_nothing(sd1) -> None:
    from erasekit.training.losses import squared_error

    draws = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(1, 4, 8, 8, generator=draws) for _ in range(2))
    assert float(squared_error(found, wanted, torch.ones(1, 1, 8, 8))) == pytest.approx(
        float((found - wanted).square().mean()))  # fmt: skip
    padded = [torch.cat([x, 1e3 * torch.randn(1, 4, 8, 8, generator=draws)], 3) for x in (found, wanted)]
    mask = torch.cat([torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)], 3)
    assert float(squared_error(*padded, mask)) == pytest.approx(float((found - wanted).square().mean()))


def test_the_first_token_keeps_its_values_and_passes_no_gradient(sd1) -> None:
    latents, one = torch.randn(1, 4, 16, 16), torch.randn(1, 1, 32)
    names = select(sd1.unet, "cross.kv")
    tensors = [sd1.unet.get_parameter(name) for name in names]
    for text, bare in ((one, True), (torch.randn(1, 3, 32), False)):
        before = sd1.unet(latents, 500, encoder_hidden_states=text).sample
        with bos_detached(sd1.unet):
            during = sd1.unet(latents, 500, encoder_hidden_states=text).sample
        assert torch.equal(before, during)
        found = torch.autograd.grad(during.square().sum(), tensors, allow_unused=True)
        assert bare == all(g is None or not bool(g.any()) for g in found)
    own = torch.autograd.grad(before.square().sum(), tensors)
    assert any(not torch.allclose(a, b) for a, b in zip(own, found, strict=True))  # the row does matter
    assert not any(m._forward_hooks for m in sd1.unet.modules())


def test_the_runs_own_gradient_leaves_the_first_token_out(sd1) -> None:
    """The student's gradient is that of a network whose keys and values of BOS come from frozen copies."""
    with opened(sd1) as run:
        batch = draw(run, Step(0, 0))
        found = gradients(run, loss(run, batch))
        with run.bench.student.active():
            text = run.text(batch.targets)
            values = torch.nn.functional.mse_loss(run.bench.denoise(batch.latents, batch.timesteps, text),
                                                  plain(sd1, batch, batch.captions))  # fmt: skip
        own = gradients(run, values)
        for module in {name.rpartition(".")[0] for name in found}:
            part, name = sd1.unet.get_submodule(module), f"{module}.weight"
            frozen, trained = part.weight.detach(), run.bench.student.trained[name]

            def split(inputs, frozen=frozen, trained=trained):
                return torch.cat([inputs[:, :1] @ frozen.T, inputs[:, 1:] @ trained.T], 1)

            part.forward = split
        try:
            naive = gradients(run, torch.nn.functional.mse_loss(
                run.bench.denoise(batch.latents, batch.timesteps, text), plain(sd1, batch, batch.captions)))  # fmt: skip
        finally:
            for module in {name.rpartition(".")[0] for name in found}:
                del sd1.unet.get_submodule(module).forward
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, naive[name], rtol=1e-3, atol=1e-7)
    assert torch.allclose(own[name], found[name])  # active() cuts whatever is computed in it


def test_the_teacher_carries_no_gradient(sd1) -> None:
    """The analytic gradient is the difference quotient of the loss with the anchor's output held fixed."""
    sd1.unet.double()
    with opened(sd1, batch=1) as run:
        batch = draw(run, Step(0, 0))
        batch = replace(batch, latents=batch.latents.double())
        name = next(iter(run.bench.student.trained))
        tensor = run.bench.student.trained[name]
        gradient = gradients(run, loss(run, batch))[name]
        fixed = run.wanted(batch)
        direction = gradient / gradient.norm()

        def at(move: float, *, follow: bool = False) -> float:
            with torch.no_grad():
                tensor.add_(move * direction)
                # With BOS in it, the value moves more than the gradient says: hold its rows as they were.
                with run.bench.student.active(), held_bos(sd1.unet, name, tensor - move * direction):
                    found = run.predict(batch, batch.targets)
                    wanted = run.predict(batch, batch.captions) if follow else fixed
                tensor.sub_(move * direction)
                return float((found - wanted).square().mean())

        assert (at(1e-4) - at(-1e-4)) / 2e-4 == pytest.approx(float(gradient.norm()), rel=1e-3)
        moving = (at(1e-4, follow=True) - at(-1e-4, follow=True)) / 2e-4
        assert moving != pytest.approx(float(gradient.norm()), rel=1e-2)


class held_bos:
    """Inside, one projection's first row is what other weights give."""

    def __init__(self, unet, name: str, weight: torch.Tensor) -> None:
        self.part, self.weight = unet.get_submodule(name.rpartition(".")[0]), weight.detach().clone()

    def __enter__(self) -> None:
        def hook(module, inputs, output):
            return torch.cat([inputs[0][:, :1] @ self.weight.T, output[:, 1:]], 1)

        self.handle = self.part.register_forward_hook(hook)

    def __exit__(self, *error) -> None:
        self.handle.remove()


def test_the_teacher_is_the_student_as_it_is_now_or_the_frozen_model(sd1) -> None:
    found = {}
    for teacher in ("student", "frozen"):
        with opened(sd1, teacher=teacher) as run:
            batch = draw(run, Step(0, 0))
            with torch.no_grad():
                for tensor in run.bench.student.trained.values():
                    tensor.mul_(1.3)
            found[teacher] = run.wanted(batch)
            frozen = plain(sd1, batch, batch.captions)
            with run.bench.student.active():
                current = plain(sd1, batch, batch.captions)
    torch.testing.assert_close(found["student"], current, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["frozen"], frozen, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(frozen, current, rtol=1e-3, atol=1e-4)


def test_a_flow_is_noised_and_asked_for_its_velocity(sd1) -> None:
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with opened(sd1) as run:
        schedule = Schedule.of(dict(flow.config), 4, flow=True)
        batch = draw(replace(run, bench=replace(run.bench, schedule=schedule)), Step(0, 0))
        for z, velocity, t in zip(batch.latents, batch.truth, batch.timesteps.tolist(), strict=True):
            sigma = t / 1000
            assert float((flow.timesteps - t).abs().min()) < 1e-2  # one that was trained at
            clean = z - sigma * velocity
            assert min(float((clean - image).abs().max()) for image in run.images) < 1e-4
