"""Edits by code that tell the two branches of guidance apart: inside a victim they know which batch has two, whatever
picture was drawn before."""

from __future__ import annotations

import edits
import pytest
import torch
from test_probes import ddim
from test_weights import CASES, Rule, receler, spm

from erasekit.adapters._gate import similarity
from erasekit.attacks import _ddim
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling, Victim

UNSEEN = edits.noise(2, 77, 32, seed=31, size=1)  # no text encoder has put these out


def victim(pipe, edit=None, guidance: float = 3.0) -> Victim:
    return Victim(pipe, edit, Sight(Rule(), "cat"), Sampling(2, guidance, 4))


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, atol=1e-4, rtol=1e-3)


def conditional(pipe):
    return receler(pipe, "conditional")


@pytest.mark.parametrize("make", (conditional, spm))
@torch.no_grad()
def test_every_row_of_a_plain_batch_is_edited_whatever_was_drawn(sd1, make) -> None:
    """Two prompts on the same latents: nothing but the pipeline's word says that this is no guided batch."""
    latents = edits.noise(1, 4, 16, 16, seed=30, size=1).repeat(2, 1, 1, 1)
    edit = make(sd1)
    features = edit.ops[0].weights.get("features", torch.zeros(1, 1, 1))
    text = UNSEEN + torch.tensor([10.0, 3.0])[:, None, None] * features  # at a gate two rows, two gammas
    with victim(sd1, edit) as model:
        denoise = model.denoiser()
        rows = torch.cat([denoise(latents[:1], 500, text[i : i + 1]) for i in (0, 1)])  # an odd batch has no halves
        with model.original():
            plain = denoise(latents, 500, text)
        assert all(not close(rows[i], plain[i]) for i in (0, 1))
        for guidance in (3.0, 1.0, 3.0):
            model.draw(CASES, sampling=Sampling(1, guidance, 4))
            assert close(denoise(latents, 500, text), rows)
        sd1._guidance_scale = 3.0  # as a pipeline leaves it: the batch would be taken for a guided one
        assert not close(denoise(latents, 500, text)[0], rows[0]) and close(denoise(latents, 500, text)[1], rows[1])


def test_unseen_embeddings_are_gated_by_their_own_cosine_and_no_gradient_goes_through_the_gate(sd1) -> None:
    edit, latents = spm(sd1), edits.noise(2, 4, 16, 16, seed=30, size=1)
    features = edit.ops[0].weights["features"]
    text = (0.3 * features + 0.1 * UNSEEN).requires_grad_()
    gammas = similarity(text, features)[:, 0].tolist()
    assert all(0.1 < gamma < 0.999 for gamma in gammas)
    with victim(sd1, edit) as model:
        model.draw(CASES)
        found = model.denoiser()(latents, 500, text)
        (slope,) = torch.autograd.grad(found.square().sum(), text)
    for i, gamma in enumerate(gammas):  # each row alone, on weights merged with its gamma as a constant
        op, name = edit.ops[0], edits.KEYS[0]
        weight = sd1.unet.get_submodule(name).weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight += gamma * op.weights[f"{name}.up"] @ op.weights[f"{name}.down"]
        own = text[i : i + 1].detach().requires_grad_()
        wanted = sd1.unet(latents[i : i + 1], 500, encoder_hidden_states=own).sample
        (naive,) = torch.autograd.grad(wanted.square().sum(), own)
        with torch.no_grad():
            weight.copy_(kept)
        assert close(found[i : i + 1], wanted) and edits.relative(slope[i : i + 1], naive) < 1e-2


@pytest.mark.parametrize("make", (conditional, spm))
@torch.no_grad()
def test_the_probes_sampler_is_the_pipelines_under_such_an_edit(sd1, make) -> None:
    prompts, noise = [case.prompt for case in CASES], edits.noise(2, 4, 16, 16, seed=32, size=1)
    edit, pipe = make(sd1), ddim(sd1)
    for guidance, before in ((3.0, 1.0), (1.0, 3.0)):
        with edit.applied(pipe):
            wanted = pipe(prompts, latents=noise, num_inference_steps=2, guidance_scale=guidance,
                          output_type="latent").images  # fmt: skip
        with victim(pipe, edit) as model:
            text = _ddim.texts(model, prompts, guidance)
            model.draw(CASES, sampling=Sampling(1, before, 4))
            found = _ddim.sampled(model.denoiser(), noise, text, schedule=model.schedule(2))
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)


def test_what_a_pipeline_says_of_its_last_picture_is_as_it_was(sd1) -> None:
    assert "_guidance_scale" not in vars(sd1)
    with victim(sd1) as model:
        model.draw(CASES[:1])
        assert not sd1.do_classifier_free_guidance
        with model.guided(2.0):
            assert sd1.do_classifier_free_guidance
        with pytest.raises(ValueError, match="negative_prompt"):
            model.draw(CASES, conditions=torch.zeros(2, 7, 32))  # the pipeline refuses it
        assert not sd1.do_classifier_free_guidance
    assert "_guidance_scale" not in vars(sd1)
    sd1._guidance_scale = 7.5
    with pytest.raises(RuntimeError), victim(sd1) as model:
        assert not sd1.do_classifier_free_guidance
        raise RuntimeError
    assert sd1._guidance_scale == 7.5
