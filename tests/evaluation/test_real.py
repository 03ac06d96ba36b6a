"""Real images: known by what they hold, looked at before anything is drawn, and one line for each that cannot be used."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import fakes
import numpy as np
import pytest
from PIL import Image

from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import real
from erasekit.evaluation.suites import load_suite
from erasekit.worlds.emoji.reference import picture


def pixels(i: int, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)


def filled(place: Path, count: int = 16) -> Path:
    place.mkdir()
    for i in range(count):
        Image.fromarray(pixels(i, (20 + i, 24))).save(place / f"{i:02d}.png")
    return place


def test_a_set_is_known_by_what_its_images_hold(tmp_path: Path) -> None:
    place, said = filled(tmp_path / "coco"), []
    found = real.folder(place, progress=lambda *now: said.append(now))
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in place.iterdir())
    assert [one.sha256 for one in found.pictures] == hashes and said[-1] == (16, 16, "real images")
    assert found.parts == []
    whole = hashlib.sha256(json.dumps(hashes, separators=(",", ":")).encode()).hexdigest()
    assert found.facts == {"name": "coco", "sha256": whole, "images": 16}
    (place / "notes.txt").write_text("no image")
    (place / "below").mkdir()
    shutil.copy(place / "00.png", place / "below" / "00.png")
    (place / "00.png").rename(place / "zz.PNG")
    assert real.folder(place).facts == found.facts, "names, other files and what lies below decide nothing"
    Image.fromarray(pixels(99)).save(place / "01.png")
    assert real.folder(place).sha256 != found.sha256


def test_pixels_are_upright_rgb_at_their_own_size(tmp_path: Path) -> None:
    place = filled(tmp_path / "real", 15)
    turned = Image.fromarray(pixels(50))
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned.save(place / "turned.png", exif=exif)
    for mode in ("L", "RGBA", "P"):
        Image.fromarray(pixels(60)).convert(mode).save(place / f"{mode}.png")
    shown = {Path(one.name).stem: one.pixels()[0] for one in real.folder(place).pictures}
    assert shown["turned"].shape == (3, 24, 20) and all(shown[mode].shape == (3, 20, 24) for mode in ("L", "RGBA", "P"))
    expected = np.rot90(pixels(50), -1)
    assert np.array_equal((shown["turned"].permute(1, 2, 0).numpy() * 255).round(), expected)
    assert shown["03"].dtype.is_floating_point and shown["03"].min() >= 0 and shown["03"].max() <= 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(("spoil", "says"), [
    (cut, r"03.png cannot be read: it is damaged or no image; replace or delete it"),
    (lambda path: path.write_text("words"), r"03.png cannot be read: it is damaged or no image"),
    (lambda path: (path.unlink(), path.mkdir()), r"03.png cannot be read \(Is a directory\)"),
    (lambda path: Image.new("RGB", (32, 32), "red").save(path), r"03.png shows nothing \(the image is constant"),
    (lambda path: Image.fromarray(pixels(3, (9, 40))).save(path), r"03.png shows nothing \(it is smaller than 16 pixels\)"),
    (lambda path: path.unlink(), r"holds 15 real images, and a distance to them needs 16 at least"),
])  # fmt: skip
def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path, spoil, says: str) -> None:
    place = filled(tmp_path / "real")
    spoil(place / "03.png")
    with pytest.raises(UsageError, match=says) as error:
        real.folder(place)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "says"), [
    ("none", r"none cannot be read \(No such file or directory\): give a folder of images"),
    ("empty", r"empty holds no image"),
    ("texts", r"texts holds no image"),
    ("texts/a.txt", r"a.txt cannot be read \(Not a directory\)"),
])  # fmt: skip
def test_no_folder_of_images_is_one_line(tmp_path: Path, name: str, says: str) -> None:
    for place in ("empty", "texts"):
        (tmp_path / place).mkdir()
    (tmp_path / "texts/a.txt").write_text("a")
    with pytest.raises(UsageError, match=says) as error:
        real.each(str(tmp_path / name), [fakes.suite()])
    assert "\n" not in str(error.value)


def test_an_image_that_is_another_by_now_is_not_used(tmp_path: Path) -> None:
    place = filled(tmp_path / "real")
    found = real.folder(place)
    Image.fromarray(pixels(99)).save(place / "04.png")
    (changed,) = [one for one in found.pictures if one.name.endswith("04.png")]
    with pytest.raises(EraseKitError, match=r"04.png was changed after the run began: run the same command again"):
        changed.pixels()


def test_references_are_of_the_suites_unrelated_prompts_with_all_its_seeds() -> None:
    suite = load_suite("emoji/object")
    found = real.rendered(suite)
    asked = {p.text for p in suite.prompts(["cat"]) if p.group in ("unrelated", "style")}
    shown = {text for one in found.pictures if (text := one.name.split("'")[1])}
    assert found.name == "emoji" and len(found.pictures) == 38 * len(suite.seeds)
    assert len(asked & shown) > 30, "but for what is left out beside a target, those of every edit"
    expected = {hashlib.sha256(picture(text, seed=seed).tobytes()).hexdigest() for text in shown for seed in suite.seeds}
    assert {one.sha256 for one in found.pictures} == expected
    assert real.rendered(suite).facts == found.facts
    prompts = {}
    for one, part in zip(found.pictures, found.parts, strict=True):
        prompts.setdefault(part, set()).add(one.name.split("'")[1])
    assert len(prompts) == 38 and all(len(texts) == 1 for texts in prompts.values()), "a number for each prompt"
    one = found.pictures[0]
    assert np.array_equal((one.pixels()[0].permute(1, 2, 0).numpy() * 255).round(), np.asarray(one.source))


def test_what_is_always_erased_is_in_no_reference() -> None:
    suite = load_suite("emoji/multi-10")
    shown = [one.name for one in real.rendered(suite).pictures]
    kept = [p.text for p in suite.prompts() if p.group in ("unrelated", "style")]
    assert {name.split("'")[1] for name in shown} == set(kept)


def test_a_plan_stands_over_a_suite(tmp_path: Path) -> None:
    place, quality, other = filled(tmp_path / "real"), load_suite("emoji/quality"), fakes.suite()
    assert [one and one.name for one in real.each(None, [quality, other])] == ["emoji", None]
    assert [one and one.name for one in real.each(str(place), [quality, other])] == ["real", "real"]
    with pytest.raises(UsageError, match=r"the suite tiny is not of the emoji world, .* give a folder of real images"):
        real.each("emoji", [quality, other])
    small = fakes.suite(world="emoji", rows=(fakes.PROMPTS[4],), blocks=())
    with pytest.raises(UsageError, match=r"the unrelated prompts of the suite tiny give 2 real images, .* 16 at least"):
        real.each("emoji", [small])
