"""ESD: the oracles of its paper, resuming, and what a user can get wrong; on tiny random models."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch

import erasekit
from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import TrainingError, UsageError
from erasekit.methods import make_config, resolve, trains
from erasekit.methods.esd import ESD, ESDConfig, _bench, loss, measure, teacher
from erasekit.training.loop import Step
from erasekit.training.parameters import select
from erasekit.training.result import changes, finish, settle

QUICK = {"steps": 3, "rate": 1e-3, "sampling_steps": 3}


def fit(model, targets="cat", *, anchor=None, retain=(), seed=0, checkpoint=None, progress=None, **options) -> Edit:
    request = EraseRequest.build(targets, anchor=anchor, retain=retain, seed=seed)
    config = make_config(ESD, QUICK | options)
    return ESD().fit(backbone(model), request, config, checkpoint=checkpoint, progress=progress)


def opened(pipe, targets="cat", *, anchor=None, retain=(), **options):
    """A bench and its configuration, without training."""
    request = EraseRequest.build(targets, anchor=anchor, retain=retain)
    config = ESDConfig(**(QUICK | options))
    return _bench(backbone(pipe), request, config), config


def state(pipe) -> dict[str, str]:
    """A digest of every weight and the switches of every parameter and module."""
    unet = pipe.unet
    found = {k: hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest() for k, v in unet.state_dict().items()}
    flags = {f"{k} flag": f"{p.requires_grad} {p.grad} {id(p)}" for k, p in unet.named_parameters()}
    return found | flags | {f"{k} mode": str(m.training) for k, m in unet.named_modules()}


def same(a: Edit, b: Edit) -> bool:
    one, other = ({(op.site, k): v for op in e.ops for k, v in op.tensors().items()} for e in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def predict(pipe, prompt: str | torch.Tensor, *, seed: int = 0, timestep: int = 500) -> torch.Tensor:
    text = backbone(pipe).encode([prompt]) if isinstance(prompt, str) else prompt
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return pipe.unet(latents, timestep, encoder_hidden_states=text).sample


# -- the objective ------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    config = ESDConfig()
    assert (config.steps, config.batch, config.rate, config.eta) == (1000, 1, 1e-5, 1)
    assert (config.guidance, config.sampling_steps, config.sampler, config.variant) == (3, 50, "student", "x")
    assert (config.clip, config.decay, config.ema) == (0, 0, 0)
    method, preset = resolve("esd:rewrite")
    later = make_config(method, dict(preset.values))
    assert (later.steps, later.rate, later.eta + 1, later.sampler) == (200, 5e-5, 2, "frozen")
    assert resolve("esd:object")[1].values["variant"] == "u" and trains(ESD)


@pytest.mark.parametrize("host", ["", "photo"])
def test_the_target_is_the_papers_in_both_forms(sd1, host: str) -> None:
    """Against separate forward passes of the plain model."""
    bench, config = opened(sd1, eta=2.0, host=host)
    with bench as tools:
        latents = tools.noise(torch.Generator().manual_seed(0))
        wanted, own = teacher(tools, config, 0, latents, 500)
    cat, empty, photo = (predict(sd1, prompt) for prompt in ("cat", "", "photo"))
    naive = photo - 3 * (cat - empty) if host else empty - 2 * (cat - empty)
    assert torch.allclose(wanted, naive, atol=1e-5) and torch.allclose(own, photo if host else cat, atol=1e-5)


@pytest.mark.parametrize("sampler", ["student", "frozen"])
def test_nothing_is_asked_at_the_start_with_strength_zero_of_the_later_code(sd1, sampler: str) -> None:
    """eta' = 0: the teacher's own output is asked for, so the loss and the gradients vanish."""
    bench, config = opened(sd1, eta=-1, sampler=sampler, batch=2)
    with bench as tools:
        value = loss(tools, config, Step(0, 0))
        assert float(value.detach()) < 1e-12
        gradients = torch.autograd.grad(value, list(tools.student.trained.values()), allow_unused=True)
        assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-7
    bench, config = opened(sd1, sampler=sampler)
    with bench as tools:
        assert float(loss(tools, config, Step(0, 0)).detach()) > 1e-8


def test_a_step_is_drawn_from_the_seed_and_reads_one_target_of_the_list(sd1) -> None:
    bench, config = opened(sd1, ["cat", "fox"], sampling_steps=3)
    with bench as tools:
        values = [float(loss(tools, config, Step(0, i)).detach()) for i in range(6)]
        again = [float(loss(tools, config, Step(0, i)).detach()) for i in range(6)]
    assert values == again and len(set(values)) == 6


def test_who_draws_the_latents_is_a_switch(sd1) -> None:
    """Once the student has moved, its own latents are others than the frozen model's."""
    found = {}
    for sampler in ("student", "frozen"):
        bench, config = opened(sd1, sampler=sampler)
        step = next(Step(0, i) for i in range(99)
                    if int(torch.randint(3, (2,), generator=Step(0, i).generator("level"))[1]) == 2)  # fmt: skip
        with bench as tools, torch.no_grad():
            for tensor in tools.student.trained.values():
                tensor.mul_(1.2)
            found[sampler] = float(loss(tools, config, step))
    assert found["student"] != found["frozen"]


