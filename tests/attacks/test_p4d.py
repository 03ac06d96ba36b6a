"""Prompting4Debugging: the objective against a naive one, where the free tokens stand, and how cases end."""

from __future__ import annotations

import edits
import numpy as np
import pytest
import tiny
import torch
from test_unlearndiffatk import CASES, hidden, victim

from erasekit.attacks import Case, Outcome, Spent, get, p4d
from erasekit.attacks._rounds import goals, spread
from erasekit.attacks._text import content, placed, spelled
from erasekit.attacks._vocabulary import Vocabulary
from erasekit.attacks.p4d import P4D, P4DConfig, distances, frame, places
from erasekit.attacks.victim import Victim
from erasekit.errors import UsageError
from erasekit.training.loop import generator

SMALL = {"timesteps": 2, "iterations": 2}
VARIANTS = ("K", "N", "prefix")


def opened(model: Victim, config: P4DConfig, cases=CASES, place=None):
    vocabulary = Vocabulary.of(model)
    _, found = goals(model, cases, place or (lambda prompt: frame(model, prompt, config)))
    return vocabulary, p4d._opened(model, vocabulary, list(found.values()), config, 0)


@pytest.mark.parametrize("make", (tiny.sd1, tiny.sd2))
def test_the_loss_is_zero_where_both_sides_and_prompts_are_one(make) -> None:
    with victim(make(), *hidden(3)) as model:
        _, group = opened(model, P4DConfig("N", tokens=1).settled(), place=lambda prompt: placed(
            model, [], range(len(content(model, prompt)))))  # fmt: skip
        rows = [model.table[torch.tensor(content(model, case.prompt))].float().requires_grad_() for case in CASES]
        for t in (0, 500, 999):
            found = distances(model, model.denoiser(), model.schedule(1), group, rows, [t, t, 999 - t])
            assert float(found.detach().max()) < 1e-10


@pytest.mark.parametrize("make", (tiny.sd1, tiny.sd2))
def test_the_loss_is_that_of_two_models_side_by_side(make) -> None:
    """The edited model from `edit.applied`, the prompts as literal ids, noise by diffusers."""
    pipe, times = make(), [10, 500, 990]
    edit = edits.edit(pipe, family=make.__name__)
    with victim(pipe, *hidden(3), edit=edit) as model:
        vocabulary, group = opened(model, P4DConfig("prefix", tokens=2).settled())
        for one in group:
            one.chance = generator("loss", one.case.seed)
        put = [vocabulary.nearest(one.variable) for one in group]
        rows = [vocabulary.table[p] for p in put]
        found = distances(model, model.denoiser(), model.schedule(1), group, rows, times)
        prompts = [one.frame.ids.index_copy(0, one.frame.at, vocabulary.ids[p])
                   for one, p in zip(group, put, strict=True)]  # fmt: skip
        plain = model.ids([case.prompt for case in CASES])

    def predicted(ids: torch.Tensor, noisy: torch.Tensor, t: int) -> torch.Tensor:
        with torch.no_grad():
            return pipe.unet(noisy, t, encoder_hidden_states=pipe.text_encoder(ids[None])[0]).sample

    for i, (one, t) in enumerate(zip(group, times, strict=True)):
        noise = torch.randn(one.clean.shape, generator=generator("loss", one.case.seed))
        noisy = pipe.scheduler.add_noise(one.clean[None], noise[None], torch.tensor([t]))
        wanted = predicted(plain[i], noisy, t)
        with edit.applied(pipe):
            naive = (predicted(prompts[i], noisy, t) - wanted).square().mean()
        assert float(naive) > 0
        torch.testing.assert_close(found[i], naive, atol=1e-7, rtol=1e-3)


def test_a_step_is_the_naive_projected_gradient(sd1) -> None:
    config = P4DConfig("K", **SMALL).settled()
    with victim(sd1, *hidden(3), edit=edits.edit(sd1)) as model:
        vocabulary, group = opened(model, config)
        starts = [one.variable.clone() for one in group]
        for one in group:
            one.chance = generator("step", one.case.seed)
        for t in (100, 600, 900):
            p4d.improve(model, vocabulary, model.denoiser(), model.schedule(1), group, [t] * 3)
        for one, start, case in zip(group, starts, CASES, strict=True):
            chance, table = generator("step", case.seed), vocabulary.table
            adam = torch.optim.AdamW([start.requires_grad_()], lr=0.1, weight_decay=0.1)
            for t in (100, 600, 900):
                cosine = torch.nn.functional.cosine_similarity(start.detach()[:, None], table[None], dim=-1)
                row = table[cosine.argmax(-1)].clone().requires_grad_()
                noise = torch.randn(one.clean.shape, generator=chance)
                noisy = sd1.scheduler.add_noise(one.clean[None], noise[None], torch.tensor([t]))
                with model.original(), torch.no_grad():
                    text = sd1.text_encoder(model.ids([case.prompt]))[0]
                    wanted = sd1.unet(noisy, t, encoder_hidden_states=text).sample
                text = model.condition(one.frame.ids[None], row[None], one.frame.at[None])
                loss = torch.nn.functional.mse_loss(sd1.unet(noisy, t, encoder_hidden_states=text).sample, wanted)
                (start.grad,) = torch.autograd.grad(loss, row)
                adam.step()
            # loose: Adam divides by the gradient's own size, however small
            torch.testing.assert_close(one.variable, start.detach(), atol=5e-3, rtol=0)


