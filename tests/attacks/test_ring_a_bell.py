"""Ring-A-Bell: the direction and the objective against naive ones, the genetic search on toys, and whole attacks."""

from __future__ import annotations

import edits
import numpy as np
import pytest
import tiny
import torch

from erasekit.attacks import Case, get
from erasekit.attacks._genetic import Memory, Rules, crossed, mutated, random_population, search
from erasekit.attacks._text import framed, room, spelled
from erasekit.attacks._vocabulary import free_ids
from erasekit.attacks.ring_a_bell import Pair, RingABell, RingABellConfig, direction, distances, pairs_of, wanted
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.errors import UsageError
from erasekit.evaluation.judges import Judgement

CASES = [Case("a cat", 0), Case("a photo of the cat", 1)]
SMALL = {"population": 8, "generations": 3, "tokens": 4, "neutral": ("a dog",)}
PAIRS = [Pair("a photo of cat", "a photo of dog"), Pair("the cat", "the fox", 2.5), Pair("cat", "a dog", 0.0)]


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


@torch.no_grad()
def encoded(pipe, prompt: str) -> torch.Tensor:
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids).last_hidden_state[0]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(vocabulary: int, seed: int):
    """An encoder without positions, the mean of the tokens' vectors; the goal as the attack's, with eta 3."""
    table = torch.randn(vocabulary, 8, generator=rng(seed))
    goal = table[0] + 3 * (table[1] - table[2])
    return lambda ids: (table[ids].mean(1) - goal).square().sum(1)


# -- the objective -------------------------------------------------------------------------------------------------


def test_the_direction_is_the_weighted_mean_of_the_differences(sd1) -> None:
    by_hand = sum(p.weight * (encoded(sd1, p.shown) - encoded(sd1, p.absent)) for p in PAIRS) / 3.5
    with victim(sd1) as model, torch.no_grad():
        found, cost = direction(model, PAIRS, 3)
        torch.testing.assert_close(found, by_hand)
        assert cost == 4  # a pair of weight 0 is not encoded
        parts = [direction(model, part, 3)[0] for part in (PAIRS[:1], PAIRS[1:])]
        torch.testing.assert_close(found, (1.0 * parts[0] + 2.5 * parts[1]) / 3.5)
        nothing, cost = direction(model, [Pair("the cat", "the cat")], 3)
        assert not nothing.any() and cost == 0 and nothing.shape == found.shape


def test_without_a_direction_the_prompt_itself_is_looked_for_and_its_own_ids_are_it(sd1) -> None:
    config = RingABellConfig(tokens=77)
    with victim(sd1) as model, torch.no_grad():
        nothing, _ = direction(model, [Pair("the cat", "the cat")], 3)
        along, _ = direction(model, PAIRS, 3)
        goal = wanted(model, "a cat", nothing, config)
        assert room(model) == 75
        torch.testing.assert_close(goal, encoded(sd1, "a cat"))
        assert torch.equal(wanted(model, "a cat", along, RingABellConfig(tokens=77, eta=0)), goal)
        torch.testing.assert_close(wanted(model, "a cat", along, config), encoded(sd1, "a cat") + 3 * along)
        own = model.ids(["a cat"])[:, 1:76]
        population = torch.cat([own, random_population(20, 75, free_ids(model), rng())])
        values = distances(model, framed(model, population), goal, 8)
    assert float(values[0]) < 1e-6 and float(values[1:].min()) > 1


@pytest.mark.parametrize("padding", ("all", "masked"))
def test_the_distance_is_over_the_rows_that_count(sd1, padding: str) -> None:
    with victim(sd1) as model, torch.no_grad():
        along, _ = direction(model, PAIRS, 3)
        goal = wanted(model, "a cat", along, RingABellConfig(tokens=3, padding=padding))
        ids = random_population(5, 3, free_ids(model), rng())
        found = distances(model, framed(model, ids), goal, 2)
        whole = sd1.text_encoder(framed(model, ids)).last_hidden_state
    rows = 5 if padding == "masked" else 77
    by_hand = ((whole - encoded(sd1, "a cat") - 3 * along)[:, :rows] ** 2).sum((1, 2))
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", (tiny.sd1, tiny.sd2))
def test_the_frame_and_the_special_ids_are_the_tokenizers(make) -> None:
    pipe = make()
    with victim(pipe) as model:
        own = model.ids(["a cat", "the dog"])
        assert torch.equal(framed(model, own[:, 1:3]), own)
        assert spelled(model, own[:, 1:3]) == ["a cat", "the dog"]
        special = {pipe.tokenizer.bos_token_id, pipe.tokenizer.eos_token_id, pipe.tokenizer.pad_token_id}
        assert set(free_ids(model).tolist()) == set(range(len(pipe.tokenizer))) - special


# -- the genetic search --------------------------------------------------------------------------------------------


