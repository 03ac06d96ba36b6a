"""Which drawings a denoiser confuses, and how often each is shown then: against counts made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from erasekit.worlds.emoji.concepts import STYLES, names
from erasekit.worlds.emoji.train import focus
from erasekit.worlds.emoji.train.card import Ask
from erasekit.worlds.emoji.train.denoiser import SHARES, chosen_rows, pairs, row_focus, row_weights
from erasekit.worlds.emoji.train.focus import MOST, PICTURES, boost, wrong
from erasekit.worlds.emoji.train.withheld import Withheld

GRID = (len(names()), len(STYLES))


@pytest.fixture(scope="module")
def rows():
    return pairs(0, 6000)


def mass(scenes, texts, probability, kind):
    """The share of a batch that each drawing gets from rows of a kind, added up row by row."""
    found = np.zeros(GRID)
    for scene, text, p in zip(scenes, texts, probability, strict=True):
        mine = "pair" if len(scene.objects) == 2 else "named" if STYLES[scene.style] in text else "unnamed"
        for concept in scene.objects if mine == kind else ():
            found[concept, scene.style] += p / len(scene.objects)
    return found


def test_every_drawing_is_named_as_often_as_every_other(rows):
    probability = row_weights(*rows, np.ones(GRID))
    assert probability.sum() == pytest.approx(1) and probability.min() > 0
    for kind, share in SHARES.items():
        assert mass(*rows, probability, kind).sum() == pytest.approx(share, rel=1e-5)
    named = mass(*rows, probability, "named")
    shown = named[named > 0]
    assert shown.max() == pytest.approx(shown.min(), rel=1e-4)
    by_chance = mass(*rows, np.full(len(probability), 1 / len(probability)), "named")
    assert by_chance.max() > 4 * by_chance[by_chance > 0].min()  # what the weights are for


def test_a_weight_is_what_a_drawing_is_shown_by(rows):
    weight = np.ones(GRID)
    weight[names().index("cat"), 2] = 3
    named = mass(*rows, row_weights(*rows, weight), "named")
    assert named[names().index("cat"), 2] == pytest.approx(3 * named[names().index("dog"), 2], rel=1e-4)


def test_rows_are_drawn_by_their_probability():
    cumulative = np.cumsum([0.1, 0.0, 0.6, 0.3])
    rows = chosen_rows(np.random.default_rng(0), 4, 20_000, cumulative)
    assert np.bincount(rows, minlength=4) / 20_000 == pytest.approx([0.1, 0, 0.6, 0.3], abs=0.02)
    plain = np.random.default_rng(5)
    assert (chosen_rows(np.random.default_rng(5), 7, 9, None) == plain.integers(7, size=9)).all()


def test_without_a_focus_the_recipe_is_as_it_was(tmp_path):
    assert row_focus(tmp_path, 0, 10) is None
    torch.save(torch.ones(GRID), tmp_path / "focus.pt")
    found = row_focus(tmp_path, 0, 50)
    assert found is not None and len(found) == 50 and found[-1] == pytest.approx(1)


def test_what_is_withheld_takes_no_focus_from_the_rest(tmp_path):
    """A heavy drawing that is withheld weighs nothing: the others have the shares that they have without it."""
    weight, cat, dog = np.ones(GRID), names().index("cat"), names().index("dog")
    weight[cat], weight[dog, 2] = 6, 3
    torch.save(torch.from_numpy(weight), tmp_path / "focus.pt")
    held = Withheld(("cat",))
    rows = pairs(0, 6000, held)
    found = row_focus(tmp_path, 0, 6000, held)
    assert found is not None
    probability = np.diff(found, prepend=0)
    assert probability == pytest.approx(row_weights(*rows, weight))
    named = mass(*rows, probability, "named")
    assert named[cat].sum() == 0 and named.sum() == pytest.approx(SHARES["named"], rel=1e-5)
    assert named[dog, 2] == pytest.approx(3 * named[names().index("horse"), 2], rel=1e-4)


def test_drawings_that_come_out_wrong_are_shown_more_and_none_is_forgotten():
    assert boost(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([1, (1 + MOST) / 2, MOST])


class Says:
    """A judge that names the object and style that each picture holds in its first two values."""

    def __call__(self, images: torch.Tensor) -> SimpleNamespace:
        objects, styles = (images[:, i, 0, 0].long() for i in (0, 1))
        return SimpleNamespace(objects=one_hot(objects, GRID[0]).float(), style=one_hot(styles, GRID[1]).float())


def test_a_picture_is_right_by_object_and_style():
    asks = [Ask("", (3,), 1), Ask("", (3,), 1), Ask("", (3,), 1), Ask("", (0,), 0)]
    images = torch.zeros(4, 3, 64, 64)
    for row, (thing, style) in enumerate([(3, 1), (3, 2), (4, 1), (0, 0)]):
        images[row, 0], images[row, 1] = thing, style
    assert wrong(asks, images, Says()).tolist() == [False, True, True, False]


def test_the_stage_asks_for_every_drawing_from_other_noise_each_time(tmp_path, monkeypatch):
    """The cat in the first style is never right, the dog in the last wrong in one of four."""
    cat, dog = names().index("cat") * GRID[1], names().index("dog") * GRID[1] + GRID[1] - 1
    firsts = []

    def drawn(pipe, asks, *, steps, guidance, first):
        images = torch.zeros(len(asks), 3, 64, 64)
        images[:, 0] = torch.tensor([a.objects[0] for a in asks]).view(-1, 1, 1)
        images[:, 1] = torch.tensor([a.style for a in asks]).view(-1, 1, 1)
        images[cat, 1] += 1
        images[dog, 0] += not firsts
        firsts.append(first)
        return images

    monkeypatch.setattr(focus, "_average", lambda work: None)
    monkeypatch.setattr(focus, "load_judge", lambda folder: Says())
    monkeypatch.setattr(focus, "draw", drawn)
    focus.run(tmp_path, seed=2)
    weights = torch.load(tmp_path / "focus.pt", weights_only=True)
    assert weights.shape == GRID and len(set(firsts)) == PICTURES
    assert weights.flatten()[cat] == MOST and weights.flatten()[dog] == pytest.approx(1 + (MOST - 1) / PICTURES)
    assert (weights == 1).sum() == weights.numel() - 2