# -- what training does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
def test_the_trained_model_guides_away_from_the_target(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    edit = fit(pipe, steps=20, batch=2, retain=("dog",))
    empty, cat = predict(pipe, ""), predict(pipe, "cat")
    with edit.applied(pipe):
        moved = predict(pipe, "cat")
    cosine = torch.nn.functional.cosine_similarity((moved - empty).flatten(), (cat - empty).flatten(), dim=0)
    assert float(cosine) < 0
    check = edit.self_check
    assert check["residual"] < 0.9 and len(check["training"]["loss"]) == 20
    assert check["retained_drift"] > 0 and "does not hold on" in check["warnings"][0]


@pytest.mark.parametrize("variant", ["x", "x-strict", "u", "u-linear", "self", "full"])
def test_only_what_the_variant_says_differs(sd1, variant: str) -> None:
    before = state(sd1)
    edit = fit(sd1, variant=variant, steps=2)
    assert state(sd1) == before
    chosen = {"x": "cross", "x-strict": "cross.kv", "u": "outside-cross", "u-linear": "outside-cross.linear",
              "self": "self", "full": "all"}[variant]  # fmt: skip
    names = set(select(sd1.unet, chosen))
    written = {f"{op.module}.{'weight' if key == 'delta' else key}" for op in edit.ops for key in op.tensors()}
    assert written == names
    with edit.applied(sd1):
        during = state(sd1)
    changed = {name for name in names | set(sd1.unet.state_dict()) if during[name] != before[name]}
    assert changed <= names and len(changed) > 0.7 * len(names)
    assert state(sd1) == before


def test_without_text_the_strict_variant_changes_nothing_and_x_does(sd1) -> None:
    """Keys and values have no bias, the output projection has."""
    nothing = torch.zeros(1, 77, 32)
    before = predict(sd1, nothing)
    with fit(sd1, variant="x-strict").applied(sd1):
        assert torch.equal(predict(sd1, nothing), before)
    alike = torch.ones(1, 77, 32)
    before = predict(sd1, alike)
    with fit(sd1, variant="x").applied(sd1):
        assert not torch.equal(predict(sd1, alike), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_saved_edit_gives_the_students_outputs_to_the_bit(sd1, dtype: torch.dtype, tmp_path: Path) -> None:
    sd1.unet.to(dtype)
    bench, config = opened(sd1, variant="x")
    with bench as tools:
        curve = tools.train(lambda step: loss(tools, config, step), method="esd", checkpoint=None, progress=lambda *_: None)
        ops = settle(tools.student)
        residual, drift = measure(tools, config)
        latents, text = tools.noise(torch.Generator().manual_seed(1)), tools.text("cat")
        with tools.student.active(), torch.no_grad():
            student = tools.denoise(latents, 300, text)
        edit = finish(tools, ops, changes(tools, ops), curve, method="esd", parameters={}, residual=residual, drift=drift)
    assert all(op.difference.dtype == torch.float32 for op in edit.ops)
    edit.save(tmp_path / "edit.safetensors")
    fresh = tiny.sd1()
    fresh.unet.to(dtype)
    with Edit.load(tmp_path / "edit.safetensors").applied(fresh), torch.no_grad():
        found = fresh.unet(latents.to(dtype), 300, encoder_hidden_states=text).sample.float()
    assert torch.equal(found, student)


def test_small_steps_are_not_lost_in_half_precision(sd1) -> None:
    sd1.unet.to(torch.bfloat16)
    edit = fit(sd1, variant="x-strict", rate=1e-6)
    assert all(0 < float(op.difference.abs().max()) < 1e-4 for op in edit.ops)


# -- ending and going on --------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_edit(sd1, tmp_path: Path) -> None:
    options = {"steps": 4, "save_every": 2, "targets": ["cat", "fox"]}
    before = state(sd1)

    def kill(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(sd1, **options, checkpoint=tmp_path, progress=kill)
    assert state(sd1) == before
    resumed = fit(sd1, **options, checkpoint=tmp_path)
    whole = fit(sd1, **options)
    assert same(resumed, whole) and resumed.self_check == whole.self_check
    resumed.save(tmp_path / "a.safetensors")
    whole.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    others = [{"targets": ["cat", "dog"]}, {"seed": 1}, {"eta": 3.0}, {"anchor": "dog"}, {"steps": 6}]
    for other in others:
        with pytest.raises(TrainingError, match="another run"):
            fit(sd1, **(options | other), checkpoint=tmp_path)
    with pytest.raises(TrainingError, match=r"another run \(other base\)"):
        fit(tiny.sd1(seed=7), **options, checkpoint=tmp_path)


def test_a_rate_that_breaks_the_model_stops_in_one_line_and_leaves_the_model(sd1) -> None:
    before = state(sd1)
    with pytest.raises(TrainingError, match="lower the rate") as error:
        fit(sd1, rate=1e3, steps=30, variant="full")
    assert "\n" not in str(error.value) and state(sd1) == before


def test_what_is_asked_in_a_wrong_way_is_one_clear_line(sd1, tmp_path: Path) -> None:
    for options, named in [({"steps": 0}, "steps"), ({"variant": "y"}, "variant"), ({"sampler": "me"}, "sampler"),
                           ({"eta": -2}, "eta"), ({"sampling_steps": 0}, "sampling_steps"),
                           ({"sampling_steps": 2000}, "1000 timesteps"), ({"precision": "int8"}, "precision")]:  # fmt: skip
        with pytest.raises(UsageError, match=named):
            erasekit.erase(sd1, "cat", method="esd", **options)
    with pytest.raises(UsageError, match="nothing to the model's tokenizer"):
        erasekit.erase(sd1, "​", method="esd")
    with pytest.raises(UsageError, match="uce does not train and has no use for a checkpoint"):
        erasekit.erase(sd1, "cat", method="uce", checkpoint=tmp_path)
    with pytest.raises(UsageError, match="uce does not train and has no use for a plan"):
        erasekit.plan(sd1, "cat", method="uce")


def test_the_plan_counts_what_would_be_trained_and_changes_nothing(sd1) -> None:
    before = state(sd1)
    plan = erasekit.plan(sd1, "cat", method="esd", variant="x-strict", steps=100, sampling_steps=4)
    names = select(sd1.unet, "cross.kv")
    numbers = sum(sd1.unet.get_parameter(name).numel() for name in names)
    every = sum(p.numel() for p in sd1.unet.parameters())
    assert (plan.numbers, plan.modules, plan.steps) == (numbers, len(names), 100)
    assert plan.share == pytest.approx(numbers / every) and plan.seconds > 0
    assert plan.memory > 4 * (every + 4 * numbers)
    longer = erasekit.plan(sd1, "cat", method="esd", variant="full", steps=100, sampling_steps=4)
    assert longer.memory > plan.memory and longer.share == 1 and state(sd1) == before


@cache
def plain_edit() -> Edit:
    return fit(tiny.sd1())


@pytest.mark.parametrize(
    "options", [{"recompute": True}, {"precision": "bfloat16"}, {"ema": 0.5}, {"accumulate": 2, "steps": 2}]
)
def test_every_setting_of_the_loop_gives_an_edit(sd1, options: dict) -> None:
    edit, plain = fit(sd1, **options), plain_edit()
    close = [torch.allclose(a.difference, b.difference, atol=1e-4) for a, b in zip(edit.ops, plain.ops, strict=True)]
    assert all(close) if "recompute" in options else not same(edit, plain)
