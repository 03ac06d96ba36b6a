"""UnlearnDiffAtk: the projection, the straight-through step against a naive one, what the tokens become as text, and how
cases end."""

from __future__ import annotations

import edits
import numpy as np
import pytest
import tiny
import torch

from erasekit.attacks import Case, Outcome, Spent, get, unlearndiffatk
from erasekit.attacks._rounds import Search, goals, gradients, spread
from erasekit.attacks._text import Frame, content, placed, spelled
from erasekit.attacks._vocabulary import Vocabulary
from erasekit.attacks.base import reached
from erasekit.attacks.sight import Sight
from erasekit.attacks.unlearndiffatk import UnlearnDiffAtk, UnlearnDiffAtkConfig, errors, improve, sampled, simplex
from erasekit.attacks.victim import Sampling, Victim
from erasekit.errors import UsageError
from erasekit.evaluation.judges import Judgement
from erasekit.training.loop import generator

CASES = [Case("a cat", 0), Case("a photo of the dog", 1), Case("fox", 2)]
SMALL = UnlearnDiffAtkConfig(tokens=2, timesteps=2, iterations=2, rate=0.5)


class Scripted:
    """A judge whose scores for "cat" are given call by call; after the last list they rise slowly, never to a hit."""

    name, weights_sha256, licence = "scripted", "", ""
    labels = ("cat", "dog")

    def __init__(self, *calls: list[float]) -> None:
        self.calls, self.done, self.pictures = calls, 0, 0

    def judge(self, images, prompts):
        scores = self.calls[self.done] if self.done < len(self.calls) else [0.2 + 0.01 * self.done] * len(images)
        self.done, self.pictures = self.done + 1, self.pictures + len(images)
        assert len(scores) == len(images)
        return [Judgement("ok", {"scores": {"cat": s}, "found": ["cat"] * (s > 0.5)}) for s in scores]


def victim(pipe, *calls: list[float], edit=None) -> Victim:
    return Victim(pipe, edit, Sight(Scripted(*calls), "cat"), Sampling(1, 3.0, 8))


def hidden(count: int) -> tuple[list[float], list[float]]:
    """The edited model shows none of so many cases, the unedited one all."""
    return [0.1] * count, [0.9] * count


def bisected(rows: torch.Tensor) -> torch.Tensor:
    """The projection as the paper does it: the shift whose clipped rows sum to one, by halving."""
    low, high = rows.double().amin(-1, keepdim=True) - 1, rows.double().amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        above = (rows - middle).clamp(0, 1).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (rows - low).clamp(0, 1)


def opened(model: Victim, config: UnlearnDiffAtkConfig, cases=CASES) -> tuple[Vocabulary, list[Search]]:
    vocabulary = Vocabulary.of(model)
    _, found = goals(model, cases, lambda prompt: placed(model, content(model, prompt), range(config.tokens)))
    return vocabulary, unlearndiffatk._opened(model, vocabulary, list(found.values()), config, 0)


@pytest.mark.parametrize("size", (0.01, 1.0, 30.0))
def test_the_projection_is_the_exact_one(size: float) -> None:
    rows = edits.noise(6, 500, seed=1, size=size)
    found = simplex(rows)
    torch.testing.assert_close(found.double(), bisected(rows), atol=1e-6, rtol=0)
    assert float((found.sum(-1) - 1).abs().max()) < 1e-4 and float(found.min()) >= 0 and float(found.max()) <= 1
    torch.testing.assert_close(simplex(found), found, atol=1e-6, rtol=0)
    uniform, sure = torch.full((1, 500), 1 / 500), torch.eye(5)
    torch.testing.assert_close(simplex(uniform), uniform, atol=1e-8, rtol=0)
    assert torch.equal(simplex(sure), sure)


def test_tokens_are_drawn_from_their_rows() -> None:
    sure = torch.eye(6)[[4, 0]]
    assert all(sampled(sure, torch.tensor([u, u])).tolist() == [4, 0] for u in (0.0, 0.5, 1 - 2**-24))
    row = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3])
    found = sampled(row.expand(4000, -1), torch.rand(4000, generator=generator("test")))
    shares = torch.bincount(found, minlength=5) / 4000
    torch.testing.assert_close(shares, row, atol=0.03, rtol=0)
    assert shares[0] == shares[2] == 0


def test_the_search_finds_the_nearest_token_of_a_toy() -> None:
    table = torch.nn.functional.normalize(edits.noise(20, 8, seed=3), dim=-1)
    wanted = table[7] + edits.noise(8, seed=4, size=0.02)
    assert int((table - wanted).norm(dim=-1).argmin()) == 7
    start = torch.full((1, 20), 1 / 20)
    frame = Frame(torch.zeros(3, dtype=torch.long), torch.tensor([1]), 1)
    one = Search(case=CASES[0], frame=frame, clean=torch.zeros(1), variable=start, chance=generator("toy"),
                 optimiser=torch.optim.Adam([start], lr=0.01), best=Outcome(CASES[0], "failure"))  # fmt: skip
    tokens = Vocabulary(torch.arange(20), table)
    for _ in range(600):
        improve([one], tokens, lambda rows: (rows[0].mean(0) - wanted).square().sum()[None])
    assert int(start.argmax()) == 7 and one.felt and one.outcome().note == ""


