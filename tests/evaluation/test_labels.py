"""What people call an edit: method, target, anchor; short, and never twice the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from erasekit.evaluation.labels import WORD, label, unique
from erasekit.evaluation.plan import Entry, files


def about(method: str = "erasepro", targets: tuple = ("cat",), anchors: tuple = ("dog",)) -> dict:
    return {"method": method, "targets": targets, "anchors": anchors}


@pytest.mark.parametrize(("said", "expected"), [
    (about(), "erasepro cat->dog"),
    (about(anchors=("",)), "erasepro cat"),
    (about(anchors=()), "erasepro cat"),
    (about("uce", ("cat", "red  fox", "car"), ("dog", "dog", "van")), "uce cat->dog +2"),
    (about("uce", ("a very long description of a thing",)), "uce a very long descr…->dog"),
])  # fmt: skip
def test_labels(said: dict, expected: str) -> None:
    assert label(said) == expected and len(label(said)) <= 3 * WORD + 10


def test_equal_labels_are_numbered() -> None:
    assert unique(["a", "b", "a", "a"]) == ["a", "b", "a 2", "a 3"]
    assert unique(["a", "a", "a 2"]) == ["a", "a 3", "a 2"], "never one that another has by right"
    assert len(set(unique(["a"] * 9 + ["a 2", "a 2"]))) == 11


def test_a_name_that_a_person_chose_stands() -> None:
    assert not any(
        entry.named for entry in files([Path("x/cat.safetensors"), Path("y/cat.safetensors"), Path("dog.st")])
    )
    assert Entry("strong", file=Path("cat.safetensors")).named
    assert not Entry("uce-cat", method="uce", targets=("cat",)).named
    assert Entry("strong", method="uce", targets=("cat",)).named
