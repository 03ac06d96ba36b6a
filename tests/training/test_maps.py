"""Cross-attention maps against diffusers' own explicit attention, and what they leave behind."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from erasekit.errors import ModelError
from erasekit.training.maps import cross_attentions, grid, maps, probabilities, resized


def run(pipe, latents: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return pipe.unet(latents, 500, encoder_hidden_states=text).sample


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 16, 8, generator=draw), torch.randn(2, 77, 32, generator=draw)


def test_maps_are_those_of_the_explicit_attention(sd1, inputs) -> None:
    """diffusers' unfused processor computes probabilities of (b * heads, positions, tokens)."""
    with torch.no_grad(), maps(sd1.unet) as found:
        run(sd1, *inputs)
    own: dict[str, torch.Tensor] = {}
    for name, attention in cross_attentions(sd1.unet).items():
        attention.set_processor(AttnProcessor())
        scores = attention.get_attention_scores

        def kept(query, key, mask=None, *, name=name, scores=scores):
            own[name] = scores(query, key, mask)
            return own[name]

        attention.get_attention_scores = kept
    with torch.no_grad():
        run(sd1, *inputs)
    assert found.keys() == own.keys() and len(found) == len(cross_attentions(sd1.unet))
    for name, probability in found.items():
        assert probability.shape[0] == 2 and probability.shape[-1] == 77
        torch.testing.assert_close(probability.flatten(0, 1), own[name])


def test_under_autocast_they_are_float32_and_exact(sd1, inputs) -> None:
    kept: dict[str, list[torch.Tensor]] = {}
    for name, attention in cross_attentions(sd1.unet).items():
        for part in (attention.to_q, attention.to_k):
            part.register_forward_hook(lambda module, inputs, output, name=name: kept.setdefault(name, []).append(output))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), maps(sd1.unet) as found:
        run(sd1, *inputs)
    for name, attention in cross_attentions(sd1.unet).items():
        queries, keys = kept[name]
        assert queries.dtype == torch.bfloat16 and found[name].dtype == torch.float32
        assert torch.equal(found[name], probabilities(queries, keys, heads=attention.heads, scale=attention.scale))


def test_watching_changes_nothing_and_leaves_nothing(sd1, inputs) -> None:
    with torch.no_grad():
        before = run(sd1, *inputs)
        with pytest.raises(RuntimeError, match="stop"), maps(sd1.unet):
            assert torch.equal(run(sd1, *inputs), before)
            raise RuntimeError("stop")
    assert not any(part._forward_hooks for part in sd1.unet.modules())


def test_only_wanted_maps_are_kept_and_they_carry_gradients(sd1, inputs) -> None:
    wanted = next(iter(cross_attentions(sd1.unet)))
    latents, text = inputs
    text.requires_grad_()
    with maps(sd1.unet, lambda name: name == wanted) as found:
        run(sd1, latents, text)
    assert list(found) == [wanted]
    (gradient,) = torch.autograd.grad(found[wanted][..., 3].sum(), text)
    assert float(gradient.abs().sum()) > 0
    assert torch.allclose(found[wanted].sum(-1), torch.ones(()))


def test_grids_and_masks() -> None:
    assert [grid(n, s) for n, s in ((256, (64, 64)), (128, (16, 8)), (32, (8, 16)), (24, (6, 4)), (6, (11, 7)))] == [
        (16, 16), (16, 8), (4, 8), (6, 4), (3, 2)]  # fmt: skip
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, 4:8, 8:12] = True
    for side in (8, 16, 32, 64):
        f = side / 16
        wanted = torch.zeros(1, side, side, dtype=torch.bool)
        wanted[:, int(4 * f) : int(8 * f), int(8 * f) : int(12 * f)] = True
        assert torch.equal(resized(mask, (side, side)), wanted)


def test_one_token_takes_everything() -> None:
    found = probabilities(torch.randn(1, 4, 6), torch.randn(1, 1, 6), heads=2, scale=0.5)
    assert torch.equal(found, torch.ones(1, 2, 4, 1))


def test_a_model_without_cross_attention_is_refused() -> None:
    with pytest.raises(ModelError, match="no cross-attention"):
        cross_attentions(torch.nn.Linear(2, 2))
