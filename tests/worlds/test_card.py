"""What the model card counts, on verdicts made by hand; no picture is drawn."""

import pytest
import torch

from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, names
from erasekit.worlds.emoji.judge import Verdict
from erasekit.worlds.emoji.train.card import PLAIN, Ask, asked_sets, calibrate, card, measure, plain_asks
from erasekit.worlds.emoji.train.loop import step_rng
from erasekit.worlds.emoji.train.withheld import Withheld

IMAGES = torch.zeros(1, 3, 64, 64)


def saying(*pictures):
    """A judge that gives these probabilities to the objects of each picture, and the first style and background."""
    objects = torch.full((len(pictures), len(names())), 0.01)
    for row, said in enumerate(pictures):
        for index, probability in said.items():
            objects[row, index] = probability
    first = [torch.eye(n)[:1].repeat(len(pictures), 1) for n in (len(STYLES), len(BACKGROUNDS))]
    return lambda images: Verdict(objects, *first)


@pytest.mark.parametrize(
    ("said", "named", "found"),
    [({3: 0.9}, 1, 1), ({3: 0.3}, 1, 0), ({3: 0.9, 5: 0.8}, 1, 0), ({3: 0.8, 5: 0.9}, 0, 0), ({}, 0, 0)],
)
def test_one_object_is_named_right_by_choice_and_found_by_the_threshold(said, named, found):
    shares = measure([Ask("", (3,))], IMAGES, saying(said))
    assert (shares["objects"][0], shares["found"][0]) == (named, found)


@pytest.mark.parametrize(
    ("said", "found"),
    [({3: 0.9, 5: 0.6}, 1), ({3: 0.9, 5: 0.2}, 0), ({3: 0.9}, 0), ({3: 0.9, 5: 0.8, 7: 0.7}, 0)],
)
def test_a_pair_counts_only_where_both_objects_and_no_other_are_found(said, found):
    shares = measure([Ask("", (3, 5))], IMAGES, saying(said))
    assert shares["found"][0] == found and "objects" not in shares  # the second likeliest label would say nothing


def test_style_and_background_are_asked_only_where_the_prompt_names_them():
    shares = measure([Ask("", (3,), style=0), Ask("", (3,), style=1, background=0), Ask("", (3,))], IMAGES,
                     saying({3: 1.0}, {3: 1.0}, {3: 1.0}))  # fmt: skip
    assert (shares["style"][0], shares["style"][3]) == (0.5, 2)
    assert (shares["background"][0], shares["background"][3]) == (1.0, 1)


def test_the_calibration_counts_what_was_asked_for_apart_from_everything_else():
    report = calibrate([Ask("", (3,)), Ask("", (3, 5))], IMAGES, saying({3: 0.9}, {3: 0.9, 7: 0.9}))
    assert report["asked_for_found"] == pytest.approx(2 / 3)
    assert report["images_with_another_object"] == 0.5


def test_the_card_says_by_which_rule_each_share_was_counted():
    shares = measure([Ask("", (3,))], IMAGES, saying({3: 0.3}))
    text = card({"plain": shares}, {"steps": 20, "guidance": 4.0})
    assert "| plain | the object named right | 100.0 %" in text
    assert "| plain | exactly the asked objects found | 0.0 %" in text
    assert "forced choice" in text and "above 0.5" in text


def test_what_was_withheld_is_asked_apart_and_the_card_names_it():
    held = Withheld(("cat", "hot dog"), ("ink",))
    full, apart = asked_sets(step_rng(0, "card", 0)), asked_sets(step_rng(0, "card", 0), held)
    never = apart.pop(f"{PLAIN}, never seen in training")
    assert full[PLAIN] == plain_asks() and list(apart) == list(full)
    assert len(never) == len(names()) + 2 * (len(STYLES) - 1) and set(never) | set(apart[PLAIN]) == set(full[PLAIN])
    assert not any(held.among(ask.objects, ask.style) for asks in apart.values() for ask in asks)
    text = card({PLAIN: measure([Ask("", (3,))], IMAGES, saying({3: 0.9}))}, {"steps": 20, "guidance": 4.0}, held)
    assert text.startswith("# The emoji world's model that never knew cat, hot dog, ink style\n")
    assert "card --work FOLDER --without cat 'hot dog' --without-style ink`" in text
