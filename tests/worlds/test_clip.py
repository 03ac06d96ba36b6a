"""The emoji world's CLIP without its weights, its training, and the denoiser trained without concepts."""

import json
import math

import numpy as np
import pytest
import torch

from erasekit.errors import ModelError, UsageError
from erasekit.worlds.emoji import BACKGROUNDS, STYLES, concepts
from erasekit.worlds.emoji.captions import HELD_OUT_PAIR
from erasekit.worlds.emoji.clip import MAX_WORDS, UNKNOWN, Clip, Network, Words, load_clip, read_clip, save_clip, split
from erasekit.worlds.emoji.scenes import sample_scene
from erasekit.worlds.emoji.train import clip as training
from erasekit.worlds.emoji.train.muon import Both


def network(size=200, seed=0):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        return Network(size)


@pytest.fixture(scope="module")
def words():
    return training.vocabulary()


@pytest.fixture(scope="module")
def clip(words):
    return Clip(network(len(words)), words)


# --- words


def test_words_are_read_without_case_and_punctuation():
    table = Words(["a", "cat", "ink"])
    assert table.ids(["A Cat, ink!"]).tolist() == [[1, 3, 4, 5]]
    assert table.ids(["a zebra", "a", ""]).tolist() == [[1, 3, UNKNOWN], [1, 3, 0], [1, 0, 0]]
    assert table.ids([]).shape == (0, 1)


def test_long_texts_are_cut_not_refused(clip):
    long = "a cat " * 100
    assert clip.words.ids([long]).shape == (1, MAX_WORDS)
    assert torch.equal(clip.texts([long]), clip.texts([" ".join(split(long)[: MAX_WORDS - 1])]))


def test_every_word_of_every_caption_is_known(words):
    rng = np.random.default_rng(0)
    said = {w for _ in range(3000) for w in split(training.describe(sample_scene(rng), rng).text)}
    assert said - set(words.words) == {training.STRANGER}
    assert {"kitten", "gelato", "ink", "purple", "tree"} <= set(words.words)


# --- the network


def test_padding_changes_nothing(clip):
    texts = ["a hot dog next to a cat on a blue background in ink style", "dog", ""]
    with torch.no_grad():
        together = clip.network.text(clip.words.ids(texts))
    assert torch.allclose(together, clip.texts(texts), atol=1e-5)


def test_vectors_have_length_one_and_no_vector_depends_on_its_company(clip):
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    vectors = clip.images(images)
    assert vectors.shape == (5, 128) and torch.allclose(vectors.norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.equal(vectors[2:3], clip.images(images[2:3]))
    texts = clip.texts(["a cat", "a cat and a dog in ink style"])
    assert torch.allclose(texts.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.equal(texts[:1], clip.texts(["a cat"]))
    assert clip.images(images[:0]).shape == clip.texts([]).shape == (0, 128)


def test_every_word_of_a_text_counts(clip):
    texts = [
        "a cat and a dog in ink style",
        "a cat and a fox in ink style",
        "a cat and a dog in flat style",
        "a cat in ink style",
    ]
    vectors = clip.texts(texts)
    assert torch.pdist(vectors).min() > 1e-3


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 64, 64), torch.zeros(1, 3, 32, 32), torch.full((1, 3, 64, 64), torch.nan)]
)
def test_refuses_what_is_no_image(clip, images):
    with pytest.raises(UsageError, match="emoji world's CLIP needs"):
        clip.images(images)


def test_the_cosines_reach_both_towers():
    net = network()
    net(torch.rand(2, 3, 64, 64), torch.tensor([[1, 5, 7], [1, 6, 0]])).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


# --- the file


def test_the_file_holds_weights_and_words_and_is_small(clip, tmp_path):
    save_clip(clip.network, clip.words, tmp_path)
    again = read_clip(tmp_path)
    assert again.words.words == clip.words.words
    assert all(
        torch.equal(p.half(), q.half())
        for p, q in zip(clip.network.parameters(), again.network.parameters(), strict=True)
    )
    assert (tmp_path / "clip.safetensors").stat().st_size < 6e6


def test_missing_and_damaged_weights_are_one_clear_line(clip, tmp_path):
    with pytest.raises(ModelError, match=r"missing.*train clip"):
        load_clip(tmp_path)
    save_clip(clip.network, clip.words, tmp_path)
    path = tmp_path / "clip.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        load_clip(tmp_path)


# --- the training


