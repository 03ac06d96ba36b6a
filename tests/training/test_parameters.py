"""Choices of parameters, and a student that shares all the rest with its teacher."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from erasekit.errors import ModelError
from erasekit.training.parameters import CHOICES, Student, held, select, stored

COUNTS = {  # SD v1.4, from the ESD and AC notes
    "cross": 43_962_560,
    "cross.kv": 19_169_280,
    "outside-cross": 813_495_680,
    "outside-cross.linear": 815_358_084,
    "all": 859_520_964,
}


@pytest.fixture(scope="module")
def sd14() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )


@pytest.mark.parametrize("choice", COUNTS)
def test_the_choices_have_the_papers_sizes(choice: str, sd14) -> None:
    assert sum(sd14.get_parameter(name).numel() for name in select(sd14, choice)) == COUNTS[choice]


def test_the_choices_are_what_they_are_called(sd14) -> None:
    assert len(select(sd14, "cross.kv")) == 32
    assert all(".attn1." in name for name in select(sd14, "self"))
    names = select(sd14, "attention")
    assert len(names) == 16 * 2 * 5 and {name.split(".")[-2] for name in names} == {"to_q", "to_k", "to_v", "0"}
    assert not any("norm" in name for name in select(sd14, "cross"))


def test_a_choice_without_a_parameter_is_refused() -> None:
    for choice in set(CHOICES) - {"all", "outside-cross", "outside-cross.linear"}:
        with pytest.raises(ModelError, match=choice):
            select(torch.nn.Sequential(torch.nn.Linear(2, 2)), choice)


def output(pipe) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 16, 16, generator=draw), torch.randn(1, 77, 32, generator=draw)
    return pipe.unet(latents, 500, encoder_hidden_states=text).sample


def test_teacher_and_student_share_every_frozen_tensor(sd1) -> None:
    """Not one tensor more than the chosen ones exists, and each is where it was when the student has gone."""
    before = {name: (id(p), p.data_ptr()) for name, p in sd1.unet.named_parameters()}
    names = select(sd1.unet, "cross.kv")
    student = Student(sd1.unet, names)
    assert set(student.trained) == set(names)
    with torch.no_grad():
        teacher = output(sd1)
        for tensor in student.trained.values():
            tensor.add_(0.1)
        with student.active():
            during = {name: p.data_ptr() for name, p in sd1.unet.named_parameters()}
            moved = output(sd1)
        assert torch.equal(output(sd1), teacher) and not torch.equal(moved, teacher)
    assert {name for name in before if during[name] != before[name][1]} == set(names)
    assert {name: (id(p), p.data_ptr()) for name, p in sd1.unet.named_parameters()} == before


def test_gradients_reach_the_student_alone_and_equal_those_of_the_plain_model(sd1) -> None:
    names = select(sd1.unet, "cross")
    output(sd1).square().mean().backward()
    plain = {name: sd1.unet.get_parameter(name).grad.clone() for name in names}
    sd1.unet.zero_grad(set_to_none=True)
    with held(sd1.unet):
        student = Student(sd1.unet, names)
        with student.active():
            output(sd1).square().mean().backward()
    assert all(torch.allclose(student.trained[name].grad, plain[name], atol=1e-9) for name in names)
    assert all(p.grad is None for p in sd1.unet.parameters())


def test_recomputed_activations_give_the_same_gradients(sd1) -> None:
    """Though the student was taken out between the forward and the backward pass."""
    found = []
    for recompute in (False, True):
        with held(sd1.unet, recompute=recompute):
            student = Student(sd1.unet, select(sd1.unet, "cross.kv"))
            with torch.no_grad():
                for tensor in student.trained.values():
                    tensor.mul_(1.5)
            with student.active():
                loss = output(sd1).square().mean()
            with student.active():
                loss.backward()
            assert sd1.unet.is_gradient_checkpointing is recompute
            found.append([tensor.grad for tensor in student.trained.values()])
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*found, strict=True))
    assert not sd1.unet.is_gradient_checkpointing


def test_every_switch_of_the_model_is_put_back_after_an_exception(sd1) -> None:
    sd1.unet.train()
    sd1.unet.mid_block.eval()
    sd1.unet.conv_in.weight.requires_grad_(False)
    modes = [m.training for m in sd1.unet.modules()]
    flags = [p.requires_grad for p in sd1.unet.parameters()]
    own = dict(sd1.unet.named_parameters())
    student = Student(sd1.unet, select(sd1.unet, "self"))
    with pytest.raises(KeyboardInterrupt), held(sd1.unet, recompute=True), student.active():
        assert not any(m.training for m in sd1.unet.modules())
        raise KeyboardInterrupt
    assert modes == [m.training for m in sd1.unet.modules()]
    assert flags == [p.requires_grad for p in sd1.unet.parameters()]
    assert all(p is own[name] for name, p in sd1.unet.named_parameters())


def test_a_run_recomputes_if_it_is_told_to_and_not_because_the_model_did(sd1) -> None:
    sd1.unet.enable_gradient_checkpointing()
    for asked, inside in ((False, False), (True, True), (None, True)):
        with held(sd1.unet, recompute=asked):
            assert sd1.unet.is_gradient_checkpointing is inside
        assert sd1.unet.is_gradient_checkpointing


def test_half_precision_models_have_float32_masters(sd1) -> None:
    unet = sd1.unet.to(torch.bfloat16)
    student = Student(unet, select(unet, "cross.kv"))
    assert {t.dtype for t in student.trained.values()} == {torch.float32}
    with student.active():
        assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_student_has_the_values_that_the_model_would_store(dtype: torch.dtype) -> None:
    """To the bit, also where they are held in float32 for their gradients' sake."""
    values = torch.cat([10.0 ** torch.arange(-12, 5), torch.randn(999), torch.tensor([0.0, 3e-8, 65519.0, 1e5])])
    trained = torch.cat([values, -values]).requires_grad_()
    found = stored(trained, dtype)
    finite = found.isfinite()
    assert torch.equal(found.float()[finite], trained.to(dtype).float()[finite])
    assert torch.equal(finite, trained.to(dtype).isfinite()) and finite.sum() >= 2 * (len(values) - 1)
    (gradient,) = torch.autograd.grad(found, trained, torch.full_like(found, 2.0**-30))
    assert torch.equal(gradient, torch.full_like(trained, 2.0**-30))


def test_weights_that_cannot_be_trained_are_named(sd1) -> None:
    name = select(sd1.unet, "cross.kv")[0]
    with torch.no_grad():
        sd1.unet.get_parameter(name)[0, 0] = float("nan")
    with pytest.raises(ModelError, match=rf"{name} contains NaN"):
        Student(sd1.unet, [name])
    with torch.device("meta"), pytest.raises(ModelError, match="unquantised"):
        Student(torch.nn.Linear(2, 2), ["weight"])
