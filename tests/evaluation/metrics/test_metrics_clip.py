"""CLIP scores and accuracies on vectors whose cosines are known, and the floor against every permutation."""

from __future__ import annotations

import base64
import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch

from erasekit.errors import UsageError
from erasekit.evaluation.metrics import clip


def at(*degrees: float) -> np.ndarray:
    """Rows of length 3 in the plane at these angles."""
    return 3 * np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_three_scales() -> None:
    images, texts = at(0, 0, 0), at(60, 90, 120)
    assert clip.score(images, texts, scale="cosine") == pytest.approx([0.5, 0, -0.5], abs=1e-12)
    assert clip.score(images, texts, scale="logit") == pytest.approx([50, 0, -50], abs=1e-10)
    assert clip.score(images, texts) == pytest.approx([1.25, 0, 0], abs=1e-12)
    assert clip.score(torch.tensor(images), torch.tensor(texts)) == pytest.approx([1.25, 0, 0], abs=1e-12)
    with pytest.raises(UsageError, match="unknown scale"):
        clip.score(images, texts, scale="ac2")


def test_prefix_is_a_parameter() -> None:
    assert clip.texts_with_prefix(["a cat"]) == ["A photo depicts a cat"]
    assert clip.texts_with_prefix(["a cat"], prefix="") == ["a cat"]


def test_style_rule() -> None:
    assert clip.accuracy_texts("Van Gogh", "painting", style=True, prefix="") == ("Van Gogh style", "painting")
    assert clip.accuracy_texts("Van Gogh", "Monet", style=True, prefix="") == ("Van Gogh style", "Monet style")
    assert clip.accuracy_texts("cat", "dog", style=False) == ("A photo depicts cat", "A photo depicts dog")


def test_pairwise_accuracy() -> None:
    tie = np.array([[1.0, 1.0]])
    found = clip.accuracy(np.concatenate([at(10, 44), tie, at(80)]), np.array([1.0, 0]), np.array([0, 1.0]))
    assert found.tolist() == [True, True, False, False]  # a tie is not the target
    assert clip.accuracy(at(44), 100 * at(0)[0], at(90)[0]).all()  # lengths do not matter


def test_softmax_and_top1() -> None:
    images, labels = at(0, 40, 90), at(0, 30, 100)
    logits = [[100 * math.cos(math.radians(i - j)) for j in (0, 30, 100)] for i in (0, 40, 90)]
    naive = [math.exp(row[1] - max(row)) / sum(math.exp(x - max(row)) for x in row) for row in logits]
    assert clip.accuracy_softmax(images, labels, 1) == pytest.approx(naive)
    assert clip.accuracy_top1(images, labels, 1).tolist() == [False, True, False]
    with pytest.raises(UsageError, match="label 3"):
        clip.accuracy_top1(images, labels, 3)


def test_a_stored_embedding_is_read() -> None:
    stored = base64.b64encode(np.array([0.6, 0.8], dtype="<f2").tobytes()).decode()
    assert clip.decode(stored) == pytest.approx([0.6, 0.8], abs=1e-3)
    assert np.linalg.norm(clip.decode(stored)) == pytest.approx(1, abs=1e-15)
    with pytest.raises(UsageError, match="run the judge again"):
        clip.decode("no base64!")


def test_bad_embeddings_are_refused() -> None:
    for wrong in (np.zeros((1, 2)), np.full((1, 2), np.nan), np.ones(3)):
        with pytest.raises(UsageError):
            clip.unit(wrong)
    with pytest.raises(UsageError, match="not pairs"):
        clip.cosines(at(0), at(0, 1))


def test_floor_is_the_mean_over_other_prompts() -> None:
    """Against the mean of the score over all permutations that give no image its own prompt."""
    images, texts, prompts = at(5, 15, 80, 170), at(0, 0, 90, 140), ["a", "a", "b", "c"]
    naive = [
        clip.score(images[i : i + 1], texts[j : j + 1])[0]
        for i, j in itertools.product(range(4), repeat=2)
        if prompts[i] != prompts[j]
    ]
    assert clip.floor(images, texts, prompts) == pytest.approx(sum(naive) / len(naive))
    with pytest.raises(UsageError, match="two different prompts"):
        clip.floor(images[:2], texts[:2], ["a", "a"])


def test_a_floor_over_many_prompts_holds_few_of_their_products(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = np.random.default_rng(0).normal(size=(2, 1500, 8))
    names = [f"{i % 1200}" for i in range(1500)]
    texts[1200:] = texts[:300]
    whole = clip.floor(images, texts, names)
    monkeypatch.setattr(clip, "CELLS", 50_000)
    tracemalloc.start()
    assert clip.floor(images, texts, names) == pytest.approx(whole, rel=1e-12)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1500 * 1200 * 8 / 3


def test_a_floor_does_not_depend_on_the_order_in_which_products_are_added() -> None:
    images, texts = np.random.default_rng(1).normal(size=(2, 40, 300))
    order, names = np.random.default_rng(2).permutation(300), list(map(str, range(40)))
    assert clip.floor(images[:, order], texts[:, order], names) == clip.floor(images, texts, names)


def test_calibration_puts_the_unedited_model_at_one() -> None:
    images, texts, prompts = at(5, 85, 170), at(0, 90, 180), ["a", "b", "c"]
    own = clip.calibrate(images, images, texts, prompts)
    assert own.position(float(clip.score(images, texts).mean())) == 1 and own.position(own.floor) == 0
    assert clip.Calibration(0.5, 0.5).position(0.7) is None
    edited = clip.calibrate(at(40, 50, 120), images, texts, prompts)
    assert edited.ceiling == own.ceiling and edited.floor > own.floor
