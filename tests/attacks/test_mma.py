"""MMA's text part: gradient and loss against naive ones, the greedy search on a toy, the ban, and whole attacks."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch
import torch.nn.functional as F

from erasekit.attacks import Case, get
from erasekit.attacks._text import framed, spelled
from erasekit.attacks._vocabulary import letters_of, unnamed, words_of
from erasekit.attacks.mma import MMA, MMAConfig, Text, candidates, search
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.errors import UsageError
from erasekit.evaluation.judges import Judgement

CASES = [Case("a cat", 0), Case("a photo of the cat", 1)]
SMALL = {"tokens": 4, "steps": 6, "candidates": 32, "top": 16}
MAKERS = (tiny.sd1, tiny.sd2)


class Later:
    """A judge that finds "cat" in every picture but the first so many."""

    name, weights_sha256, licence = "later", "", ""
    labels = ("cat", "dog")

    def __init__(self, blind: int) -> None:
        self.blind = blind

    def judge(self, images, prompts):
        self.blind -= len(images)
        return [Judgement("ok", {"scores": {"cat": 0.5}, "found": ["cat"] * (self.blind < 0)}) for _ in images]


def victim(pipe, edit=None, *, blind: int = 10**6) -> Victim:
    return Victim(pipe, edit, Sight(Later(blind), "cat"), Sampling(2, 3.0, 2))


def text_of(model: Victim, forbidden: str, **options) -> Text:
    return Text(model, forbidden, unnamed(model, ["cat"]), MMAConfig(**options))


@torch.no_grad()
def pooled(pipe, prompt: str) -> torch.Tensor:
    """transformers' own pooled output."""
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids).pooler_output[0]


def cosine(pipe, one: str, other: str) -> float:
    return float(F.cosine_similarity(pooled(pipe, one), pooled(pipe, other), dim=0))


def ids_of(pipe, *tokens: str) -> torch.Tensor:
    return torch.tensor(pipe.tokenizer.convert_tokens_to_ids(list(tokens)))