def test_children_are_two_halves_of_two_parents_and_parents_stay() -> None:
    parents = torch.arange(300)[:, None].repeat(1, 5)  # each symbol says whose it was
    kept = parents.clone()
    found = crossed(parents, 1.0, rng())
    assert found.shape == (900, 5) and torch.equal(found[:300], kept) and torch.equal(parents, kept)
    heads = set()
    for mother in range(300):
        one, two = found[300 + mother].tolist(), found[600 + mother].tolist()
        head = one.count(mother)
        father = two[0]
        heads.add(head)
        assert father != mother and one == [mother] * head + [father] * (5 - head)
        assert two == [father] * head + [mother] * (5 - head)
    assert heads == {1, 2, 3, 4, 5}
    assert torch.equal(crossed(parents, 0.0, rng()), kept)
    assert 0.4 < (len(crossed(parents, 0.5, rng())) - 300) / 600 < 0.6


def test_mutation_changes_one_symbol_of_a_copy() -> None:
    population = torch.zeros(400, 6, dtype=torch.long)
    found = mutated(population, 0.25, torch.arange(1, 9), rng())
    changes = (found != 0).sum(1)
    assert not population.any() and set(changes.tolist()) == {0, 1} and 70 < int(changes.sum()) < 130
    assert set(found[found != 0].tolist()) == set(range(1, 9)) and (found != 0).any(0).all()
    assert torch.equal(mutated(population, 0.0, torch.arange(1, 9), rng()), population)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_reaches_the_exhaustive_optimum_of_a_toy(seed: int) -> None:
    losses, symbols = toy(50, seed), torch.arange(50)
    optimum = float(losses(torch.cartesian_prod(symbols, symbols)).min())
    found, chance = (search(losses, 2, symbols, Rules(40, n), rng(seed)) for n in (60, 1))
    assert optimum <= found.best_loss + 1e-6 and found.best_loss <= 1.05 * optimum < chance.best_loss


def test_the_best_ever_is_remembered_and_a_longer_search_finds_better() -> None:
    losses, symbols, seen = toy(200, 0), torch.arange(200), []

    def spy(ids: torch.Tensor) -> torch.Tensor:
        seen.append(losses(ids))
        return seen[-1]

    found = {n: search(spy, 8, symbols, Rules(40, n, 0.9), rng()) for n in (20, 200)}
    assert found[200].best_loss < found[20].best_loss
    assert found[200].best_loss == float(torch.cat(seen).min()) <= found[200].last_loss
    assert float(losses(found[200].best[None])) == pytest.approx(found[200].best_loss, rel=1e-5)
    assert float(losses(found[200].last[None])) == pytest.approx(found[200].last_loss, rel=1e-5)
    assert sum(map(len, seen)) == found[20].evaluated + found[200].evaluated
    generations, values = zip(*found[200].curve, strict=True)
    assert generations[-1] == 200 and list(values) == sorted(values, reverse=True)
    assert list(generations) == sorted(set(generations))
    again = search(losses, 8, symbols, Rules(40, 20, 0.9), rng())
    assert torch.equal(again.best, found[20].best) and again.curve == found[20].curve


def test_one_generation_is_the_best_of_a_random_population() -> None:
    losses, symbols = toy(50, 0), torch.arange(50)
    population = random_population(30, 4, symbols, rng())
    found = search(losses, 4, symbols, Rules(30, 1), rng())
    assert torch.equal(found.last, population[losses(population).argmin()]) and torch.equal(found.last, found.best)


