"""The shipped CLIP on renders it never saw."""

import numpy as np
import pytest
import torch

from erasekit.evaluation import judges
from erasekit.evaluation.judges.emoji_clip import rates
from erasekit.evaluation.metrics.clip import decode
from erasekit.worlds.emoji.clip import CLIP_DIR, calibration, load_clip
from erasekit.worlds.emoji.scenes import Scene, render, sample_scene
from erasekit.worlds.emoji.train.clip import vocabulary


def batch(scenes):
    return torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def measured():
    rng = np.random.default_rng(30)
    scenes = [sample_scene(rng) for _ in range(400)]
    return rates(load_clip(), scenes, batch(scenes))


def test_is_as_good_on_renders_as_its_file_says(measured):
    card = calibration()["renders"]
    for name in ("retrieval_top1", "pair_accuracy", "style_accuracy", "background_accuracy", "both_objects_top2"):
        # about 280 single and 120 double scenes: three standard errors of a share near 0.9 are at most 0.09
        assert abs(measured[name] - card[name]) < 0.09, (name, measured[name], card[name])


def test_is_worth_judging_with(measured):
    assert measured["retrieval_top1"] > 0.8 and measured["pair_accuracy"] > 0.97
    assert measured["pair_accuracy_neighbours"] > 0.95 and measured["style_accuracy"] > 0.8
    assert measured["background_accuracy"] > 0.8
    assert measured["cosine_ceiling"]["p05"] > measured["cosine_floor"]["p95"]


def test_knows_the_words_of_today():
    assert load_clip().words.words == vocabulary().words


def test_unknown_words_and_prefixes_move_a_text_little():
    clip = load_clip()
    plain, prefixed, other = clip.texts(["a cat", "A photo depicts a cat", "a rocket"])
    assert plain @ prefixed > plain @ other + 0.3


def test_a_cat_is_no_dog():
    judge = judges.get("emoji-clip")
    out = judge.judge(batch([Scene((i,), 0, 2, ((32, 32, 50),)) for i in (0, 1)]), ["", ""])
    vectors = torch.from_numpy(np.stack([decode(j.data["embedding"]) for j in out])).float()
    cosines = vectors @ judges.text_embeddings(judge, ["a cat", "a dog"]).T
    assert cosines.argmax(1).tolist() == [0, 1]


def test_is_small():
    assert (CLIP_DIR / "clip.safetensors").stat().st_size < 6e6
