"""SPM trained: what the edit does, resuming, and what a user can get wrong; on tiny random models."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from spm_runs import fill, fit, naive_conditions, opened, predict, same, state, tensors

import erasekit
from erasekit.adapters.spm import Stack
from erasekit.backbones import backbone
from erasekit.edit import Edit
from erasekit.errors import TrainingError, UsageError
from erasekit.methods._spm_edit import adapter
from erasekit.training.membranes import layers

# -- what training does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
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
    edit = fit(sd1, steps=1, seed=2, gate="off", rank=2, alpha=3.0)
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


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_targets_of_a_list_are_trained_as_if_alone_each_with_its_own_gate(sd1, ema: float) -> None:
    both = fit(sd1, ["cat", "fox"], steps=2, seed=3, ema=ema)
    for i, name in enumerate(("cat", "fox")):
        one = fit(sd1, name, steps=2, seed=3, ema=ema)
        for key, tensor in tensors(one).items():
            part = {"up": lambda t: t[:, i : i + 1]}.get(key.rpartition(".")[2], lambda t: t[i : i + 1])
            assert torch.equal(part(tensors(both)[key]), tensor), key
    (op,) = both.ops
    assert both.self_check["training"]["steps"] == 4 and op.config["targets"] == ["cat", "fox"]
    assert len(op.config["tokens"]) == 2 and Stack(sd1.unet, op).gates.shape == (1, 2)


@pytest.mark.slow
def test_every_setting_gives_an_edit(sd1) -> None:
    plain = fit(sd1)
    again = fit(sd1, recompute=True)
    close = [torch.allclose(a, tensors(again)[key], atol=1e-3) for key, a in tensors(plain).items()]
    assert sum(close) > 0.9 * len(close)  # Adam turns rounding at a gradient of zero into whole steps
    short = fit(sd1, steps=2)
    for options in ({"precision": "bfloat16"}, {"ema": 0.5}, {"accumulate": 2}, {"resolution": "full"}):
        assert not same(fit(sd1, steps=2, **options), short), options
    paper, released = (
        fit(sd1, steps=2, conditions=2, **more) for more in ({}, {"variant": "released", "gate": "released"})
    )
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
    one, many = (erasekit.plan(sd1, "cat", method="spm", sampling_steps=2, conditions=n).memory for n in (1, 4))
    none = erasekit.plan(sd1, "cat", method="spm", sampling_steps=2, conditions=4, anchoring=0.0).memory
    assert many - one == pytest.approx(3 * (one - none), rel=0.02)  # each condition is a sample in one graph
