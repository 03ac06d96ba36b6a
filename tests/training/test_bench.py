"""The bench: which models are taken, what a checkpoint knows of one, and gradients through a float16 model."""

from __future__ import annotations

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel

import erasekit
from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.errors import EditError, ModelError
from erasekit.training.bench import Denoiser, opened
from erasekit.training.erasers import inserted
from erasekit.training.parameters import Student, select, weights
from erasekit.training.settings import TrainingConfig


def bench(pipe, *, sampling_steps: int = 2):
    request = EraseRequest.build("cat", anchor="dog")
    return opened(backbone(pipe), request, TrainingConfig(), student=weights("cross.kv"), prompts=[],
                  sampling_steps=sampling_steps)  # fmt: skip


def base(pipe, **options) -> str:
    with bench(pipe, **options) as tools:
        assert tools.about("esd")["base"] == tools.base
        return tools.base


# -- which models are taken -----------------------------------------------------------------------------------------


def test_a_denoiser_for_inpainting_is_refused(sd1) -> None:
    sd1.unet = UNet2DConditionModel.from_config({**sd1.unet.config, "in_channels": 9})
    with pytest.raises(ModelError, match="text-to-image denoiser: this one reads 9 channels and gives 4"), bench(sd1):
        pass


@pytest.mark.parametrize("method", ["esd", "mace"])
def test_an_offloaded_pipeline_is_refused(sd1, method: str) -> None:
    sd1.unet._hf_hook = object()  # as accelerate leaves it
    with pytest.raises(ModelError, match=r"is offloaded: call pipe.remove_all_hooks\(\) and pipe.to\(device\)"):
        erasekit.erase(sd1, "cat", anchor="dog", method=method, steps=1, sampling_steps=2)


@pytest.mark.parametrize("method", ["esd", "mace", "irece"])
def test_a_unet_compiled_in_place_is_refused(sd1, method: str) -> None:
    """Its graph would run without the hooks, and say nothing."""
    sd1.unet.mid_block.compile(backend="eager")  # inductor takes seconds to import
    with pytest.raises(ModelError, match="is compiled in place: load the pipeline again"):
        erasekit.erase(sd1, "cat", anchor="dog", method=method, sampling_steps=2)


@pytest.mark.parametrize(
    ("method", "options"),
    [("receler", {"attack_steps": 0, "rank": 4}), ("spm", {"warmup": 0}), ("spm", {"warmup": 0, "gate": "off"})],
)
def test_nothing_is_trained_on_top_of_an_edit_that_acts_by_code(sd1, method: str, options: dict) -> None:
    """Its base would record the weights without it."""
    edit = erasekit.erase(sd1, "cat", method=method, steps=1, sampling_steps=2, rate=1e-2, **options)
    with edit.applied(sd1), pytest.raises(EditError, match="remove it, then train"), bench(sd1):
        pass
    with bench(sd1):
        pass


# -- what a checkpoint knows of a model -------------------------------------------------------------------------------


def test_the_base_of_a_run_is_every_tensor_and_the_noise_levels(sd1) -> None:
    first = base(sd1)
    assert first == base(tiny.sd1()) != base(tiny.sd1(seed=1))
    with torch.no_grad():
        for tensor in (sd1.unet.conv_out.bias, sd1.text_encoder.get_input_embeddings().weight):
            own = tensor.clone()
            tensor[0] += 1e-3
            assert base(sd1) != first
            tensor.copy_(own)
            assert base(sd1) == first
    assert base(tiny.sd1(), sampling_steps=3) != first
    other = tiny.sd1()
    other.scheduler.register_to_config(beta_end=0.013)
    assert base(other) != first
    sd1.unet.to(torch.bfloat16)
    assert base(sd1) != base(tiny.sd1())


# -- float16 ----------------------------------------------------------------------------------------------------------


def halved(unet: torch.nn.Module) -> torch.nn.Module:
    """A float16 model but for the norms: a CPU has no such norms of autocast's bfloat16."""
    unet.half()
    for part in unet.modules():
        if isinstance(part, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            part.float()
    return unet


def gradients(unet, text: torch.Tensor) -> list[torch.Tensor]:
    """Of a very small loss, for rows of the text and for the cross-attention's weights."""
    draw = torch.Generator().manual_seed(0)
    latents, rows = torch.randn(1, 4, 16, 16, generator=draw), torch.rand(3, 32, generator=draw).requires_grad_()
    student, denoise = Student(unet, select(unet, "cross")), Denoiser(unet, "model")
    with student.active():
        value = 1e-6 * denoise(latents, 500, inserted(text.to(denoise.dtype), rows, 2)).square().mean()
    return list(torch.autograd.grad(value, [rows, *student.trained.values()]))


def test_gradients_do_not_underflow_in_a_float16_model(sd1) -> None:
    text = backbone(sd1).encode(["cat"])
    full, found = gradients(sd1.unet, text), gradients(halved(sd1.unet), text)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    assert all(float((tensor == 0).float().mean()) < 0.05 for tensor in found)
    for wanted, own in ((full[:1], found[:1]), (full[1:], found[1:])):
        a, b = (torch.cat([tensor.flatten() for tensor in part]) for part in (wanted, own))
        assert float((a - b).norm()) < 0.2 * float(a.norm())


def test_a_sampler_computes_as_the_pipeline_does_and_not_as_training_does(sd1) -> None:
    unet, draw = sd1.unet.half(), torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 16, 16, generator=draw), torch.randn(1, 77, 32, generator=draw)
    with torch.no_grad():
        own = unet(latents.half(), 500, encoder_hidden_states=text.half()).sample
        found = Denoiser(unet, "stored")(latents, 500, text)
    assert found.dtype == torch.float32 and torch.equal(found, own.float())
    assert Denoiser(unet, "model").autocast and not Denoiser(unet, "stored").autocast
