"""SPM: the oracles of its paper for training, resuming, and what a user can get wrong; on tiny random models."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from math import pi
from pathlib import Path

import pytest
import tiny
import torch

import erasekit
from erasekit.adapters.spm import Stack
from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import TrainingError, UsageError
from erasekit.methods import make_config, resolve, trains
from erasekit.methods._spm_edit import adapter
from erasekit.methods._spm_run import conditions, opened_run, pinned_conditions, rate, sides, sized
from erasekit.methods.spm import SPM, SPMConfig, loss
from erasekit.training.loop import Step
from erasekit.training.membranes import layers

QUICK = {"steps": 3, "rate": 1e-2, "sampling_steps": 3, "anchoring": 1.0, "conditions": 1, "resolution": "dynamic"}


def fit(model, targets="cat", *, anchor=None, retain=(), seed=0, checkpoint=None, progress=None, **options) -> Edit:
    request = EraseRequest.build(targets, anchor=anchor, retain=retain, seed=seed)
    config = make_config(SPM, QUICK | options)
    return SPM().fit(backbone(model), request, config, checkpoint=checkpoint, progress=progress)


def opened(pipe, targets="cat", *, anchor=None, retain=(), **options):
    """A bench and its configuration, without training."""
    config = SPMConfig(**(QUICK | options))
    return opened_run(backbone(pipe), EraseRequest.build(targets, anchor=anchor, retain=retain), config), config


def state(pipe) -> dict[str, str]:
    """A digest of every weight, and the switches and hooks of every parameter and module."""
    unet = pipe.unet
    found = {k: hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest() for k, v in unet.state_dict().items()}
    flags = {f"{k} flag": f"{p.requires_grad} {p.grad} {id(p)}" for k, p in unet.named_parameters()}
    hooks = {f"{k} mode": f"{m.training} {list(m._forward_hooks.values())}" for k, m in unet.named_modules()}
    return found | flags | hooks


def tensors(edit: Edit) -> dict[str, torch.Tensor]:
    return edit.ops[0].tensors()


def same(a: Edit, b: Edit) -> bool:
    one, other = tensors(a), tensors(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def predict(pipe, text: torch.Tensor | str, latents: torch.Tensor | None = None, timestep: int = 500) -> torch.Tensor:
    text = backbone(pipe).encode([text]) if isinstance(text, str) else text
    if latents is None:
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return pipe.unet(latents, timestep, encoder_hidden_states=text).sample


def fill(student, size: float = 0.1) -> None:
    """Random up-vectors, as after training."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in student.trained.items():
            if name.endswith("up"):
                tensor.copy_(size * torch.randn(tensor.shape, generator=draw))


# -- the objective ------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    config = SPMConfig()
    assert (config.steps, config.batch, config.rate, config.eta, config.anchoring) == (3000, 1, 1e-4, 1, 1000)
    assert (config.rank, config.alpha, config.conditions, config.gate, config.variant) == (1, 1, 4, "transport", "paper")
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
        found = dict(zip(tools.student.trained, torch.autograd.grad(value, list(tools.student.trained.values())), strict=True))
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


def naive_conditions(text: torch.Tensor, draw: torch.Generator, count: int = 4) -> list[torch.Tensor]:
    flat, found = text.flatten().double(), []
    while len(found) < count:
        noise = torch.randn(text.shape[1:], generator=draw)
        u, s = torch.rand(2, generator=draw).tolist()
        cosine = float(noise.flatten().double() @ flat / noise.double().norm() / flat.norm())
        if u < 1 - cosine:
            found.append(noise / noise.norm() * text.norm() * (0.8 + 0.4 * s))
    return found


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


# -- what training does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_the_edited_model_guides_away_from_the_target(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    before = state(pipe)
    edit = fit(pipe, steps=20, retain=("dog",), sampling_steps=2, anchoring=0.0)
    empty, cat = predict(pipe, ""), predict(pipe, "cat")
    with edit.applied(pipe):
        moved = predict(pipe, "cat")
    assert float(torch.nn.functional.cosine_similarity((moved - empty).flatten(), (cat - empty).flatten(), dim=0)) < 0
    check = edit.self_check
    assert check["residual"] < 0.9 and len(check["training"]["loss"]) == 20 and state(pipe) == before
    assert check["retained_drift"] > 0 and "holds on to random conditions" in check["warnings"][0]
    assert set(check["gate"]) == {"", "dog"} and all(0 < value < 1 for value in check["gate"].values())