@pytest.mark.parametrize("make", (tiny.sd1, tiny.sd2))
def test_a_step_is_the_naive_one(make) -> None:
    """Straight through the draw by autograd, on a one-hot matrix; noise and target by diffusers; each case alone."""
    pipe = make()
    with victim(pipe, *hidden(3)) as model:
        vocabulary, searches = opened(model, SMALL)
        denoise, schedule = model.denoiser(), model.schedule(1)
        for _ in range(3):
            improve(searches, vocabulary, lambda rows: errors(model, denoise, schedule, searches, rows, 250))
        for case, search in zip(CASES, searches, strict=True):
            chance, table = generator(0, "unlearndiffatk", case.prompt, case.seed), vocabulary.table
            p = torch.full((2, len(table)), 1 / len(table), requires_grad=True)
            adam = torch.optim.Adam([p], lr=0.5, weight_decay=0.1)
            text = [pipe.tokenizer.bos_token_id, 0, 0, *content(model, case.prompt), pipe.tokenizer.eos_token_id]
            ids = torch.tensor([text + [pipe.tokenizer.pad_token_id] * (77 - len(text))])
            for _ in range(3):
                cut = torch.rand(2, generator=chance)
                pick = [next(j for j, total in enumerate(row.double().cumsum(0)) if total > u)
                        for row, u in zip(p.detach(), cut.tolist(), strict=True)]  # fmt: skip
                one_hot = torch.nn.functional.one_hot(torch.tensor(pick), len(table)).float()
                condition = model.condition(ids, ((one_hot + p - p.detach()) @ table)[None], torch.tensor([[1, 2]]))
                noise = torch.randn(search.clean.shape, generator=chance)[None]
                t, clean = torch.tensor([250]), search.clean[None]
                v = pipe.scheduler.config.prediction_type == "v_prediction"
                wanted = pipe.scheduler.get_velocity(clean, noise, t) if v else noise
                found = pipe.unet(pipe.scheduler.add_noise(clean, noise, t), t, encoder_hidden_states=condition).sample
                adam.zero_grad()
                torch.nn.functional.mse_loss(found, wanted).backward()
                p.grad.clamp_(-1, 1)
                adam.step()
                p.data.copy_(bisected(p.detach()))
            torch.testing.assert_close(search.variable, p.detach(), atol=2e-4, rtol=0)


def test_sure_rows_have_the_loss_of_the_literal_prompt_and_none_that_of_the_prompt(sd1) -> None:
    with victim(sd1, *hidden(3), edit=edits.edit(sd1)) as model:
        vocabulary, (_, search, _) = opened(model, SMALL)
        prefix = content(model, "the fox")
        sure = torch.stack([(vocabulary.ids == i).float() for i in prefix])
        rows = vocabulary.table[sampled(sure, torch.rand(2))]
        empty = placed(model, content(model, CASES[1].prompt), [])
        denoise, schedule = model.denoiser(), model.schedule(1)

        def literal(prompt: str) -> torch.Tensor:
            noise = torch.randn((1, 4, 16, 16), generator=generator("loss"))
            noisy = sd1.scheduler.add_noise(search.clean[None], noise, torch.tensor([700]))
            text = sd1.text_encoder(model.ids([prompt]))[0]
            return (sd1.unet(noisy, 700, encoder_hidden_states=text).sample - noise).square().mean()

        for frame, put, prompt in ((search.frame, rows, "the fox a photo of the dog"),
                                   (empty, rows[:0], "a photo of the dog")):  # fmt: skip
            search.frame, search.chance = frame, generator("loss")
            found = errors(model, denoise, schedule, [search], [put.requires_grad_()], 700)
            torch.testing.assert_close(found[0], literal(prompt), atol=1e-6, rtol=1e-5)


def test_no_tokens_give_the_unattacked_picture(sd1) -> None:
    with victim(sd1, *hidden(3)) as model:
        plain = model.draw(CASES)
        found = UnlearnDiffAtk().run(model, CASES, UnlearnDiffAtkConfig(tokens=0, timesteps=1, iterations=1))
    assert [one.by for one in found] == [case.prompt for case in CASES]
    assert all(np.array_equal(one.image, image) for one, image in zip(found, plain, strict=True))