def test_free_tokens_stand_where_the_paper_puts_them(sd1) -> None:
    config = P4DConfig("K")
    for length in range(12):
        at = list(places(length, config))
        assert at == [4 * i for i in range(length // 3 + 1)]
    with victim(sd1) as model:
        prompt = "a photo of the fox and the dog"
        own, put = content(model, prompt), frame(model, prompt, config)
        assert put is not None and (len(own), put.size) == (8, 11)
        tokens = torch.tensor([content(model, "cat")[0]] * 3)
        whole = put.content(tokens)
        assert [whole[i] for i in range(11) if i not in (0, 4, 8)] == own and whole[::4] == tokens.tolist()
        assert spelled(model, [whole]) == ["cat a photo of cat the fox and cat the dog"]
        bare = frame(model, prompt, P4DConfig("N").settled())
        assert bare is not None and bare.size == 16 and bare.at.tolist() == list(range(1, 17))
        assert bare.ids[17:].tolist() == [sd1.tokenizer.eos_token_id] + [sd1.tokenizer.pad_token_id] * 59
        released = frame(model, prompt, P4DConfig("N", released=True).settled())
        assert released is not None and released.ids[18:].tolist() == [0] * 59
        before = frame(model, prompt, P4DConfig("prefix").settled())
        assert before is not None and before.content(tokens.new_zeros(5))[5:] == own
        assert frame(model, "a " * 60, config) is None
        table = Vocabulary.of(model)
        points = edits.noise(40, 32, seed=2)
        found = table.nearest(points)
        naive = torch.nn.functional.cosine_similarity(points[:, None], table.table[None], dim=-1).argmax(-1)
        assert torch.equal(found, naive) and torch.equal(table.nearest(table.table[found]), found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cases_end_as_they_should_whatever_their_companions(sd1, variant: str) -> None:
    edit, before = edits.edit(sd1), edits.weights(sd1)
    config = P4DConfig(variant, batch=2, **SMALL)

    def found(cases: list[Case], *calls: list[float], seed: int = 0) -> list[Outcome]:
        with victim(sd1, *(calls or hidden(len(cases))), edit=edit) as model:
            return P4D().run(model, cases, config, seed=seed)

    together, alone = found(CASES), found(CASES[1:2])
    again, other = (found(CASES), found(CASES[:2], seed=1)) if variant == "K" else (together, [])  # once is enough
    for a, b in zip(together, again, strict=True):
        assert a.by == b.by and np.array_equal(a.image, b.image) and a.curve == b.curve and a.status == "failure"
        assert a.spent.pictures in (3, 4)  # one step and two passes each, and two prompts
        assert a.spent == Spent(4, 8, 5) + Spent(0, 2, 2, 1) * a.spent.pictures
    assert together[1].by == alone[0].by and torch.equal(together[1].tensors["tokens"], alone[0].tensors["tokens"])
    assert np.abs(np.asarray(together[1].image, int) - np.asarray(alone[0].image, int)).max() <= 1
    assert [one.by for one in other] != [one.by for one in together[:2]]
    ended = found(CASES, [0.9, 0.1, 0.1], [0.1, 0.9], [0.9])
    assert [one.status for one in ended] == ["skipped", "invalid", "success"]
    assert ended[2].spent == Spent(2, 4 + 6, 3 + 6, 3) and ended[2].curve == ((0.0, 0.1), (2.0, 0.9))
    assert edits.same(before, edits.weights(sd1))


def test_the_control_and_the_quirks_of_the_released_code(sd1, monkeypatch) -> None:
    with victim(sd1, *hidden(3)) as model:
        _, right = opened(model, P4DConfig("N").settled())
    with victim(sd1, *hidden(3)) as model:
        _, quirk = opened(model, P4DConfig("N", released=True).settled())
    assert all(not torch.equal(a.clean, b.clean) for a, b in zip(right, quirk, strict=True))
    monkeypatch.setattr(p4d, "improve", None)
    with victim(sd1, *hidden(3)) as model:
        found = P4D().run(model, CASES, P4DConfig("random", tokens=2, timesteps=3))
    assert all((one.spent.steps, one.spent.passes, one.spent.pictures) == (3, 10, 5) for one in found)


def test_defaults_are_the_papers_and_wrong_values_are_named() -> None:
    assert get("p4d") is P4D
    k, n, prefix = (P4DConfig(variant).settled() for variant in VARIANTS)
    assert k.timesteps * k.iterations == n.timesteps * n.iterations == 3000
    assert (k.tokens, n.tokens, prefix.tokens, prefix.timesteps, prefix.iterations) == (0, 16, 5, 50, 40)
    assert (k.rate, n.rate, prefix.rate, k.decay, k.every) == (0.1, 0.1, 0.01, 0.1, 3)
    assert spread(prefix.timesteps, 1000)[:3] == [10, 30, 50] and P4DConfig("N", tokens=4).settled().tokens == 4
    with pytest.raises(UsageError, match="set every"):
        P4DConfig("K", tokens=3)
    for wrong in ({"variant": "M"}, {"every": 0}, {"iterations": -1}, {"rate": -1.0}, {"batch": 0},
                  {"timesteps": 1001}):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(wrong))):
            P4DConfig(**wrong)
