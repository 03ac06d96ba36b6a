"""AC: captions of anchors and targets, which images are drawn, and augmentation; on tiny random models."""

from __future__ import annotations

import torch
from ac_runs import opened

from erasekit.concept import EraseRequest
from erasekit.methods._ac_batch import _sized, draw, picked
from erasekit.methods._anchors import CLOSE, FAR, KINDS, to_draw
from erasekit.training import images as pictures
from erasekit.training.loop import Step


def test_captions_of_each_kind_are_those_of_the_note() -> None:
    request = EraseRequest.build("grumpy cat", anchor="cat")
    gallery = to_draw(request, "object", ["A Cat, near a cat", "the {} sleeps", "a dog"], 4)
    assert [item.caption for item in gallery.items[0]] == ["A cat, near a cat", "the cat sleeps"] * 2
    assert [item.targets for item in gallery.items[0]][:2] == [("A grumpy cat, near a grumpy cat",), ("the grumpy cat sleeps",)]
    assert gallery.dropped == 1 and gallery.drawn == (("A cat, near a cat", ""), ("the cat sleeps", "")) * 2
    style = to_draw(EraseRequest.build("monet", anchor="painting"), "style", ["painting of a river"], 1).items[0][0]
    assert style.targets == ("painting of a river, in the style of monet", *["in monet's style, painting of a river"] * 2)
    worded = to_draw(EraseRequest.build("Ink style", anchor="painting"), "style", ["painting of a river"], 1).items[0][0]
    assert worded.targets[:2] == ("painting of a river, in the style of Ink", "in Ink's style, painting of a river")
    bare = to_draw(EraseRequest.build("nudity", anchor=""), "nudity", [], 2)
    assert bare.drawn[0] == ("a person on a beach", "nudity")
    assert bare.items[0][0].targets == ("nudity, a person on a beach", "in nudity style, a person on a beach",
                                        "a person on a beach, nudity")  # fmt: skip
    memory = to_draw(EraseRequest.build("the caption", anchor="its paraphrase"), "memorised", [], 2)
    assert memory.items[0][1] == (1, "its paraphrase", ("the caption",))
    assert all(len(set(kind.captions)) == len(kind.captions) for kind in KINDS.values())


def test_targets_share_the_images_of_their_anchor_and_are_all_drawn(sd1) -> None:
    request = EraseRequest.build(["x", "y", "z"], anchor=["cat", "cat", "dog"])
    gallery = to_draw(request, "object", [], 5)
    assert len(gallery.drawn) == 10
    assert [[item.image for item in items] for items in gallery.items] == [[0, 1, 2, 3, 4]] * 2 + [[5, 6, 7, 8, 9]]
    assert len(to_draw(request, "nudity", [], 5).drawn) == 15  # the target is its own negative prompt
    with opened(sd1, ["x", "y"], anchor=["cat", "dog"], batch=8) as run:
        batch = draw(run, Step(0, 0))
    assert {t for t in "xy" if any(f" {t} " in f" {target} " for target in batch.targets)} == {"x", "y"}


def test_only_images_that_some_step_learns_from_are_drawn(sd1) -> None:
    with opened(sd1, images=500, steps=4, accumulate=2) as run:
        seen = [draw(run, Step(0, index, part)) for index in range(4) for part in range(2)]
        assert len(run.images) == len(run.used) == len(run.rows) <= 4 * 2 * 2
        images = {item.image: item.caption for item in run.gallery.items[0]}
        assert {caption for batch in seen for caption in batch.captions} == {images[number] for number in run.used}


def test_a_style_has_its_forms_one_to_two(sd1) -> None:
    with opened(sd1, "x", anchor="photo", kind="style", batch=200) as run:
        targets = draw(run, Step(0, 0)).targets
    assert 40 < sum("in the style of x" in target for target in targets) < 95
    assert all(("in the style of x" in t) != t.startswith("in x's style, photo of") for t in targets)


def test_each_sample_has_its_own_augmentation_and_the_targets_caption_alone_says_so(sd1) -> None:
    levels, seen = sd1.scheduler.alphas_cumprod.double(), set()
    with opened(sd1, augment=True, batch=16, steps=1) as run:
        step = Step(0, 0)
        batch, chance = draw(run, step), step.generator("augmentation")
        noise = run.bench.noise(step.generator("noise"))
        for i, (item, target) in enumerate(picked(run, step.generator("items"))):
            image = pictures.decoded(run.vae, run.images[run.rows[item.image]][None])[0]
            one, level = pictures.augmented(image, 2, chance), levels[batch.timesteps[i]]
            clean = pictures.encoded(run.vae, one.image[None])[0]
            wanted = (level.sqrt() * clean + (1 - level).sqrt() * noise[i]).float()
            torch.testing.assert_close(batch.latents[i], wanted, rtol=1e-3, atol=1e-3)
            said = FAR if one.scale < 0.6 else CLOSE if one.scale > 1 else ("{}",)
            assert batch.targets[i] in [form.replace("{}", target) for form in said]
            assert torch.equal(batch.mask[i], one.mask) and batch.captions[i] == item.caption
            seen.add(said)
    assert len(seen) == 3
    draws = torch.Generator().manual_seed(0)
    found = {scale: {_sized("c", scale, draws) for _ in range(20)} for scale in (0.599, 0.6, 1.0, 1.001)}
    assert found[0.599] == {"a far away c", "very small c"} and found[0.6] == found[1.0] == {"c"}
    assert found[1.001] == {"zoomed in c", "close up c"}