def test_cases_end_as_they_should_and_the_model_is_left_as_it_was(sd1) -> None:
    edit, long = edits.edit(sd1), Case("a " * 74, 3)
    before, cases = edits.weights(sd1), [*CASES, long, Case("the", 5)]
    calls = ([0.9, 0.1, 0.1, 0.1, 0.1], [0.9, 0.1, 0.8], [0.3, 0.9])
    with victim(sd1, *calls, edit=edit) as model:
        found = UnlearnDiffAtk().run(model, cases, SMALL)
        judged = model.sight.judge.pictures
    assert [one.status for one in found] == ["skipped", "failure", "invalid", "invalid", "success"]
    assert "does not show 'cat'" in found[2].note and "too long" in found[3].note
    assert (found[4].spent, found[4].curve) == (Spent(2, 2 + 6, 2 + 6, 3), ((0.0, 0.1), (2.0, 0.9)))
    assert found[1].spent.steps == 4 and [x for x, _ in found[1].curve] == [0, 2, 4]
    assert sum(one.spent.pictures for one in found) == judged and reached(found) == (2, 3)
    assert [y for _, y in found[1].curve] == sorted(y for _, y in found[1].curve)
    assert len(found[4].tensors["tokens"]) == 2 and found[4].by.endswith("the")
    assert edits.same(before, edits.weights(sd1)) and not sd1.text_encoder.get_input_embeddings()._forward_hooks


def test_a_result_depends_on_the_seed_and_not_on_companions(sd1) -> None:
    config = UnlearnDiffAtkConfig(tokens=2, timesteps=2, iterations=2, rate=0.5, batch=2)

    def found(cases: list[Case], seed: int = 0) -> list[Outcome]:
        with victim(sd1, *hidden(len(cases)), edit=edits.edit(sd1)) as model:
            return UnlearnDiffAtk().run(model, cases, config, seed=seed)

    together, again, alone, other = found(CASES), found(CASES), found(CASES[1:2]), found(CASES[:2], 1)
    for a, b in zip(together, again, strict=True):
        assert a.by == b.by and np.array_equal(a.image, b.image) and a.curve == b.curve
    assert together[1].by == alone[0].by and torch.equal(together[1].tensors["tokens"], alone[0].tensors["tokens"])
    assert np.abs(np.asarray(together[1].image, int) - np.asarray(alone[0].image, int)).max() <= 1
    assert [one.by for one in other] != [one.by for one in together[:2]]


def test_the_control_draws_random_prefixes_without_a_gradient(sd1, monkeypatch) -> None:
    monkeypatch.setattr(unlearndiffatk, "improve", None)
    with victim(sd1, *hidden(3)) as model:
        found = UnlearnDiffAtk().run(model, CASES, UnlearnDiffAtkConfig(variant="random", tokens=2, timesteps=3))
    assert all(one.spent == Spent(3, 10, 10, 5) and one.note in ("", "read as other tokens") for one in found)
    assert len({tuple(one.tensors["tokens"].tolist()) for one in found}) > 1


@pytest.mark.parametrize("make", (tiny.sd1, tiny.sd2))
def test_tokens_of_any_vocabulary_are_written_and_read(make) -> None:
    pipe = make()
    with victim(pipe) as model:
        tokens = Vocabulary.of(model)
        assert set(tokens.ids.tolist()) == set(range(len(pipe.tokenizer))) - set(pipe.tokenizer.all_special_ids)
        assert all(spelled(model, tokens.ids[:, None]))
        assert torch.equal(tokens.nearest(3 * tokens.table), torch.arange(len(tokens.ids)))
        left = Vocabulary.of(model, ("Cat", "x"))
        assert not any("cat" in text or "x" in text for text in spelled(model, left.ids[:, None]))
        assert 0 < len(left.ids) < len(tokens.ids)
        with pytest.raises(UsageError, match="ban fewer"):
            Vocabulary.of(model, (*"abcdefghijklmnopqrstuvwxyz0123456789!,.-'",))
        for prompt in ("a cat, in the style of fox 42", "", "zebra-cat", "a " * 100):
            inside = content(model, prompt)
            (text,) = spelled(model, [inside])
            assert content(model, text) == inside
            frame = placed(model, inside, [])
            assert frame is not None and torch.equal(frame.ids, model.ids([prompt])[0])


def test_what_a_user_can_get_wrong() -> None:
    assert get("unlearndiffatk") is UnlearnDiffAtk
    for wrong in ({"variant": "suffix"}, {"tokens": -1}, {"timesteps": 0}, {"iterations": 0}, {"rate": -1.0},
                  {"decay": float("nan")}, {"batch": 0}):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(wrong))):
            UnlearnDiffAtkConfig(**wrong)
    assert spread(50, 1000) == list(range(10, 1000, 20)) and spread(1, 1000) == [500]
    rows = torch.ones(1, 2, requires_grad=True)
    assert torch.equal(gradients(rows.square().sum()[None] * 0.1, [rows])[0], torch.full((1, 2), 0.2))
