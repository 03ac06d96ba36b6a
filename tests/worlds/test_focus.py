"""Which drawings a denoiser confuses, and how often each is shown then: against counts and errors made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from erasekit.worlds.emoji.concepts import STYLES, names
from erasekit.worlds.emoji.train.denoiser import BETAS, SHARES, chosen_rows, pairs, row_focus, row_weights
from erasekit.worlds.emoji.train.focus import LEAST, LEVELS, MOST, boost, margins

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
    focus = np.cumsum([0.1, 0.0, 0.6, 0.3])
    rows = chosen_rows(np.random.default_rng(0), 4, 20_000, focus)
    assert np.bincount(rows, minlength=4) / 20_000 == pytest.approx([0.1, 0, 0.6, 0.3], abs=0.02)
    plain = np.random.default_rng(5)
    assert (chosen_rows(np.random.default_rng(5), 7, 9, None) == plain.integers(7, size=9)).all()


def test_without_a_focus_the_recipe_is_as_it_was(tmp_path):
    assert row_focus(tmp_path, 0, 10) is None
    torch.save(torch.ones(GRID), tmp_path / "focus.pt")
    focus = row_focus(tmp_path, 0, 50)
    assert focus is not None and len(focus) == 50 and focus[-1] == pytest.approx(1)


def test_confused_drawings_are_shown_more_and_none_is_forgotten():
    weights = boost(torch.tensor([-0.5, 0.0, 0.1, 0.6, 50.0])).tolist()
    assert weights[0] == weights[1] == MOST and weights[-1] == pytest.approx(LEAST) and weights[3] == pytest.approx(1)
    assert weights == sorted(weights, reverse=True)


def test_a_margin_is_the_error_of_the_best_wrong_caption_over_that_of_the_right_one():
    """A denoiser that knows each velocity but for an error that the caption decides: the errors are given."""
    clean = torch.randn(3, 2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    texts = torch.arange(6.0).view(3, 2, 1, 1)
    size = {0: (1.0, 2.0), 1: (3.0, 1.0), 2: (2.0, 1.0), 3: (1.0, 1.0), 4: (1.0, 5.0), 5: (1.0, 1.0)}
    calls = []

    def denoise(noisy, level, context):
        row = int(context[0]) // 2
        calls.append((row, level))
        generator = torch.Generator().manual_seed(7)  # the same noise as `margins` draws, in its order
        noises = {at: torch.randn(clean.shape, generator=generator) for at in LEVELS}
        alpha = DDPMScheduler(**BETAS).alphas_cumprod[level]
        velocity = alpha.sqrt() * noises[level][row] - (1 - alpha).sqrt() * clean[row]
        wrong = torch.tensor([size[2 * row + said][drawn] for drawn in range(2) for said in range(2)])
        return velocity.repeat_interleave(2, 0) + wrong.sqrt()[:, None, None, None]

    # error[drawn][said] = size[caption][drawn]; row 0: drawn 0 by caption 0: 1, by 1: 3; drawn 1: by 1: 1, by 0: 2
    found = margins(denoise, clean, texts, 7)
    assert found == pytest.approx(torch.tensor([[2.0, 1.0], [-0.5, 0.0], [0.0, 4.0]]), abs=1e-3)
    assert calls == [(row, level) for level in LEVELS for row in range(3)]
