"""The tiny pipelines of the tests: copies of what is built once, and each as good as built anew."""

from __future__ import annotations

import pytest
import tiny
import torch


def tensors(pipe) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, those that no file holds too, and the scheduler's noise levels."""
    found = {"levels": pipe.scheduler.alphas_cumprod}
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(pipe, part)
        found |= {f"{part}.{name}": value for name, value in [*module.named_parameters(), *module.named_buffers()]}
    return found


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_copy_is_what_was_built_and_shares_no_memory(family: str) -> None:
    built = tiny.built(family, 5)
    random = torch.get_rng_state()
    copy, other = (getattr(tiny, family)(seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random)
    wanted, found, beside = map(tensors, (built, copy, other))
    assert list(found) == list(wanted) and not {x.data_ptr() for x in found.values()} & {x.data_ptr() for x in beside.values()}
    for name, value in wanted.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype and type(found[name]) is type(value)
        assert found[name].requires_grad == value.requires_grad and found[name].stride() == value.stride()
    for part in ("unet", "vae", "text_encoder"):
        one, two, three = (getattr(pipe, part) for pipe in (built, copy, other))
        assert str(one) == str(two) and repr(one.config) == repr(two.config)
        assert not two.training and two is not three and all(
            a.__dict__.keys() == b.__dict__.keys() for a, b in zip(one.modules(), two.modules(), strict=True)
        )
    assert copy.config == built.config and copy.scheduler.config == built.scheduler.config
    assert copy.tokenizer is not other.tokenizer and copy.tokenizer.get_vocab() == built.tokenizer.get_vocab()
    ids = copy.tokenizer("a photo of y").input_ids
    assert copy.tokenizer.decode(ids) == built.tokenizer.decode(ids)
    assert torch.equal(tiny.image(copy), tiny.image(built))


def test_what_is_done_to_a_copy_is_not_in_the_next() -> None:
    first, untouched = tiny.sd1(), {name: value.clone() for name, value in tensors(tiny.sd1()).items()}
    with torch.no_grad():
        for value in first.unet.parameters():
            value.zero_()
    first.unet.mid_block.register_forward_hook(lambda *_: None)
    first.tokenizer.add_tokens(["<new>"])
    first.scheduler.register_to_config(prediction_type="sample")
    fresh = tiny.sd1()
    assert all(torch.equal(value, untouched[name]) for name, value in tensors(fresh).items())
    assert not fresh.unet.mid_block._forward_hooks and "<new>" not in fresh.tokenizer.get_vocab()
    assert fresh.scheduler.config.prediction_type == "epsilon"


def test_another_width_is_another_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = tiny.sd1().unet.config.cross_attention_dim
    monkeypatch.setattr(tiny, "WIDTH", 2 * narrow)
    assert tiny.sd1().unet.config.cross_attention_dim == 2 * narrow
    monkeypatch.undo()
    assert tiny.sd1().unet.config.cross_attention_dim == narrow