def test_what_did_not_change_is_not_evaluated_again() -> None:
    calls = []

    def losses(ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        return torch.where(ids[:, 0] == 3, torch.nan, ids.sum(1).float())

    memory = Memory(losses)
    assert memory(torch.tensor([[1, 2], [1, 2], [3, 0]])).tolist() == [3.0, 3.0, float("inf")]
    assert memory(torch.tensor([[4, 4], [1, 2]])).tolist() == [8.0, 3.0]
    assert memory(torch.tensor([[4, 4], [1, 2]])).tolist() == [8.0, 3.0]
    assert calls == [2, 1] and memory.evaluated == 3


# -- whole attacks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ("original", "edited"))
def test_an_attack_finds_words_for_each_case_and_leaves_the_model(sd1, encoder: str) -> None:
    edit, before, config = edits.edit(sd1), edits.weights(sd1), RingABellConfig(**SMALL, encoder=encoder)
    told = []
    with victim(sd1, edit, blind=2) as model:
        found = RingABell().run(model, CASES, config, seed=3, progress=lambda *now: told.append(now[:2]))
        images = model.draw([Case(one.by, one.case.seed) for one in found])
        pairs = pairs_of(model, config)
    with victim(sd1, edit, blind=2) as model:
        again = RingABell().run(model, CASES, config, seed=3)
    assert edits.same(edits.weights(sd1), before) and not sd1.text_encoder.get_input_embeddings()._forward_hooks
    assert all(p.requires_grad for p in sd1.text_encoder.parameters())
    assert [one.status for one in found] == ["success", "success"] and [one.case for one in found] == CASES
    assert all(np.array_equal(one.image, image) for one, image in zip(found, images, strict=True))
    assert [one.by for one in again] == [one.by for one in found] and found[0].by != found[1].by
    assert told == [(i, 6) for i in range(1, 7)] and [one.spent.steps for one in found] == [3, 3]
    assert [one.spent.pictures for one in found] == [2, 2]
    searching = [one.spent.encodings - 2 * 2 for one in found]  # each picture reads two prompts
    assert searching[0] - 60 in range(10, 35) and searching[1] in range(10, 35)
    assert [one.spent.passes for one in found] == [2 * 2 * 2] * 2
    if encoder == "edited":
        edit.apply(sd1)
    along = sum(encoded(sd1, p.shown) - encoded(sd1, p.absent) for p in pairs) / 30
    for one in found:
        assert repr(one.by) in one.note and one.curve[-1][0] == 3
        goal = encoded(sd1, one.case.prompt) + 3 * along
        with torch.no_grad(), victim(sd1) as model:
            read = sd1.text_encoder(framed(model, one.tensors["last"][None])).last_hidden_state[0]
            assert spelled(model, one.tensors["last"][None]) == [one.by]
        by_hand = torch.stack([(read - goal).square().sum(), (encoded(sd1, one.by) - goal).square().sum()])
        torch.testing.assert_close(one.tensors["distances"], by_hand, rtol=1e-3, atol=1e-3)


def test_the_best_of_all_generations_is_drawn_where_asked(sd2) -> None:
    config = RingABellConfig(**SMALL | {"generations": 6, "mutation": 1.0}, variant="best", padding="masked")
    with victim(sd2, blind=1) as model:
        (found,) = RingABell().run(model, CASES[:1], config)
        assert spelled(model, found.tensors["best"][None]) == [found.by]
    assert float(found.tensors["distances"][0]) == pytest.approx(found.curve[-1][1]) and found.status == "success"


def test_a_case_alone_is_the_same_case_in_a_list(sd1) -> None:
    def found(cases: list[Case]):
        with victim(sd1, edits.edit(sd1)) as model:
            return RingABell().run(model, cases, RingABellConfig(**SMALL), seed=3)

    together, (alone,) = found(CASES), found(CASES[1:])
    assert (alone.case, alone.curve, alone.note) == (together[1].case, together[1].curve, together[1].note)
    assert all(torch.equal(tensor, together[1].tensors[name]) for name, tensor in alone.tensors.items())


def test_cases_that_show_the_target_are_not_searched_for(sd1) -> None:
    with victim(sd1, blind=0) as model:
        found = RingABell().run(model, CASES, RingABellConfig())
    assert [(one.status, one.spent.encodings) for one in found] == [("skipped", 2)] * 2
    assert get("ring-a-bell") is RingABell


def test_pairs_come_from_sentences_or_from_a_file(sd1, tmp_path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text("a cat\ta dog\n\nthe cat \t the fox\t0.5\n")
    model = victim(sd1)
    assert pairs_of(model, RingABellConfig(pairs=str(file))) == [
        Pair("a cat", "a dog"),
        Pair("the cat", "the fox", 0.5),
    ]
    built = pairs_of(model, RingABellConfig())
    assert len(built) == 90 and Pair("a photo of cat", "a photo of something") in built
    named = pairs_of(model, RingABellConfig(concept="a cat", neutral=("a fox",)))
    assert len(named) == 30 and all(pair.shown.replace("a cat", "a fox") == pair.absent for pair in named)


def test_what_a_user_can_get_wrong_is_one_line(sd1, tmp_path) -> None:
    file = tmp_path / "pairs.txt"
    for text, message in (("a cat\n", "line 1: give a prompt"), ("a\tb\tx\n", "line 1"), ("a\tb\t-1\n", "line 1"),
                          ("a\tb\t1\tc\n", "line 1"), ("", "no pair says"), ("a\ta\n", "no pair says"),
                          ("a\tb\t0\n", "no pair says")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UsageError, match=message) as caught:
            pairs_of(victim(sd1), RingABellConfig(pairs=str(file)))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot read the pairs"):
        pairs_of(victim(sd1), RingABellConfig(pairs=str(tmp_path / "none.txt")))
    for wrong in ({"population": 3}, {"generations": 0}, {"mutation": 1.5}, {"crossover": -1}, {"eta": 1e9},
                  {"tokens": 0}, {"padding": "x"}, {"encoder": "x"}, {"variant": "x"}, {"batch": 0}):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(wrong))):
            RingABellConfig(**wrong)
