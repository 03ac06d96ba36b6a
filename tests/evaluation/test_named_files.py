"""Files that parameters name: beside the plan, and known by what they hold, so that no fitted edit is out of date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from erasekit import methods
from erasekit.evaluation import fits, named_files
from erasekit.evaluation import plan as plans
from erasekit.evaluation.plan import Entry


def digest(parameters: dict) -> str:
    return Entry("a", targets=("cat",), parameters=parameters).digest


@pytest.mark.parametrize(("key", "named"), [("captions", "@{}"), ("captions", "a cat; @{}"), ("prompts", "{}"),
                                            ("prior_file", "{}"), ("template_file", "{}"), ("on", "{}")])  # fmt: skip
def test_the_content_decides_and_not_the_name(key: str, named: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a photo of a cat\n")
    two.write_text("a photo of a cat\n")
    before = digest({key: named.format(one)})
    assert digest({key: named.format(two)}) == before
    two.write_text("a drawing of a cat\n")
    assert digest({key: named.format(two)}) != before
    two.unlink()
    assert digest({key: named.format(two)}) != before


@pytest.mark.parametrize("key", ["folder", "images", "masks"])
def test_of_a_folder_every_file_decides(key: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"1")
    found = {digest({key: str(tmp_path)})}
    (tmp_path / "cat" / "1.txt").write_text("a cat")
    found.add(digest({key: str(tmp_path)}))
    (tmp_path / "cat" / "1.png").write_bytes(b"2")
    found.add(digest({key: str(tmp_path)}))
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "2.png")
    found.add(digest({key: str(tmp_path)}))
    assert len(found) == 4


def test_what_names_no_file_stays(tmp_path: Path) -> None:
    given = {"images": 8, "masks": None, "prior_file": "none", "folder": "", "lamb": 0.1, "captions": "emoji"}
    assert named_files.beside(tmp_path, given) == given | {"captions": ["emoji"]}
    assert named_files.contents(given) == given | {"captions": ["emoji"]}
    assert named_files.contents({"captions": 5}) == {"captions": 5}, "the method refuses it in its own words"


def test_they_lie_beside_the_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        'suites: tiny\nedits:\n  - {targets: cat, parameters: {captions: "a dog; @my.txt", folder: ~/pictures, lamb: 1}}\n'
    )
    (entry,) = plans.read(tmp_path / "plan.yaml").edits
    assert entry.parameters == {"captions": ["a dog", f"@{tmp_path / 'my.txt'}"], "lamb": 1,
                                "folder": str(Path("~/pictures").expanduser())}  # fmt: skip


def test_every_parameter_that_names_a_file_is_known() -> None:
    configs = [methods.describe_config(methods.get(name)) for name in methods.METHODS]
    said = [(key, f"{key.replace('_', ' ')}: {field['doc']}") for config in configs for key, field in config.items()]
    names = {key for key, text in said if re.search(r"\b(file|folder)\b", text, re.IGNORECASE)}
    assert names - set(named_files.FILES) == set()
    assert {"captions", "folder", "prior_file", "images", "on"} <= names, "or the test looks at nothing"


def test_another_version_fits_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("a", targets=("cat",))
    before = fits.place(entry, tmp_path, "model")
    assert fits.place(entry, tmp_path, "model") == before != fits.place(entry, tmp_path, "another")
    monkeypatch.setattr(fits, "__version__", "99")
    assert fits.place(entry, tmp_path, "model") != before
