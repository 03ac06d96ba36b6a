"""The shipped judge on renders it never saw, and on what is no image."""

import numpy as np
import pytest
import torch

from erasekit.errors import UsageError
from erasekit.worlds.emoji import names
from erasekit.worlds.emoji.judge import calibration, load_judge
from erasekit.worlds.emoji.scenes import Scene, render, sample_scene


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(20)
    return [sample_scene(rng) for _ in range(300)]


def batch(scenes):
    return torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2)


def test_is_as_good_on_renders_as_its_card_says(scenes):
    verdict, card = load_judge()(batch(scenes)), calibration()["renders"]
    found = [set((row > 0.5).nonzero()[:, 0].tolist()) for row in verdict.objects]
    measured = {
        "exact_match": np.mean([f == set(s.objects) for f, s in zip(found, scenes, strict=True)]),
        "style_accuracy": np.mean([int(v.argmax()) == s.style for v, s in zip(verdict.style, scenes, strict=True)]),
        "background_accuracy": np.mean(
            [int(v.argmax()) == s.background for v, s in zip(verdict.background, scenes, strict=True)]
        ),
    }
    for name, share in measured.items():  # 300 scenes: three standard errors of a share of 0.99 are below 0.02
        assert abs(share - card[name]) < 0.02, (name, share, card[name])
    assert min(measured.values()) > 0.97


def test_probabilities(scenes):
    verdict = load_judge()(batch(scenes[:8]))
    assert verdict.objects.shape == (8, len(names())) and verdict.objects.min() >= 0 and verdict.objects.max() <= 1
    assert torch.allclose(verdict.style.sum(1), torch.ones(8)) and torch.allclose(verdict.background.sum(1), torch.ones(8))


def test_found_is_about_one_concept():
    cat, dog = (names().index(n) for n in ("cat", "dog"))
    images = batch([Scene((i,), 0, 2, ((32, 32, 50),)) for i in (cat, dog)])
    assert load_judge().found(images, "cat").tolist() == [True, False]


def test_an_empty_picture_shows_nothing():
    judge = load_judge()
    for colour in (0.0, 0.5, 1.0):
        assert not (judge(torch.full((1, 3, 64, 64), colour)).objects > 0.5).any()


@pytest.mark.parametrize("images", [torch.zeros(3, 64, 64), torch.zeros(1, 3, 32, 32), torch.full((1, 3, 64, 64), torch.nan)])
def test_refuses_what_is_no_image(images):
    with pytest.raises(UsageError, match="emoji judge needs"):
        load_judge()(images)


def test_refuses_a_word_that_is_no_label():
    with pytest.raises(UsageError, match="kitten"):
        load_judge().index("kitten")


def test_its_error_rates_are_shipped():
    report = calibration()
    assert report["labels"] == len(names())
    assert {"renders", "renders_off_grid", "through_autoencoder", "generated"} <= set(report)
