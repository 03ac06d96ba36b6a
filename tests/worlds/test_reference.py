"""Reference pictures show what their prompt says, always the same, and stand for real images in a distance of sets."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erasekit.errors import UsageError
from erasekit.worlds.emoji import BACKGROUNDS, STYLES, concepts, names
from erasekit.worlds.emoji.captions import HELD_OUT_PAIR, HELD_OUT_SINGLE, PAIR, SINGLE, caption, fill
from erasekit.worlds.emoji.reference import picture, save, scene
from erasekit.worlds.emoji.scenes import render, sample_scene

PAGE = Path(__file__).parents[2] / "docs" / "emoji.md"
LICENCES = Path(__file__).parents[2] / "src/erasekit/worlds/emoji/drawings/LICENSES.md"


def shown(prompt: str) -> tuple[list[str], str, str]:
    found = scene(prompt)
    return [names()[i] for i in found.objects], STYLES[found.style], list(BACKGROUNDS)[found.background]


@pytest.mark.parametrize(("prompt", "objects"), [
    ("a kitten", ["cat"]), ("a Photo of a  HOT DOG", ["hot dog"]), ("a fire engine next to a fire", ["fire engine", "fire"]),
    ("a dog and a puppy", ["dog"]), ("a sunflower beside a sun", ["sunflower", "sun"]),
])  # fmt: skip
def test_objects_are_found_by_name_and_synonym(prompt: str, objects: list[str]) -> None:
    assert shown(prompt)[0] == objects


@pytest.mark.parametrize("form", [*SINGLE, *PAIR, *HELD_OUT_SINGLE, *HELD_OUT_PAIR])
def test_every_form_of_caption_is_read_back(form: str) -> None:
    objects, style, background = shown(fill(form, ("owl", "police car") if "{c}" in form else ("owl",), "ink", "pink"))
    assert objects == (["owl", "police car"] if "{c}" in form else ["owl"])
    assert ("{s}" not in form or style == "ink") and ("{b}" not in form or background == "pink")


def test_training_captions_give_the_scenes_objects_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        wanted = sample_scene(rng, pair_share=0.5)
        assert scene(caption(wanted, rng)).objects == wanted.objects


def test_the_same_prompt_and_seed_give_the_same_picture_of_the_scene() -> None:
    one, two = picture("a cat in ink style", seed=3), picture("a cat in ink style", seed=3)
    assert one.size == (64, 64) and one.mode == "RGB" and one.tobytes() == two.tobytes()
    assert len({picture("a cat", seed=seed).tobytes() for seed in range(8)}) > 4
    made = scene("a cat", seed=1)
    assert np.abs(np.asarray(picture(made), dtype=float) / 255 - render(made)).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("prompt", "says"), [("a sofa", "names none"), ("a rocet", "did you mean rocket"), ("", "names none"),
                                              ("a cat, a dog and a fox", "cat, dog, fox")])  # fmt: skip
def test_what_the_world_cannot_show_is_refused(prompt: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        picture(prompt)


def test_a_folder_of_references(tmp_path: Path) -> None:
    paths = save(tmp_path / "real", ["a cat", "a rocket"], seeds=(0, 1))
    assert len(set(paths)) == 4 and sorted(paths) == paths == sorted((tmp_path / "real").iterdir())
    with Image.open(paths[3]) as image:
        assert image.tobytes() == picture("a rocket", seed=1).tobytes()


def test_the_lines_in_the_docs_measure_a_distance_to_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    save("pictures", [f"a {c.name} in ink style" for c in concepts()[:20]])
    scope: dict = {}
    exec(compile(code, "docs/emoji.md", "exec"), scope)
    assert scope["found"].name == "KID(emoji-clip-v1[128])" and np.isfinite(scope["found"].value)


def test_the_licences_name_every_sheet_and_carry_their_texts() -> None:
    text = LICENCES.read_text()
    assert all(f"`{style}.png`" in text for style in STYLES)
    for part in ("https://creativecommons.org/licenses/by/4.0/", "https://www.apache.org/licenses/LICENSE-2.0",
                 "Copyright (c) Microsoft Corporation.", "The above copyright notice and this permission notice shall be",
                 "rasterised"):  # fmt: skip
        assert part in text
    root = LICENCES.parents[5]
    assert "drawings/LICENSES.md" in (root / "README.md").read_text()
    assert "drawings/LICENSES.md" in (root / "pyproject.toml").read_text()
    assert "drawings/LICENSES.md" in (root / "src/erasekit/worlds/emoji/train/card.py").read_text()
