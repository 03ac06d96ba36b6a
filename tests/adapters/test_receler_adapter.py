"""Receler's erasers on a pipeline, against the formula written out; what they leave behind; what does not fit."""

from __future__ import annotations

import gc
from pathlib import Path
from weakref import ref

import pytest
import tiny
import torch
from torch import Tensor

from erasekit.adapters.receler import PARTS, eraser, put
from erasekit.edit import Adapter, Base, Edit, fingerprint
from erasekit.errors import BaseMismatchError, EditError, UsageError
from erasekit.training.maps import cross_attentions

MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn2"


def noise(*shape: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(pipe, *, rank: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random erasers for every cross-attention."""
    found = {}
    for i, (path, module) in enumerate(cross_attentions(pipe.unet).items()):
        d, at = module.to_out[0].weight.shape[0], 100 * seed + 10 * i
        shapes = ((rank, d), (rank,), (d, rank), (d,))
        found |= {f"{path}.{part}": noise(*shape, seed=at + j) for j, (part, shape) in enumerate(zip(PARTS, shapes))}
    return found


def edit(pipe, weights: dict[str, Tensor] | None = None, *, seed: int = 0, halves: str = "both") -> Edit:
    op = Adapter("unet", "", "receler", tensors(pipe, seed=seed) if weights is None else weights, {"halves": halves})
    names = [f"{path}.to_out.0" for path in cross_attentions(pipe.unet)]
    prints = {f"unet/{name}": fingerprint(pipe.unet.get_submodule(name).weight) for name in names}
    return Edit((op,), Base("tiny", "sd1", prints), "receler", targets=("cat",), anchors=("",))


def written_out(hidden: Tensor, weights: dict[str, Tensor], path: str = MIDDLE) -> Tensor:
    """U gelu(D h + b) + b', position by position."""
    down, bias, up, shift = (weights[f"{path}.{part}"].double() for part in PARTS)
    found = torch.zeros_like(hidden)
    for sample in range(hidden.shape[0]):
        for position in range(hidden.shape[1]):
            x = down @ hidden[sample, position].double() + bias
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
            found[sample, position] = (up @ x + shift).float()
    return found


def attention(pipe, *, hooks: bool) -> Tensor:
    """The middle cross-attention's output for fixed inputs, (2, 5, 64)."""
    module = pipe.unet.get_submodule(MIDDLE)
    run = module if hooks else module.forward
    with torch.no_grad():
        return run(noise(2, 5, 64, seed=1), encoder_hidden_states=noise(2, 7, 32, seed=2))


def predict(pipe, *, count: int = 1) -> Tensor:
    latents, text = noise(1, 4, 16, 16, seed=3), noise(1, 77, 32, seed=4)
    with torch.no_grad():
        sample = pipe.unet(latents.repeat(count, 1, 1, 1).to(pipe.unet.dtype), 500,
                           encoder_hidden_states=text.repeat(count, 1, 1).to(pipe.unet.dtype)).sample  # fmt: skip
    return sample


def hooks(pipe) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in pipe.unet.modules())


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
def test_what_is_added_is_the_formula(sd1, scale: float) -> None:
    own = edit(sd1)
    with own.applied(sd1, scale=scale):
        plain, found = attention(sd1, hooks=False), attention(sd1, hooks=True)
    assert torch.allclose(found, plain + scale * written_out(plain, own.ops[0].weights), atol=1e-5)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_taken_off_the_model_is_the_base_to_the_bit(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    before, image = predict(pipe), tiny.image(pipe, latent=True)
    with edit(pipe).applied(pipe):
        assert not torch.equal(predict(pipe), before) and not torch.equal(tiny.image(pipe, latent=True), image)
        assert hooks(pipe) == len(cross_attentions(pipe.unet))
    assert torch.equal(predict(pipe), before) and torch.equal(tiny.image(pipe, latent=True), image) and hooks(pipe) == 0
    with edit(pipe).applied(pipe, scale=0):
        assert torch.equal(predict(pipe), before)


def test_several_edits_add_their_residuals_of_the_plain_output_and_come_off_in_any_order(sd1) -> None:
    one, other = edit(sd1, seed=1), edit(sd1, seed=2)
    before = predict(sd1)
    first, second = one.apply(sd1), other.apply(sd1, scale=0.5)
    plain, found = attention(sd1, hooks=False), attention(sd1, hooks=True)
    parts = [written_out(plain, own.ops[0].weights) for own in (one, other)]
    assert torch.allclose(found, plain + parts[0] + 0.5 * parts[1], atol=1e-5)
    in_a_row = plain + parts[0] + 0.5 * written_out(plain + parts[0], other.ops[0].weights)
    assert not torch.allclose(found, in_a_row, atol=1e-2)
    first.remove()
    assert torch.allclose(attention(sd1, hooks=True), plain + 0.5 * parts[1], atol=1e-5)
    second.remove()
    second.remove()
    assert torch.equal(predict(sd1), before) and hooks(sd1) == 0


def test_on_the_conditional_half_alone_the_other_half_is_the_base(sd1) -> None:
    own, before = edit(sd1, halves="conditional"), predict(sd1, count=2)
    with own.applied(sd1):
        moved = predict(sd1, count=2)  # a pipeline that was never called guides nothing
        assert not torch.equal(moved[0], before[0]) and not torch.equal(moved[1], before[1])
        sd1._guidance_scale = 7.5
        assert sd1.do_classifier_free_guidance
        guided = predict(sd1, count=2)
        assert torch.equal(guided[0], before[0]) and torch.equal(guided[1], moved[1])
        sd1._guidance_scale = 1.0
        assert torch.equal(predict(sd1, count=2), moved)


def test_a_guided_image_depends_on_the_halves_and_an_unguided_one_does_not(sd1) -> None:
    def image(halves: str, guidance: float) -> Tensor:
        with edit(sd1, halves=halves).applied(sd1):
            return sd1("a cat", latents=noise(1, 4, 16, 16, seed=5), num_inference_steps=2, guidance_scale=guidance,
                       output_type="latent").images  # fmt: skip

    assert not torch.equal(image("both", 3.0), image("conditional", 3.0))
    assert torch.equal(image("both", 1.0), image("conditional", 1.0))


def test_it_is_computed_in_the_models_precision(sd1) -> None:
    sd1.unet.to(torch.bfloat16)
    before = predict(sd1)
    with edit(sd1).applied(sd1):
        moved = predict(sd1)
        assert moved.dtype == torch.bfloat16 and not torch.equal(moved, before)
    hidden = noise(1, 3, 64, seed=6)
    weights = [tensors(sd1)[f"{MIDDLE}.{part}"] for part in PARTS]
    found = eraser(hidden.to(torch.bfloat16), *weights)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), eraser(hidden, *weights), atol=0.1)