def test_pinning_keeps_random_conditions_and_weakens_the_erasure(sd1) -> None:
    far = torch.stack(naive_conditions(backbone(sd1).encode(["cat"]), torch.Generator().manual_seed(5)))
    before, found = [predict(sd1, row[None]) for row in far], {}
    for weight in (0.0, 1e6):
        edit = fit(sd1, steps=15, sampling_steps=2, anchoring=weight, gate="off")
        with edit.applied(sd1):
            moved = [float((predict(sd1, row[None]) - own).norm()) for row, own in zip(far, before, strict=True)]
        found[weight] = sum(moved), edit.self_check["residual"]
    assert found[1e6][0] < 0.5 * found[0.0][0] and found[1e6][1] > found[0.0][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_saved_edit_gives_the_students_outputs_to_the_bit(sd1, dtype: torch.dtype, tmp_path: Path) -> None:
    sd1.unet.to(dtype)
    edit = fit(sd1, seed=2, gate="off", rank=2, alpha=3.0)
    assert all(tensor.dtype == torch.float32 for name, tensor in tensors(edit).items() if name != "features")
    bench, config = opened(sd1, gate="off", rank=2, alpha=3.0)
    with bench as tools:
        fill(tools.student)
        op, text = adapter(tools, config), tools.text("cat")
        latents = tools.noise(torch.Generator().manual_seed(1))
        with tools.student.active(), torch.no_grad():
            student = tools.denoise(latents, 300, text)
    Edit((op,), edit.base, "spm").save(tmp_path / "edit.safetensors")
    fresh = tiny.sd1()
    fresh.unet.to(dtype)
    with Edit.load(tmp_path / "edit.safetensors").applied(fresh):
        assert torch.equal(predict(fresh, text, latents.to(dtype), 300).float(), student)


def test_targets_of_a_list_are_trained_as_if_alone_each_with_its_own_gate(sd1) -> None:
    both = fit(sd1, ["cat", "fox"], seed=3)
    for i, name in enumerate(("cat", "fox")):
        one = fit(sd1, name, seed=3)
        for key, tensor in tensors(one).items():
            part = {"up": lambda t: t[:, i : i + 1]}.get(key.rpartition(".")[2], lambda t: t[i : i + 1])
            assert torch.equal(part(tensors(both)[key]), tensor), key
    (op,) = both.ops
    assert both.self_check["training"]["steps"] == 6 and op.config["targets"] == ["cat", "fox"]
    assert len(op.config["tokens"]) == 2 and Stack(sd1.unet, op).gates.shape == (1, 2)


def test_every_setting_gives_an_edit(sd1) -> None:
    plain = fit(sd1)
    again = fit(sd1, recompute=True)
    close = [torch.allclose(a, tensors(again)[key], atol=1e-3) for key, a in tensors(plain).items()]
    assert sum(close) > 0.9 * len(close)  # Adam turns rounding at a gradient of zero into whole steps
    short = fit(sd1, steps=2)
    for options in ({"precision": "bfloat16"}, {"ema": 0.5}, {"accumulate": 2}, {"resolution": "full"}):
        assert not same(fit(sd1, steps=2, **options), short), options
    paper, released = (fit(sd1, steps=2, conditions=2, **more) for more in ({}, {"variant": "released", "gate": "released"}))
    assert not same(paper, released) and released.ops[0].config["gate"] == "released"


# -- ending and going on --------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_edit(sd1, tmp_path: Path) -> None:
    options = {"steps": 3, "save_every": 2, "targets": ["cat", "fox"]}
    before = state(sd1)
    whole = fit(sd1, **options)
    for end in (1, 5):  # before the second target has moved, near the end

        def kill(done: int, total: int, what: str, end: int = end) -> None:
            assert total == 6
            if done == end:
                raise KeyboardInterrupt

        place = tmp_path / f"{end}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            fit(sd1, **options, checkpoint=place, progress=kill)
        assert state(sd1) == before
        resumed = fit(sd1, **options, checkpoint=place)
        assert same(resumed, whole) and resumed.self_check == whole.self_check
    for other in ({"targets": ["cat", "dog"]}, {"seed": 1}, {"anchoring": 3.0}, {"steps": 4}):
        with pytest.raises(TrainingError, match="another run"):
            fit(sd1, **(options | other), checkpoint=tmp_path / "5.safetensors")


def test_a_rate_that_breaks_the_model_stops_in_one_line_and_leaves_the_model(sd1) -> None:
    before = state(sd1)
    with pytest.raises(TrainingError, match="lower the rate") as error:
        fit(sd1, rate=1e3, steps=60, anchoring=1e9, alpha=1e6)
    assert "\n" not in str(error.value) and state(sd1) == before


def test_a_full_gpu_is_one_line_also_while_measuring(sd1, monkeypatch) -> None:
    def full(*args) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr("erasekit.methods.spm.measure", full)
    with pytest.raises(TrainingError, match="the GPU's memory is full: set recompute=true"):
        fit(sd1, steps=1)


def test_what_is_asked_in_a_wrong_way_is_one_clear_line(sd1) -> None:
    wrong = [{"steps": 0}, {"rank": 0}, {"variant": "y"}, {"gate": "half"}, {"eta": -2}, {"anchoring": -1},
             {"conditions": 0}, {"resolution": "large"}, {"cycles": 0}, {"alpha": 0}, {"sampling_steps": 1}]  # fmt: skip
    for options in wrong:
        with pytest.raises(UsageError, match=next(iter(options))):
            erasekit.erase(sd1, "cat", method="spm", **options)
    with pytest.raises(UsageError, match="1000 timesteps"):
        erasekit.erase(sd1, "cat", method="spm", sampling_steps=2000)


def test_the_plan_counts_what_would_be_trained_and_changes_nothing(sd1) -> None:
    before = state(sd1)
    plan = erasekit.plan(sd1, ["cat", "fox"], method="spm", steps=100, sampling_steps=4, rank=3)
    shapes = [layer.weight.shape for layer in layers(sd1.unet).values()]
    numbers = 2 * 3 * sum(shape[0] + shape[1:].numel() for shape in shapes)
    assert (plan.numbers, plan.modules, plan.steps) == (numbers, len(shapes), 200)
    assert plan.seconds > 0 and "2 of rank 3" in plan.what and state(sd1) == before