def test_captions_come_in_all_forms_and_both_orders():
    rng, scene = np.random.default_rng(2), training.Scene((0, 1), 4, 2, ((16, 32, 28), (48, 32, 28)))
    texts = [training.describe(scene, rng) for _ in range(600)]
    assert {t.objects for t in texts} == {(0, 1), (1, 0), ()}
    assert {t.style for t in texts} == {4, None} and {t.background for t in texts} == {2, None}
    starts = {form.split("{")[0].strip() for form in HELD_OUT_PAIR}
    assert all(any(t.text.startswith(s) for t in texts) for s in starts)
    assert any("kitten" in t.text for t in texts)


def test_a_caption_says_what_its_record_says():
    rng = np.random.default_rng(3)
    for _ in range(400):
        scene = sample_scene(rng, pair_share=0.5)
        text = training.describe(scene, rng)
        said = f" {text.text.replace(training.STRANGER, ' ').replace(',', ' ')} "
        said = " ".join(said.split())
        assert (STYLES[scene.style] in said.split()) == (text.style is not None)
        assert (f"{tuple(BACKGROUNDS)[scene.background]} background" in said) == (text.background is not None)
        for i in text.objects:
            assert any(w in said for w in (concepts()[i].name, *concepts()[i].synonyms))


def test_a_family_differs_in_one_thing_at_a_time():
    rng = np.random.default_rng(4)
    for _ in range(60):
        first, style, background, thing, *others = training.block(rng)
        assert len(others) == 4
        assert style.style != first.style and style == training.replace(first, style=style.style)
        assert background.background != first.background
        assert background == training.replace(first, background=background.background)
        assert thing == training.replace(first, objects=thing.objects)
        assert sum(a != b for a, b in zip(first.objects, thing.objects, strict=True)) == 1
        assert len(set(thing.objects)) == len(thing.objects)


def test_truths_against_a_loop():
    rng = np.random.default_rng(5)
    scenes = [scene for _ in range(6) for scene in training.block(rng)]
    texts = [training.describe(scene, rng) for scene in scenes]
    true = training.truths(scenes, texts)
    for i, scene in enumerate(scenes):
        for j, text in enumerate(texts):
            expected = (
                all(o in scene.objects for o in text.objects)
                and text.style in (None, scene.style)
                and text.background in (None, scene.background)
            )
            assert bool(true[i, j]) == expected
    assert true.diagonal().all() and true.sum() > len(scenes)


def test_contrast_against_a_loop():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true = torch.eye(4, dtype=torch.bool)
    true[0, 2] = True

    def one_way(rows, left_out):
        total = 0.0
        for i, row in enumerate(rows):
            kept = [math.exp(v) for j, v in enumerate(row) if (i, j) not in left_out]
            total += math.log(sum(kept)) - row[i]
        return total / 4

    expected = (one_way(logits.tolist(), {(0, 2)}) + one_way(logits.T.tolist(), {(2, 0)})) / 2
    assert float(training.contrast(logits, true)) == pytest.approx(expected, rel=1e-12)


def test_a_few_steps_teach_a_fixed_batch(words):
    rng = np.random.default_rng(6)
    scenes = training.block(rng)
    texts = [training.describe(s, rng) for s in scenes]
    pictures, ids, true = (
        training.pictures_of(scenes),
        words.ids([t.text for t in texts]),
        training.truths(scenes, texts),
    )
    net = network(len(words))
    optimizer, losses = Both(net, 3e-3, 0.0), []
    for _ in range(15):
        loss = training.contrast(net(pictures, ids), true)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5 and losses[-1] < 0.6 * losses[0]


def test_a_batch_depends_on_its_step_alone(words, tmp_path, monkeypatch):
    monkeypatch.setattr(training.AutoencoderKL, "from_pretrained", lambda _: torch.nn.Identity())
    monkeypatch.setattr(training, "through_autoencoder", lambda images, vae, rng: images / 2)
    make = [training.sampler(tmp_path, 0, words, blocks=8, pool=2) for _ in range(2)]
    make[0](0)
    one, other = make[0](7), make[1](7)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert one[0].shape == (64, 3, 64, 64) and len(one[1]) == 64 and one[2].shape == (64, 64)
    assert not torch.equal(one[0], make[0](8)[0])


def test_the_whole_stage_writes_weights_and_calibration(tmp_path, monkeypatch):
    monkeypatch.setattr(training.AutoencoderKL, "from_pretrained", lambda _: torch.nn.Identity())
    monkeypatch.setattr(training, "through_autoencoder", lambda images, vae, rng: images)
    monkeypatch.setattr(training, "CHECKED", 16)
    training.run(tmp_path, steps=2, blocks=1, pool=1)
    report = json.loads((tmp_path / "clip" / "clip.json").read_text())
    assert report["renders"] == report["through_autoencoder"]
    assert 0 <= report["renders"]["retrieval_top1"] <= 1
    assert read_clip(tmp_path / "clip").texts(["a cat"]).shape == (1, 128)