def test_a_file_of_erasers_acts_as_the_edit_did(sd1, tmp_path: Path) -> None:
    own = edit(sd1, halves="conditional")
    own.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.ops[0].config == {"halves": "conditional"}
    with own.applied(sd1):
        wanted = predict(sd1)
    with loaded.applied(sd1):
        assert torch.equal(predict(sd1), wanted)


def test_a_pipeline_that_is_dropped_is_not_kept_alive() -> None:
    pipe = tiny.sd1()
    edit(pipe, halves="conditional").apply(pipe)
    alive = ref(pipe.unet)
    del pipe
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("format", ["peft", "kohya", "comfy"])
def test_no_other_format_can_hold_it_and_the_line_says_why(sd1, format: str, tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"receler adapter op on unet.* is code and not a linear change of weights") as error:
        edit(sd1).export(tmp_path / "lora.safetensors", format=format)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_another_base_is_refused_before_anything_is_put_on(sd1) -> None:
    other = tiny.sd1(seed=7)
    with pytest.raises(BaseMismatchError, match=r"attn2\.to_out\.0"):
        edit(sd1).apply(other)
    assert hooks(other) == 0
    with edit(sd1).applied(other, force=True):
        assert hooks(other) > 0


def test_an_attachment_that_is_broken_off_leaves_nothing(sd1, monkeypatch) -> None:
    """Ctrl-C between two blocks: they are put on whole or not at all."""
    calls, before = [], predict(sd1)

    def broken(module, residual):
        calls.append(module)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return put(module, residual)

    monkeypatch.setattr("erasekit.adapters.receler.put", broken)
    with pytest.raises(KeyboardInterrupt):
        edit(sd1).apply(sd1)
    assert len(calls) == 3 and hooks(sd1) == 0 and torch.equal(predict(sd1), before)


def test_what_does_not_fit_is_one_line_and_nothing_is_put_on(sd1) -> None:
    good = tensors(sd1)
    lost = {name: tensor for name, tensor in good.items() if name != f"{MIDDLE}.up.bias"}
    wide = good | {f"{MIDDLE}.up.weight": torch.zeros(63, 4)}
    elsewhere = {name.replace("mid_block", "end_block"): tensor for name, tensor in good.items()}
    wrong = {"no whole eraser": lost, "another width than the model's 64": wide, "has no unet/end_block": elsewhere,
             "holds no eraser": {}}  # fmt: skip
    for named, weights in wrong.items():
        with pytest.raises(EditError, match=named) as error:
            edit(sd1, weights).apply(sd1)
        assert "\n" not in str(error.value) and hooks(sd1) == 0
    with pytest.raises(EditError, match=r"halves 'left', unknown here \(known: both, conditional\)"):
        edit(sd1, halves="left").apply(sd1)
    with pytest.raises(UsageError, match="not a number"):
        edit(sd1).apply(sd1, scale=float("nan"))