def slope(pipe, row: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """The gradient with respect to the one-hot matrix of a whole prompt that ends at EOS, by a walk of our own."""
    encoder = pipe.text_encoder
    table, places = (encoder.embeddings.token_embedding.weight, encoder.embeddings.position_embedding.weight)
    onehot = F.one_hot(row, len(table)).float().requires_grad_()
    mask = torch.full((len(row), len(row)), float("-inf")).triu(1)[None, None]
    hidden = (onehot @ table + places[: len(row)])[None]
    last = encoder.final_layer_norm(encoder.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state)[0, -1]
    return torch.autograd.grad(1 - F.cosine_similarity(last, goal, dim=0), onehot)[0]


# -- the objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_gradient_and_loss_are_those_of_the_pooled_output(make) -> None:
    pipe = make()
    with victim(pipe) as model:
        mended, released = text_of(model, "a cat"), text_of(model, "a cat", variant="released")
        ids = ids_of(pipe, "x</w>", "dog</w>", "q</w>")
        by_hand = slope(pipe, framed(model, ids[None])[0, :5], pooled(pipe, "a cat"))
        torch.testing.assert_close(mended.gradient(ids), by_hand[1:4], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(released.gradient(ids), by_hand[0:3], rtol=1e-3, atol=1e-6)  # row 0 is BOS's
        several = torch.stack([ids, ids.flip(0)])
        wanted = [1 - cosine(pipe, text, "a cat") for text in ("x dog q", "q dog x")]
        with torch.no_grad():
            assert mended.losses(several).tolist() == pytest.approx(wanted, abs=1e-5)
        assert mended.encodings == 4  # the goal, the gradient, two losses


def test_at_the_forbidden_prompt_loss_and_gradient_are_zero(sd1) -> None:
    with victim(sd1) as model:
        text = text_of(model, "the dog")
        there, elsewhere = ids_of(sd1, "the</w>", "dog</w>"), ids_of(sd1, "x</w>", "y</w>")
        assert float(text.losses(there[None])) == pytest.approx(0, abs=1e-6)
        assert float(text.gradient(there).abs().max()) < 1e-3 * float(text.gradient(elsewhere).abs().max())


def test_only_what_the_tokenizer_reads_back_is_kept(sd1) -> None:
    rows = [
        ("x</w>", "y</w>"),
        ("ca", "t</w>"),
        ("cat</w>", "x</w>"),
        ("a</w>", "dog</w>"),
        ("do", "g</w>"),
        ("x", "y"),
    ]
    ids = torch.stack([ids_of(sd1, *row) for row in rows])
    with victim(sd1) as model:
        text = text_of(model, "a cat")
        kept = text.readable(ids)
        assert spelled(model, kept) == ["x y", "a dog", "xy"]  # the last as other ids than it was offered with
        assert torch.equal(model.ids(spelled(model, kept))[:, 1:3], kept)
        long = text.readable(
            torch.cat([ids[0], ids[1]])[None]
        )  # "x y ca t", of which the tokenizer makes a banned word
        assert long.shape == (0, 4)


# -- the search ----------------------------------------------------------------------------------------------------


class Linear:
    """A toy whose loss is linear in the one-hot rows: what each position's tokens add."""

    def __init__(self, vocabulary: int, positions: int) -> None:
        self.adds = torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(0))
        self.allowed, self.path = torch.ones(vocabulary, dtype=torch.bool), []

    def gradient(self, ids):
        self.path.append(ids)
        return self.adds

    def losses(self, ids):
        return self.adds.gather(1, ids.T).sum(0)

    def readable(self, ids):
        return ids


def test_the_search_reaches_the_exhaustive_optimum_of_a_linear_toy_and_always_moves() -> None:
    toy, config = Linear(100, 3), MMAConfig(tokens=3, steps=40)
    one, two, three = toy.adds
    optimum = float((one[:, None, None] + two[None, :, None] + three).min())
    told = []
    best, curve = search(toy, torch.zeros(3, dtype=torch.long), config, torch.Generator().manual_seed(0), told.append)
    assert float(toy.losses(best[None])) == pytest.approx(optimum, abs=1e-6)
    assert 1 - curve[-1][1] == pytest.approx(optimum, abs=1e-6) and curve[-1][0] == 40 and told == [*range(1, 41)]
    assert [value for _, value in curve] == sorted(value for _, value in curve)
    moves = [int((a != b).sum()) for a, b in zip(toy.path, toy.path[1:], strict=False)]
    assert moves == [1] * 39  # one token each time, and never none
    losses = toy.losses(torch.stack(toy.path)).diff()
    assert (losses > 0).any()  # also away from the best


def test_candidates_change_each_position_in_turn_to_tokens_of_small_gradient() -> None:
    gradient = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(30, dtype=torch.bool)
    allowed[gradient.argmin(1)] = False
    current = torch.full((4,), 29)
    allowed[29] = False
    found = candidates(gradient, current, allowed, MMAConfig(candidates=200, top=3), torch.Generator().manual_seed(0))
    changed = found != current
    assert (changed.sum(1) == 1).all() and changed.sum(0).tolist() == [50] * 4
    for position in range(4):
        order = [i for i in gradient[position].argsort().tolist() if allowed[i]][:3]
        assert set(found[changed[:, position], position].tolist()) == set(order)


# -- the ban -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_words_their_pieces_and_special_ids_are_banned(make) -> None:
    pipe = make()
    with victim(pipe) as model:
        allowed = unnamed(model, ["Cat", "a wolf"])
        gone = ids_of(pipe, "cat</w>", "a</w>", "w", "w</w>", "o", "l", "f</w>", "<|startoftext|>", "<|endoftext|>")
        assert not allowed[gone].any() and not allowed[pipe.tokenizer.pad_token_id]
        assert allowed[ids_of(pipe, "ca", "fox</w>", "dog</w>", "photo</w>", "t</w>")].all()
        assert not unnamed(model, ["pho"])[ids_of(pipe, "photo</w>", "phot", "pho")].any()  # pieces of three letters
        letters = letters_of(model, allowed)
        assert len(letters) == 26 - len(set("awolf")) and allowed[letters].all()
        assert words_of(["Van Gogh", "gogh's"]) == ["van", "gogh", "s"]


# -- whole attacks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ("original", "edited"))
def test_an_attack_finds_other_words_for_each_case_and_leaves_the_model(sd1, encoder: str) -> None:
    edit, before, config = edits.edit(sd1), edits.weights(sd1), MMAConfig(**SMALL, encoder=encoder)
    told, runs = [], []
    for _ in range(2):
        with victim(sd1, edit, blind=2) as model:
            runs.append(MMA().run(model, CASES, config, seed=3, progress=lambda *now: told.append(now[:2])))
    assert edits.same(edits.weights(sd1), before) and not sd1.text_encoder.get_input_embeddings()._forward_hooks
    assert all(p.requires_grad and p.grad is None for p in sd1.text_encoder.parameters())
    found = runs[0]
    assert [one.by for one in runs[1]] == [one.by for one in found] and told == [(i, 12) for i in range(1, 13)] * 2
    assert [one.status for one in found] == ["success"] * 2 and [one.case for one in found] == CASES
    if encoder == "edited":
        edit.apply(sd1)
    for one in found:
        assert "cat" not in one.by and repr(one.by) in one.note
        assert one.curve[-1][1] == pytest.approx(cosine(sd1, one.by, one.case.prompt), abs=1e-4)
        assert one.curve[0][0] == 0 and one.curve[-1][0] == 6 and one.curve[-1][1] > one.curve[0][1]  # the control
        ids = sd1.tokenizer(one.by, add_special_tokens=False).input_ids
        assert ids == one.tensors["ids"].tolist() and len(ids) == 4
        assert (one.spent.steps, one.spent.passes, one.spent.pictures) == (6, 2 * 2 * 2, 2)
        assert 8 < one.spent.encodings - 2 * 2 <= 8 + 6 * 32


def test_variants_the_control_and_a_common_forbidden_prompt(sd2) -> None:
    found = {}
    for name, options in {"paper": {}, "released": {"variant": "released"}, "none": {"steps": 0},
                          "common": {"forbidden": "a fox"}}.items():  # fmt: skip
        with victim(sd2) as model:
            (found[name],) = MMA().run(model, CASES[:1], MMAConfig(**SMALL | options))
    assert {one.status for one in found.values()} == {"failure"}
    assert len({tuple(one.tensors["ids"].tolist()) for one in found.values()}) == 4
    assert len(found["none"].curve) == 1 and all(len(word) == 1 for word in decoded_words(sd2, found["none"]))
    prompt = sd2.tokenizer.decode(found["common"].tensors["ids"].tolist())
    assert found["common"].curve[-1][1] == pytest.approx(cosine(sd2, prompt, "a fox"), abs=1e-4)


def decoded_words(pipe, outcome) -> list[str]:
    return pipe.tokenizer.decode(outcome.tensors["ids"].tolist()).split()


def test_a_case_alone_is_the_same_case_in_a_list(sd1) -> None:
    def found(cases: list[Case]):
        with victim(sd1, edits.edit(sd1)) as model:
            return MMA().run(model, cases, MMAConfig(**SMALL), seed=3)

    together, (alone,) = found(CASES), found(CASES[1:])
    assert (alone.case, alone.curve, alone.note) == (together[1].case, together[1].curve, together[1].note)
    assert all(torch.equal(tensor, together[1].tensors[name]) for name, tensor in alone.tensors.items())


def test_cases_that_show_the_target_are_not_searched_for(sd1) -> None:
    with victim(sd1, blind=0) as model:
        found = MMA().run(model, CASES, MMAConfig())
    assert [(one.status, one.spent.encodings) for one in found] == [("skipped", 2)] * 2
    assert get("mma") is MMA


def test_what_a_user_can_get_wrong_is_one_line(sd1) -> None:
    with victim(sd1) as model, pytest.raises(UsageError, match="leaves no letter to start from: ban fewer words"):
        MMA().run(model, CASES, MMAConfig(ban=tuple("abcdefghijklmnopqrstuvwxyz")))
    for wrong in ({"tokens": 0}, {"steps": -1}, {"candidates": 0}, {"top": 0}, {"batch": 0}, {"encoder": "x"},
                  {"variant": "x"}):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(wrong))):
            MMAConfig(**wrong)
