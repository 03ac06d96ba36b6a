"""The emoji world's tables, scenes and captions."""

import numpy as np
import pytest

from erasekit.worlds.emoji import BACKGROUNDS, NEIGHBOURS, STYLES, concepts, names, neighbours
from erasekit.worlds.emoji.captions import (
    HELD_OUT_PAIR,
    HELD_OUT_SINGLE,
    PAIR,
    SINGLE,
    article,
    caption,
    fill,
)
from erasekit.worlds.emoji.scenes import Scene, drawing, render, sample_scene


def test_the_table_has_enough_concepts_and_no_word_twice():
    words = [w for c in concepts() for w in (c.name, *c.synonyms)]
    assert len(concepts()) >= 120
    assert len(words) == len(set(words))
    assert {"animal", "food", "vehicle", "person", "weapon"} <= {c.category for c in concepts()}


def test_neighbours_are_concepts_and_never_the_word_itself():
    assert {n for group in NEIGHBOURS for n in group} <= set(names())
    assert "cat" not in neighbours("cat") and "fox" in neighbours("cat")


def test_every_drawing_is_there_and_no_two_are_alike():
    seen = {}
    for s in range(len(STYLES)):
        for i in range(len(names())):
            tile = drawing(i, s, 32)
            assert tile[..., 3].max() > 0.9, (names()[i], STYLES[s])
            assert seen.setdefault(tile.tobytes(), (i, s)) == (i, s)


def test_scenes_stay_in_the_picture_and_name_two_different_objects():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = sample_scene(rng, pair_share=0.5)
        assert len(set(scene.objects)) == len(scene.objects) == len(scene.places)
        assert all(x - s // 2 >= 0 and x + s // 2 <= 64 and y - s // 2 >= -1 and y + s // 2 <= 65 for x, y, s in scene.places)


def test_render_puts_the_drawing_on_its_background():
    colour = np.array(BACKGROUNDS["pink"], dtype=np.float32) / 255
    index = list(BACKGROUNDS).index("pink")
    image = render(Scene((0,), 4, index, ((32, 32, 44),)))
    assert image.shape == (64, 64, 3) and image.min() >= 0 and image.max() <= 1
    assert np.allclose(image[:4], colour)
    tile = drawing(0, 4, 44)
    expected = tile[..., :3] + colour * (1 - tile[..., 3:])
    assert np.allclose(image[10:54, 10:54], expected, atol=1e-6)


def test_held_out_forms_are_no_training_forms_and_use_only_their_words():
    trained = {word.strip(",") for form in SINGLE + PAIR for word in form.split()}
    held = HELD_OUT_SINGLE + HELD_OUT_PAIR
    assert not set(held) & set(SINGLE + PAIR)
    assert {word.strip(",") for form in held for word in form.split()} <= trained


def test_captions_name_what_the_scene_shows():
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = sample_scene(rng, pair_share=0.5)
        text = caption(scene, rng)
        for i in scene.objects:
            assert any(w in text for w in (concepts()[i].name, *concepts()[i].synonyms))


@pytest.mark.parametrize(("noun", "said"), [("cat", "a cat"), ("apple", "an apple"), ("unicorn", "a unicorn")])
def test_articles(noun, said):
    assert article(noun) == said


def test_fill():
    assert fill("{a} next to {c} on a {b} background, {s} style", ("owl", "cat"), "ink", "blue") == (
        "an owl next to a cat on a blue background, ink style"
    )
