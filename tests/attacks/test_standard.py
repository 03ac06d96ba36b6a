"""The fixed ladders: what they cost is what the attacks spend; other words; a model that never knew as the edited side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import edits
import numpy as np
import pytest
import tiny
import torch

from erasekit.attacks import ATTACKS, Case, budget, ladder, never_knew, standard
from erasekit.attacks.budget import Cost, total, worst
from erasekit.attacks.ladder import Climbed, Rung
from erasekit.attacks.sight import Seen, Sight
from erasekit.attacks.synonyms import Synonyms, SynonymsConfig, known, prompts
from erasekit.attacks.victim import Sampling, Victim
from erasekit.errors import UsageError
from erasekit.evaluation.judges import Judgement

CASES = [Case("a cat", 0), Case("a photo of the cat", 1)]
HOW = Sampling(1, 3.0, 4)


class Flag:
    """A judge that finds the target in named pictures while `on`, and nowhere else."""

    name, weights_sha256, licence, labels = "flag", "", "", ("cat", "dog")
    on, asked = False, 0

    def judge(self, images, prompts):
        self.asked += len(images)
        hits = [self.on and bool(prompt) for prompt in prompts]
        return [Judgement("ok", {"scores": {"cat": float(hit)}, "found": ["cat"] * hit}) for hit in hits]


class Erased(Victim):
    """What the original draws from a prompt shows the target always, what the edited model makes never."""

    def __init__(self, *given, **options) -> None:
        super().__init__(*given, **options)
        self.inside, self.showing = 0, []

    @contextmanager
    def original(self) -> Iterator[None]:
        self.inside += 1
        with super().original():
            yield
        self.inside -= 1

    def draw(self, cases, **options):
        images = super().draw(cases, **options)
        self.showing += [image for image, case in zip(images, cases, strict=True) if self.inside and case.prompt]
        return images

    def look(self, cases, images):
        return [Seen("ok", any(image is one for one in self.showing), 0.1) for image in images]


def erased(pipe, edit=None) -> Erased:
    return Erased(pipe, edit, Sight(Flag(), "cat"), HOW)


# -- what it costs --------------------------------------------------------------------------------------------------

LEARN = {"steps": 3, "batch": 2, "pictures": 3, "check": (1,), "check_cases": 1}
SEARCH = {"timesteps": 2, "iterations": 2}
SMALL = {
    "prompts": [{"seeds": 3}],
    "synonyms": [{"most": 2}],
    "ring-a-bell": [{"tokens": 2, "population": 4, "generations": 2, "seeds": 2}],
    "mma": [{"tokens": 2, "steps": 1, "candidates": 4}, {"tokens": 2, "steps": 1, "candidates": 4, "seeds": 3}],
    "concept-inversion": [LEARN],
    "textual-inversion": [LEARN],
    "unlearndiffatk": [SEARCH, SEARCH | {"variant": "random"}],
    "p4d": [SEARCH, SEARCH | {"variant": "random"}],
    "latent-inversion": [{"steps": 2, "rounds": 1}, {"steps": 2, "rounds": 1, "prompt": "concept", "guidance": None}],
    "noise": [{"etas": (1.0, 1.5), "factors": (1.0,), "steps": 2}],
    "completion": [{"k": 1, "steps": 3}],
    "inpainting": [{"steps": 3}, {"steps": 2, "seeds": 2}],
    "steering": [{"scales": (25.0, 50.0), "steps": 2, "pictures": 2, "epochs": 1}],
    "subtract": [{}],
    "weight-noise": [{"draws": 2}, {"draws": 1, "control": False}],
    "relearn": [{"steps": 2, "pictures": 2, "at": (1,), "batch": 1},
                {"steps": 1, "pictures": 2, "batch": 1, "prior": 1.0, "prior_pictures": 2}],
}  # fmt: skip


def test_every_attack_has_a_cost_and_a_small_setting() -> None:
    assert set(ATTACKS) == set(budget.COSTS) == set(SMALL)


@pytest.mark.slow
def test_what_is_worked_out_is_what_is_spent(sd1) -> None:
    edit = edits.edit(sd1)
    for attack, settings in SMALL.items():
        for given in settings:
            rung = Rung("x", attack, given)
            with erased(sd1, edit) as victim:
                found = ladder.run(victim, CASES, rung, seed=0)
            ends = "success" if attack == "subtract" else "failure"  # there nothing but the original is left
            assert [one.status for one in found] == [ends] * 2, attack
            cost, spent = worst(rung, len(CASES), HOW), Climbed(rung, tuple(found)).spent
            again = 2 * len(CASES) * 2 if attack in ("unlearndiffatk", "p4d") else 0  # a text is drawn once
            assert 0 <= cost.passes + cost.gradients - spent.passes <= again, (attack, given, cost, spent)


def test_the_text_of_the_standard_ladder_has_its_sums() -> None:
    text, how = standard.__doc__, Sampling(20, 4.0)
    lines = re.findall(r"^    ([a-z0-9 -]+?) +(\d+) +(\d+)  ", text, re.MULTILINE)
    assert [label for label, *_ in lines] == [rung.label for rung in standard.STANDARD.rungs]
    for rung, (_, passes, gradients) in zip(standard.STANDARD.rungs, lines, strict=True):
        assert worst(rung, 20, how) == Cost(int(passes), int(gradients)), rung.label
    whole = total(standard.STANDARD, 20, how)
    assert f"{whole.passes:,} passes and {whole.gradients:,} gradients" in text and f"{whole.weight:,} passes" in text
    assert whole.weight / 40 * 1 < 2.7 * 20 * 60 * 0.9  # in twenty minutes, at 2.7 pictures of 40 passes a second


def test_both_ladders_are_the_same_attacks_and_twins_have_one_budget() -> None:
    short, long = standard.STANDARD.rungs, standard.PAPER.rungs
    assert [(a.label, a.attack, a.counts) for a in short] == [(b.label, b.attack, b.counts) for b in long]
    assert {rung.attack for rung in short} == set(ATTACKS) and standard.STANDARD.digest != standard.PAPER.digest
    by = {rung.label: rung for rung in short}
    assert by["concept inversion"].settings == by["textual inversion"].settings
    assert all(worst(b, 20, Sampling(20, 4.0)).weight >= worst(a, 20, Sampling(20, 4.0)).weight
               for a, b in zip(short, long, strict=True))  # fmt: skip


# -- other words ----------------------------------------------------------------------------------------------------


def test_other_words_come_first_then_other_sentences() -> None:
    sight, config = Sight(Flag(), "cat"), SynonymsConfig(sentences=("there is {a}", "{x}!"))
    assert known("cat") == ("kitten", "feline") and known("nothing") == ()
    found = prompts("a photo of Cat on a wildcat", sight, ("kitten", "ocelot"), config)
    assert found == ["a photo of kitten on a wildcat", "a photo of ocelot on a wildcat", "there is a cat", "cat!",
                     "there is a kitten", "kitten!", "there is an ocelot", "ocelot!"]  # fmt: skip
    assert prompts("there is a cat", sight, (), config) == ["cat!"]  # nothing is asked again
    assert prompts("my pet", sight, ("kitten",), config)[0] == "there is a cat"
    with pytest.raises(UsageError, match="must hold"):
        SynonymsConfig(sentences=("a picture",))


def test_a_case_is_asked_until_it_is_shown(sd1) -> None:
    class Kitten(Flag):
        drawn = ()

    with Victim(sd1, None, Sight(Kitten(), "cat"), HOW) as victim:
        asked: list[tuple[str, int]] = []
        draw = victim.draw

        def noted(cases, **options):
            asked.extend((case.prompt, case.seed) for case in cases)
            victim.sight.judge.on = all("dog" in case.prompt for case in cases)
            return draw(cases, **options)

        victim.draw = noted
        found = Synonyms().run(victim, CASES, SynonymsConfig(words=("fox", "dog"), most=3))
    assert [one.status for one in found] == ["success"] * 2 and found[1].by == "a photo of the dog"
    assert asked == [("a cat", 0), ("a photo of the cat", 1), ("a fox", 0), ("a photo of the fox", 1), ("a dog", 0),
                     ("a photo of the dog", 1)]  # fmt: skip
    assert found[0].curve[-1][0] == 2.0 and found[0].spent.pictures == 3


# -- a model that never knew ----------------------------------------------------------------------------------------


def test_two_models_are_two_sides_and_stay_what_they_were(sd1) -> None:
    other = tiny.sd1(seed=1)
    kept = [value.detach().clone() for pipe in (sd1, other) for value in pipe.unet.parameters()]
    switches = [value.requires_grad for value in other.unet.parameters()]
    with Victim(sd1, None, Sight(Flag(), "cat"), HOW) as plain, torch.no_grad():
        knows = plain.draw(CASES)
    with Victim(other, None, Sight(Flag(), "cat"), HOW) as plain:
        knows_not = plain.draw(CASES)
    with never_knew.beside(sd1, other, Sight(Flag(), "cat"), HOW) as victim:
        assert all(np.array_equal(a, b) for a, b in zip(victim.draw(CASES), knows_not, strict=True))
        with victim.original():
            assert all(np.array_equal(a, b) for a, b in zip(victim.draw(CASES), knows, strict=True))
        assert not any(value.requires_grad for value in sd1.unet.parameters())
    now = [value for pipe in (sd1, other) for value in pipe.unet.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert switches == [value.requires_grad for value in other.unet.parameters()]
    with pytest.raises(UsageError, match="another unet"):
        never_knew.beside(sd1, tiny.sd2(), Sight(Flag(), "cat"), HOW)
    other.tokenizer = tiny.tokenizer(pad="!")  # the same tokens under other numbers
    with pytest.raises(UsageError, match="another tokenizer"):
        never_knew.beside(sd1, other, Sight(Flag(), "cat"), HOW)
