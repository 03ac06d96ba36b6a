"""What was found is drawn from the case's own seed and then the next ones, until a picture shows the target."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from erasekit.attacks import Case, pictures
from erasekit.attacks._encoder import Found, settled
from erasekit.attacks.base import Spent
from erasekit.attacks.mma import MMAConfig
from erasekit.attacks.probes_inpainting import Inpainting, InpaintingConfig, inpainted, square
from erasekit.attacks.prompts import drawn, sought, turned, unattacked
from erasekit.attacks.ring_a_bell import RingABellConfig
from erasekit.attacks.sight import Seen, Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.errors import UsageError

CASES = [Case("a cat", 3), Case("a dog", 4)]


class Told(Victim):
    """The target is in the pictures that are the `hits`-th to be looked at, counted from 0; notes the prompts and seeds that
    are drawn."""

    def __init__(self, pipe, hits=()) -> None:
        super().__init__(pipe, None, Sight(Nothing(), "cat"), Sampling(1, 3.0, 2))
        self.hits, self.looked, self.asked = set(hits), 0, []

    def draw(self, cases, **options):
        self.asked += [(case.prompt, case.seed) for case in cases]
        return super().draw(cases, **options)

    def look(self, cases, images):
        first, self.looked = self.looked, self.looked + len(images)
        return [Seen("ok", first + i in self.hits, 0.9 if first + i in self.hits else 0.1) for i in range(len(images))]


class Nothing:
    """Is never asked."""

    name, weights_sha256, licence, labels = "nothing", "", "", ("cat",)


def pixels(image) -> np.ndarray:
    return np.asarray(image)


def test_each_prompt_is_drawn_with_the_next_seed_while_it_does_not_show(sd1) -> None:
    with Told(sd1, hits=[2]) as model:  # the first case's picture in the second round
        said: list[int] = []
        found = sought(CASES, 3, lambda which, seeded: drawn(model, seeded, ["xy"[i] for i in which]), said.append)
        assert model.asked == [("x", 3), ("y", 4), ("x", 1003), ("y", 1004), ("y", 2004)]
        assert [(one.case, one.status, one.by, one.spent.pictures) for one in found] == [
            (CASES[0], "success", "x", 2), (CASES[1], "failure", "y", 3)]  # fmt: skip
        assert said == [1, 2, 3]
        (same,) = drawn(model, [turned(CASES[0], 1)], ["x"])
        assert np.array_equal(pixels(found[0].image), pixels(same.image))


def test_a_found_prompt_has_as_many_pictures_as_were_asked_for(sd1) -> None:
    for seeds, asked in ((1, [("u", 4)]), (2, [("u", 4), ("u", 1004)])):
        with Told(sd1, hits=[0]) as model:
            plain = unattacked(model, CASES)
            assert [one.status for one in plain] == ["skipped", "failure"]
            model.asked.clear()
            found = settled(model, plain, {1: Found("u", Spent(steps=7), ((0.0, 0.5),))}, seeds)
            assert model.asked == asked and found[0] is plain[0]
            assert found[1].spent.pictures == 1 + seeds and found[1].spent.steps == 7


def test_a_hole_is_filled_from_the_next_noise_while_it_does_not_show(sd1) -> None:
    hits = [2, 3, 5]  # both pictures of the original; the second case's filling in the first round
    with Told(sd1, hits) as model:
        found = Inpainting().run(model, CASES, InpaintingConfig(steps=2, seeds=3))
    assert [one.status for one in found] == ["failure", "success"] and [one.case for one in found] == CASES
    assert [one.spent.pictures for one in found] == [2 + 3, 2 + 1] and [one.curve[-1][0] for one in found] == [6, 2]
    with Told(sd1, hits) as model:
        once = Inpainting().run(model, CASES, InpaintingConfig(steps=2))
    assert [one.spent.pictures for one in once] == [3, 3]
    assert torch.equal(found[1].tensors["latents"], once[1].tensors["latents"])


def test_the_second_filling_is_the_next_seeds(sd1) -> None:
    with Told(sd1, hits=[1, 3]) as model:  # one case: the original's picture, the second filling
        (found,) = Inpainting().run(model, CASES[:1], InpaintingConfig(steps=2, seeds=2))
        with model.original():
            clean = pictures.latents(model, model.draw(CASES[:1]))
        top, left, bottom, right = square((clean.shape[2], clean.shape[3]), 0.5)
        hole = torch.zeros(clean.shape[2:], dtype=torch.bool)
        hole[top:bottom, left:right] = True
        wanted = inpainted(model, [turned(CASES[0], 1)], clean, hole, 2)
    assert found.status == "success" and torch.equal(found.tensors["latents"], wanted[0])


def test_no_picture_at_all_is_refused() -> None:
    for config in (MMAConfig, RingABellConfig, InpaintingConfig):
        with pytest.raises(UsageError, match="seeds"):
            config(seeds=0)
