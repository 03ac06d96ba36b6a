"""What all judges share: statuses, pictures that are none, sizes, rounding, specs."""

import base64
import hashlib
import struct

import numpy as np
import pytest
import torch

from erasekit.errors import ModelError, UsageError
from erasekit.evaluation import judges
from erasekit.evaluation.judges import base


def noise(n=1, h=20, w=24, seed=0):
    return torch.rand((n, 3, h, w), generator=torch.Generator().manual_seed(seed))


def test_a_picture_is_no_picture_if_it_is_flat_or_not_finite():
    images = noise(6)
    images[1] = 0.0
    images[2] = torch.tensor([1.0, 0.0, 0.0])[
        :, None, None
    ]  # one colour is constant, whatever it differs between channels
    images[3, 0, 2, 3] = torch.nan
    images[4, 2, 0, 0] = torch.inf
    reasons = judges.check(images)
    assert [r is None for r in reasons] == [True, False, False, False, False, True]
    assert "constant" in reasons[1] and "constant" in reasons[2]
    assert "finite" in reasons[3] and "finite" in reasons[4]


def test_constant_is_the_stated_bound():
    pattern = torch.ones(1, 3, 20, 20)
    pattern[..., ::2] = -1  # its standard deviation is exactly its amplitude
    below, above = (0.5 + pattern * base.FLAT * share for share in (0.98, 1.02))
    assert judges.check(below)[0] and judges.check(above) == [None]


@pytest.mark.parametrize(
    "images", [noise(1)[0], noise()[:, :2], (noise() * 255).byte(), noise() * 255, noise() * 2 - 1]
)
def test_the_callers_mistakes_raise(images):
    with pytest.raises(UsageError, match="a judge needs"):
        judges.check(images)


def test_each_image_has_its_own_status_in_its_own_place():
    images = noise(4)
    images[1] = 0.5
    asked = []

    def verdicts(some):
        asked.append(some)
        return [{"found": ["first"]}, "too odd", {"found": ["last"]}]

    out = base.judge_each(images, [""] * 4, verdicts)
    assert [j.status for j in out] == ["ok", "invalid", "failed", "ok"]
    assert out[0].data == {"found": ["first"]} and out[3].data == {"found": ["last"]}
    assert out[2].data == {"reason": "too odd"} and "constant" in out[1].data["reason"]
    assert torch.equal(asked[0], images[[0, 2, 3]])


def test_images_too_small_fail_and_are_not_asked_about():
    (verdict,) = base.judge_each(noise(1, 40, base.SMALLEST - 1), [""], lambda some: pytest.fail("asked"))
    assert verdict.status == "failed" and "15 x 40" in verdict.data["reason"]
    assert base.judge_each(noise(1, 40, base.SMALLEST), [""], lambda some: [{}])[0].status == "ok"


def test_no_images_no_verdicts():
    assert base.judge_each(noise(0), [], lambda some: pytest.fail("asked")) == []


def test_what_was_not_foreseen_propagates():
    def broken(some):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        base.judge_each(noise(), [""], broken)
    with pytest.raises(ValueError):
        base.judge_each(noise(2), [""] * 2, lambda some: [{}])  # an answer is missing
    with pytest.raises(UsageError, match="one prompt"):
        base.judge_each(noise(2), [""], lambda some: [{}, {}])


def test_a_status_is_one_of_three():
    with pytest.raises(ValueError, match="erased"):
        judges.Judgement("erased", {})


def test_scores_are_written_from_two_percent_on_highest_first():
    assert list(base.scores(["a", "b", "c", "d"], [0.02, 0.9, 0.019999, 0.1234567]).items()) == [
        ("b", 0.9), ("d", 0.12346), ("a", 0.02),
    ]  # fmt: skip


def test_eight_bit_pictures_come_back_as_they_were():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    (picture,) = base.pil(tensor)
    assert picture.mode == "RGB" and np.array_equal(np.asarray(picture), pixels)


def test_embeddings_are_little_endian_halves():
    vector = torch.tensor([0.6, -0.8, 0.0])
    data = base.packed(vector)
    assert data["dim"] == 3
    assert struct.unpack("<3e", base64.b64decode(data["embedding"])) == pytest.approx((0.6, -0.8, 0.0), abs=5e-4)


def test_hash_of_weight_files(tmp_path):
    (tmp_path / "one").write_bytes(b"w" * 3_000_000)
    (tmp_path / "two").write_bytes(b"v")
    one, two = tmp_path / "one", tmp_path / "two"
    assert base.sha256([one]) == hashlib.sha256(b"w" * 3_000_000).hexdigest()
    assert base.sha256([one, two]) == base.sha256([two, one]) != base.sha256([one])


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("emoji", ("emoji", None)),
        ("nudenet@0.6", ("nudenet", "@0.6")),
        ("clip:models/a@b", ("clip", "models/a@b")),
        ("clip:openai/some:tag", ("clip", "openai/some:tag")),
        ("classifier:", ("classifier", "")),
    ],
)
def test_specs(spec, parts):
    assert judges.split(spec) == parts


@pytest.mark.parametrize("spec", ["emojis", "", ":", "resnet:folder", "Emoji"])
def test_an_unknown_judge_is_refused_with_the_list(spec):
    with pytest.raises(UsageError, match=r"no judge .*emoji-clip, clip:FOLDER.*nudenet"):
        judges.get(spec)


@pytest.mark.parametrize("spec", ["emoji@", "emoji@high", "emoji@1", "emoji@-0.5", "emoji@nan", "emoji:0.5"])
def test_a_threshold_that_cannot_be_is_refused(spec):
    with pytest.raises(UsageError, match="takes a threshold"):
        judges.get(spec)


def test_emoji_clip_takes_no_option():
    with pytest.raises(UsageError, match="takes nothing"):
        judges.get("emoji-clip@0.5")


@pytest.mark.parametrize("name", ["clip", "classifier", "imagenet"])
def test_a_folder_must_be_named_and_be_there(name, tmp_path):
    with pytest.raises(UsageError, match=f"{name}:models/mine"):
        judges.get(name)
    with pytest.raises(ModelError, match="does not exist; give a transformers folder"):
        judges.get(f"{name}:{tmp_path / 'gone'}")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        judges.get(f"{name}:{tmp_path}")


def test_every_judge_is_listed_and_every_function_is_there():
    assert list(judges.JUDGES) == list(judges.SUMMARIES)
    for name, where in judges.JUDGES.items():
        module, _, function = where.partition(":")
        assert module.startswith("erasekit.evaluation.judges.") and function, name


def test_only_clip_judges_have_texts():
    class Plain:
        name, weights_sha256, licence = "plain[2]", "", ""

        def judge(self, images, prompts):
            return []

    with pytest.raises(UsageError, match=r"plain\[2\] has no text embeddings"):
        judges.text_embeddings(Plain(), ["a cat"])
    assert judges.calibration(Plain()) == {}
