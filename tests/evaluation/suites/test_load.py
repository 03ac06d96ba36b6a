"""A suite in a file of one's own: what it gives, and that every mistake is one line that names file and remedy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from erasekit.errors import UsageError
from erasekit.evaluation.suites import load_suite

OWN: dict[str, Any] = {
    "name": "own", "version": 2, "title": "Own", "world": "any", "sampling": {"steps": 5, "guidance": 3},
    "judges": ["clip:somewhere"], "seeds": "3-5",
    "targets": {"fox": {"anchor": "dog", "synonyms": ["vixen"]}, "owl": {"synonyms": ["owlet"]}},
    "unrelated": ["car", "house", "fox"], "styles": ["oil"],
    "groups": [
        {"group": "plain", "count": 2, "seeds": 2, "texts": ["a photo of {a_target}", "{target}, {style} style"]},
        {"group": "synonym", "count": 1, "texts": ["{a_synonym}"]},
        {"group": "unrelated", "count": 9, "texts": ["{a_word} and {a_other}"]},
    ],
}  # fmt: skip


def written(tmp_path: Path, data: Any) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


def changed(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (copy.deepcopy(OWN) | changes).items() if value is not None}


def test_a_file_is_enough(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, OWN))
    found = suite.prompts(["fox"])
    assert {p.text for p in found if p.group == "plain"} == {"a photo of a fox", "fox, oil style"}
    assert [p.text for p in found if p.group == "synonym"] == ["a vixen"]
    # What is left of three words without the target: two, in two orders; `count` asks for more than there are.
    assert {p.text for p in found if p.group == "unrelated"} == {"a car and a house", "a house and a car"}
    assert {p.wanted for p in found if p.group == "unrelated"} == {("car", "house"), ("house", "car")}
    assert sorted(p.seeds for p in found if p.group == "plain") == [(3, 4), (5, 3)]
    assert (suite.version, suite.targets, suite.anchor("fox"), suite.anchor("owl")) == (2, ("fox", "owl"), "dog", None)
    assert suite.sampling.guidance == 3.0 and suite.sampling.scheduler == "" and suite.sampling.eta is None


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    first = load_suite(written(tmp_path, OWN)).digest
    elsewhere = tmp_path / "there"
    elsewhere.mkdir()
    assert load_suite(written(elsewhere, dict(reversed(OWN.items())))).digest == first
    for change in ({"seeds": [3, 4]}, {"judges": ["emoji"]}, {"sampling": {"steps": 6, "guidance": 3}}, {"version": 3}):
        assert load_suite(written(tmp_path, changed(**change))).digest != first, change


def test_real_images_of_a_suite_are_the_worlds_own(tmp_path: Path) -> None:
    own = changed(world="emoji", targets=["fox"], groups=[{"group": "unrelated", "texts": ["{a_word}"]}], unrelated=["car"],
                  styles=None)  # fmt: skip
    assert load_suite(written(tmp_path, own)).real == ""
    real = load_suite(written(tmp_path, {**own, "real": "emoji"}))
    assert real.real == "emoji" and real.digest != load_suite(written(tmp_path, own)).digest
    for wrong in ({**own, "real": "coco"}, changed(real="emoji")):
        with pytest.raises(UsageError, match=r"can only be emoji, in that world: give a folder of real images with --real"):
            load_suite(written(tmp_path, wrong))


def with_group(**group: Any) -> dict[str, Any]:
    return changed(groups=[{"group": "plain", "texts": ["{target}"], **group}])


@pytest.mark.parametrize(("data", "line"), [
    (changed(judges=["oracle"]), "unknown judge 'oracle': choose from emoji"),
    (changed(judges=[]), "names no judge"),
    (with_group(group="odd"), "unknown group 'odd': choose from plain"),
    (with_group(texts=["{cat}"]), r"unknown slot \{cat\} in '\{cat\}': the slots are target"),
    (with_group(texts=["{target"]), "a brace without its other half"),
    (with_group(texts=["{target} {background}"]), r"uses \{background\}, and the suite has none: give `backgrounds`"),
    (with_group(group="neighbour", texts=["{word}"]), r"uses \{neighbour\}, and 'fox' has none: give `neighbours`, or mark"),
    (with_group(texts=["{implicit}"]), r"'fox' has none: give `implicit`"),
    (with_group(group="unrelated", texts=["{target}"]), "belongs to no target"),
    (with_group(texts="short"), "no templates 'short': add them under `templates`"),
    (with_group(texts=[{"text": "{target} by {other}", "twin": "{target}"}]), "leave the concept out of it"),
    (with_group(texts=[]), "no texts"),
    (with_group(count=0), "count: 0: give a whole number"),
    (with_group(seeds=4), "seeds: 4, and the suite lists 3"),
    (with_group(of="complex"), "'complex' is no group before it"),
    (with_group(colour="red"), "unknown keys colour"),
    (with_group(without=["cat"]), "without: cat: choose from anchor"),
    (changed(groups=None), "has no prompts"),
    (changed(groups={"plain": 3}), "groups must be a list"),
    (changed(targets={}), "name at least one target"),
    (changed(targets={"fox": {"colour": "red"}}), "'fox' must be a word with fields of anchor"),
    (changed(targets={"fox": {"anchor": ["dog"]}}), "label and anchor of 'fox' must each be one word"),
    (changed(targets="weapons"), "targets 'weapons' is none of any"),
    (changed(targets=["Fox", "fox"]), "each once"),
    (changed(world="emoji", targets=["zebra"], unrelated=["car"]), "the emoji world has no object 'zebra'"),
    (changed(world="mars"), "world 'mars' is none of emoji, any"),
    (changed(seeds=[1, 1]), "a seed is listed twice"),
    (changed(seeds="many"), "seeds must be numbers"),
    (changed(sampling={"steps": 5}), "sampling needs steps and guidance"),
    (changed(sampling={"steps": 5, "guidance": "high"}), "sampling.guidance must be a number"),
    (changed(sampling={"steps": 0, "guidance": 1}), "sampling.steps must be a whole number"),
    (changed(version="new"), "version must be a whole number"),
    (changed(title=None, judges=None), "lacks title, judges"),
    (changed(colours=3), "unknown keys colours: its keys are name"),
    (changed(unrelated=[1, 2]), "unrelated must be a list of words"),
    ([1, 2], "is no list of"),
])  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, data: Any, line: str) -> None:
    with pytest.raises(UsageError, match=line) as raised:
        load_suite(written(tmp_path, data))
    assert "own.yaml" in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_are_not_there_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no suite 'emoji/odd': give a YAML file, or one of coco, emoji/multi-10"):
        load_suite("emoji/odd")
    with pytest.raises(UsageError, match=r"none\.yaml \(No such file"):
        load_suite(str(tmp_path / "none.yaml"))
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: [\n")
    with pytest.raises(UsageError, match=r"cannot read the suite .*bad.yaml") as raised:
        load_suite(str(bad))
    assert "\n" not in str(raised.value)


def test_optional_groups_leave_out_who_lacks_the_word(tmp_path: Path) -> None:
    groups = [{"group": "plain", "texts": ["{target}"]},
              {"group": "neighbour", "texts": ["{word}"], "optional": True, "count": 3}]  # fmt: skip
    data = changed(groups=groups, targets={"fox": {"neighbours": ["wolf", "owl"]}, "owl": {}})
    found = load_suite(written(tmp_path, data)).prompts()
    assert [p.text for p in found if p.group == "neighbour"] == ["wolf"], "the owl is a target itself"


def test_the_suite_in_the_docs_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/suites.md").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0])
    groups = {prompt.group for prompt in load_suite(str(path)).prompts(["vixen"])}
    assert groups == {"plain", "synonym", "complex", "implicit", "anchor", "twin", "neighbour", "unrelated"}
