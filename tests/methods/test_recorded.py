"""What an edit's file says of files and folders: their names, and not where they are on the machine that made it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import edits
import pytest
from PIL import Image

import erasekit
from erasekit.methods import METHODS, LocalPath, describe_config, get, recorded

WORDS = re.compile(r"\b(files?|folders?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Config:
    plain: str = "and/or"
    place: LocalPath = ""
    other: LocalPath | None = None
    texts: tuple[str, ...] = ()
    count: int = 3


def test_of_a_path_only_the_name_is_recorded() -> None:
    config = Config(place="/home/me/dogs/", other="own/list.txt", texts=("@/home/me/a.txt", "a cat w/ a hat"))
    assert recorded(config) == {
        "plain": "and/or", "place": "dogs", "other": "list.txt", "texts": ["@a.txt", "a cat w/ a hat"], "count": 3,
    }  # fmt: skip
    assert recorded(Config()) == {"plain": "and/or", "place": "", "other": None, "texts": [], "count": 3}


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_that_names_a_file_is_a_local_path(name: str) -> None:
    kinds = get_type_hints(get(name).Config, include_extras=True)
    for key, facts in describe_config(get(name)).items():
        named = WORDS.search(f"{key.replace('_', ' ')}: {facts['doc']}")
        assert not (named and kinds[key] in (str, str | None)), f"{name}.{key} is a LocalPath"
        assert "LocalPath" not in facts["type"]  # a word of ours: what is given is text


@pytest.fixture
def place(sd1, tmp_path: Path) -> Path:
    """A folder with one of each: captions, an edit, pictures and their masks."""
    (tmp_path / "captions.txt").write_text("a photo of the fox\ncat and dog\n")
    edits.edit(sd1).save(tmp_path / "below.safetensors")
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (32, 32), (255, 255, 255)).save(tmp_path / folder / "x.png")
    return tmp_path


@pytest.mark.parametrize(("method", "files", "options"), [
    ("mace-refine", {"prior_file": "captions.txt"}, {}),
    ("trce-text", {"prior_file": "captions.txt"}, {}),
    ("erasepro", {"captions": "@captions.txt"}, {"covariance": True}),
    ("mace", {"images": "pictures", "masks": "masks", "prior_file": "captions.txt"},
     {"steps": 1, "sampling_steps": 2, "templates": "none"}),
    ("irece", {"on": "below.safetensors"}, {"gate": "off", "samples": 2, "sampling_steps": 2}),
])  # fmt: skip
def test_no_path_of_this_machine_is_in_an_edits_file(method: str, files: dict, options: dict, sd1, place: Path) -> None:
    given = {key: f"@{place / name[1:]}" if name[0] == "@" else str(place / name) for key, name in files.items()}
    edit = erasekit.erase(sd1, "cat", anchor="dog", method=method, **given, **options)
    edit.save(place / "edit.safetensors")
    assert str(place).encode() not in (place / "edit.safetensors").read_bytes()
    said = json.dumps(erasekit.load_edit(place / "edit.safetensors").parameters)
    assert all(f'"{name}"' in said for name in files.values())
