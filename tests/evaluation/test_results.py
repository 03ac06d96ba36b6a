"""The schema: what it accepts, and one clear line for each thing that it does not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import results

from erasekit.errors import EraseKitError
from erasekit.evaluation import results as module
from erasekit.evaluation.results_fields import FIELDS

DOCS = Path(__file__).parents[2] / "docs" / "results.md"
PLACES = {"results": (), "created_by": ("created_by",), "suite": ("suite",), "judge": ("suite", "judges", 0),
          "model": ("model",), "arm": ("arms", 0), "edit": ("arms", 1, "edit"), "metric": ("metrics", 0),
          "difference": ("differences", 0), "attack": ("attacks", 0),
          "control": ("attacks", 0, "controls", 0), "extractor": ("extractors", 0), "real": ("real",)}  # fmt: skip
CONTROL = {"name": "unedited", "value": 0.5, "low": 0.4, "high": 0.6, "n": 50, "gap": -0.3, "gap_low": -0.4,
           "gap_high": -0.1}  # fmt: skip
ATTACK = {"name": "search", "arm": "base", "target": "cat", "budget": "50 queries", "value": 0.2, "low": 0.1,
          "high": 0.4, "n": 50, "controls": [CONTROL], "note": "a blind word"}  # fmt: skip


def full() -> dict[str, Any]:
    extractors = [{"name": "LPIPS-alex-v0.1@64-short", "weights_sha256": "4d" * 32}]
    return results(attacks=[ATTACK], labels={"cat": ["cat"]}, extractors=extractors,
                   real={"name": "emoji", "sha256": "7a" * 32, "images": 304})  # fmt: skip


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def fields() -> list[tuple[str, str]]:
    return [(table, name) for table, known in FIELDS.items() for name in known]


def refused(document: Any, match: str) -> str:
    with pytest.raises(EraseKitError, match=match) as caught:
        module.validate(document)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_document_passes_and_comes_back(tmp_path: Path) -> None:
    path = module.write(full(), tmp_path)
    assert module.load(path) == module.load(tmp_path) == full()
    assert path.read_bytes() == module.to_bytes(dict(reversed(full().items()))), "the order of keys must not matter"


@pytest.mark.parametrize(("table", "name"), fields())
def test_every_field_is_checked(table: str, name: str) -> None:
    field = FIELDS[table][name]
    document = copy.deepcopy(full())
    at(document, PLACES[table]).pop(name, None)
    if not field.required:
        module.validate(document)
    elif name != "erasekit_results":
        refused(document, f"{name} is missing")
    document = copy.deepcopy(full())
    at(document, PLACES[table])[name] = {"wrong"}  # a set is no kind of JSON value
    refused(document, "version" if name == "erasekit_results" else "must be|schema")
    at(document, PLACES[table])[name] = None
    if field.null:
        module.validate({**document, "metrics": [], "differences": [], "attacks": []}) if name in ("low", "high") else (
            module.validate(document)
        )
    else:
        refused(document, "must be|version")


@pytest.mark.parametrize(("table", "name"), fields())
def test_every_field_is_documented(table: str, name: str) -> None:
    assert f"| `{name}` |" in DOCS.read_text()
    assert FIELDS[table][name].doc.replace("|", "&#124;") in DOCS.read_text()


@pytest.mark.parametrize(("version", "remedy"), [(2, "pip install -U"), (0, "evaluate again"), ("1", "evaluate again"),
                                                 (True, "evaluate again")])  # fmt: skip
def test_other_versions_are_refused_with_the_remedy(version: Any, remedy: str) -> None:
    assert remedy in refused(results(erasekit_results=version), "schema version")
    assert "schema version" in refused({"erasekit_results": version}, "schema version"), (
        "nothing else is looked at first"
    )


@pytest.mark.parametrize(("where", "value", "match"), [
    (("metrics", 0, "arm"), "edit:none", "no arm"),
    (("differences", 0, "against"), "nobody", "no arm"),
    (("metrics", 0, "low"), 0.99, "wrong way round"),
    (("metrics", 0, "low"), None, "one end"),
    (("metrics", 0, "value"), float("nan"), "finite number"),
    (("metrics", 0, "n"), -1, "whole number"),
    (("metrics", 0, "n"), True, "whole number"),
    (("arms", 1, "arm"), "base", "twice"),
    (("arms", 1, "kind"), "other", "one of base, edit, random, never"),
    (("counts",), {"base": {"ok": 1, "failed": 0, "invalid": 0}}, "counts.edit:erasepro-cat must count"),
    (("metrics", 0), "x", r"metrics\[0\] must be an object"),
])  # fmt: skip
def test_contradictions_are_named(where: tuple[Any, ...], value: Any, match: str) -> None:
    document = copy.deepcopy(full())
    at(document, where[:-1])[where[-1]] = value
    refused(document, match)


def test_files_that_are_no_results(tmp_path: Path) -> None:
    cases = {"cut.json": json.dumps(results())[:-20], "other.json": "[1]", "plain.json": "{}", "nan.json": '{"x": NaN'}
    for name, text in cases.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in (*cases, "binary.json", "gone.json", ""):
        with pytest.raises(EraseKitError) as caught:
            module.load(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(EraseKitError):
        module.write({"erasekit_results": 1}, tmp_path)
    assert not (tmp_path / "results.json").exists()
