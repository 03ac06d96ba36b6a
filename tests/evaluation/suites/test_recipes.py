"""The recipes are plans that can be run: known suites, methods and parameters, and targets that their suites measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import erasekit
from erasekit import methods
from erasekit.concept import EraseRequest
from erasekit.evaluation import plan
from erasekit.evaluation.metrics import METRICS, base_name
from erasekit.evaluation.suites import load_suite
from erasekit.evaluation.suites.load import needs_file, peek

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def read(path: Path) -> plan.Plan:
    found = plan.read(path)
    assert found.title and set(found.published) >= {"source", "note", "figures"}
    return found


def test_there_are_some() -> None:
    assert len(RECIPES) >= 10
    listed = (ROOT / "docs/recipes.md").read_text()
    assert all(f"`{path.stem}`" in listed for path in RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_can_be_run(path: Path) -> None:
    for_run = read(path)
    assert for_run.edits
    for entry in for_run.edits:
        method, preset = methods.resolve(entry.method)
        methods.make_config(method, dict(preset.values) | dict(entry.parameters))
        EraseRequest.build(entry.targets, anchor=entry.anchor, default_anchor=method.default_anchor)
        for name in for_run.suites:
            if needs_file(name):
                assert for_run.prompts is not None and all(peek(name).canonical(t) for t in entry.targets)
            else:
                assert load_suite(name).prompts(entry.targets, entry.anchor or ())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_figures_have_a_source(path: Path) -> None:
    published = yaml.safe_load(path.read_text())["published"]
    assert published["source"].startswith("arXiv ") and published["note"]
    for figure in published["figures"]:
        assert base_name(figure["metric"]) in {*METRICS, "seconds"} and figure["method"]
        assert isinstance(figure["value"], (int, float))


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem.endswith("emoji")], ids=lambda path: path.stem)
def test_no_edit_of_the_emoji_world_is_refused(path: Path) -> None:
    for entry in read(path).edits:
        edit = erasekit.erase("emoji", entry.targets, anchor=entry.anchor, method=entry.method, retain=entry.retain,
                              **entry.parameters)  # fmt: skip
        assert edit.self_check["relative_update"] > 0


@pytest.mark.parametrize("count", [10, 100])
def test_many_at_once_erases_the_suites_list(count: int) -> None:
    suite = load_suite(f"emoji/multi-{count}")
    entry = read(ROOT / f"recipes/erasepro-multi-{count}-emoji.yaml").edits[0]
    assert entry.targets == suite.targets
    assert entry.anchor == tuple(suite.anchor(target) for target in suite.targets)
