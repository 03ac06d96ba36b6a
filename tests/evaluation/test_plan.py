"""Plans: what a YAML file means, and one line for each mistake in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from erasekit.errors import UsageError
from erasekit.evaluation import plan as plans
from erasekit.evaluation.plan import Entry, Plan


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


def test_edits_times_methods_times_suites(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    plan = plans.read(written(tmp_path, """
suites: [emoji/object, mine.yaml]
never: [cat=emoji-never-cat]
seed: 3
edits:
  - cat.safetensors
  - {file: sub/dog.safetensors, name: other}
  - {targets: cat, anchor: dog, method: [erasepro, uce], retain: [fox, wolf]}
  - {targets: [cat, dog], anchor: [fox, fox], method: uce, parameters: {lamb: 0.5}, seed: 9}
"""))  # fmt: skip
    assert plan.suites == ("emoji/object", str(tmp_path / "mine.yaml"))
    assert plan.never == ("cat=emoji-never-cat",)
    assert [entry.name for entry in plan.edits] == ["cat", "other", "erasepro-cat", "uce-cat", "uce-cat-and-1-more"]
    first, second, third, fourth, last = plan.edits
    assert (first.file, second.file) == (tmp_path / "cat.safetensors", tmp_path / "sub/dog.safetensors")
    assert third.targets == fourth.targets == ("cat",) and third.anchor == ("dog",) and third.retain == ("fox", "wolf")
    assert (third.method, fourth.method, third.seed, last.seed) == ("erasepro", "uce", 3, 9)
    assert last.parameters == {"lamb": 0.5} and last.anchor == ("fox", "fox")


def test_what_decides_a_fitted_edit_decides_its_digest() -> None:
    entry = Entry("a", targets=("cat",), anchor=("dog",))
    others = [Entry("a", targets=("dog",), anchor=("dog",)), Entry("a", targets=("cat",)),
              Entry("a", targets=("cat",), anchor=("dog",), seed=1),
              Entry("a", method="uce", targets=("cat",), anchor=("dog",)),
              Entry("a", targets=("cat",), anchor=("dog",), parameters={"ridge": 1})]  # fmt: skip
    assert len({entry.digest, *(other.digest for other in others)}) == 6
    assert Entry("b", targets=("cat",), anchor=("dog",)).digest == entry.digest, "a name decides nothing"


@pytest.mark.parametrize(("text", "message"), [
    ("suites: tiny\nedit: x", "has edit: its keys are"),
    ("suites: tiny\nedits: [{file: a, method: uce}]", "an edit file, has method"),
    ("suites: tiny\nedits: [{method: uce}]", "needs either file"),
    ("suites: tiny\nedits: [{targets: [1]}]", "targets must be a word"),
    ("suites: tiny\nedits: [{targets: []}]", "targets is empty"),
    ("suites: tiny\nseed: x", "seed must be a whole number"),
    ("suites: tiny\nbatch: 0", "--batch"),
    ("suites: tiny\ncontrol: sometimes", "--control is one of random, none"),
    ("suites: [tiny, tiny]", "named twice"),
    ("suites: tiny\nedits: [a/cat.safetensors, b/cat.safetensors]", "two edits would be called 'cat'"),
    ("model: emoji", "no suite"),
    ("suites: tiny\nprompts: {other: a.csv}", "prompts are given for other, which is no suite here: name tiny"),
    ("suites: tiny\nprompts: {tiny: [a.csv]}", "prompts.tiny must be a file"),
    ("suites: tiny\nprompts: [a.csv]", "prompts must be a list of `name: value` lines"),
    ("suites: tiny\npublished: {date: 2025-08-06}", "published.date must be a text or a finite number, not 2025-08-06"),
    ("suites: tiny\npublished: {figures: 3}", "published.figures must be a list"),
    ("suites: tiny\npublished: {figures: [0.5]}", "published.figures[0] must be a list of `name: value` lines"),
    ("suites: tiny\npublished: {figures: [{metric: x, method: y}]}", "published.figures[0] has no value"),
    ("suites: tiny\npublished: {figures: [{metric: x, value: 1}]}", "published.figures[0] has no method"),
    ("suites: tiny\npublished: {figures: [{metric: x, method: y, value: many}]}", "value must be a number, not 'many'"),
    ("suites: tiny\npublished: {figures: [{metric: x, method: y, value: .nan}]}", "figures[0].value must be a text or a"),
    ("suites: tiny\npublished: {figures: [{metric: x, method: y, value: 1, group: 2}]}", "group must be a word"),
    ("suites: tiny\nedits: [{targets: a, parameters: {lamb: 2025-08-06}}]", "edits[0].parameters.lamb must be a text"),
    ("suites: tiny\nreal: [coco]", "real must be a folder of images, or the word emoji, not ['coco']"),
    ("suites: tiny\nreal: ''", "real must be a folder of images, or the word emoji, not ''"),
    ("- a", "must be a list of `name: value` lines"),
    (": [", "cannot read the plan"),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        plans.read(written(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_a_name_that_is_taken_is_called_after_its_folder_and_renames_no_other(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/edit.safetensors", "c.safetensors", "b/Edit.safetensors", "d/edit.safetensors")]
    entries = plans.files(paths)
    assert [entry.name for entry in entries] == ["edit", "c", "b-Edit", "d-edit"]
    assert all(plans.files(paths[:n]) == entries[:n] for n in range(4)), "what is added behind changes no name"
    assert not any(entry.named for entry in entries)
    with pytest.raises(UsageError, match="two edits would be called 'edit'"):
        Plan(("tiny",), edits=plans.files([paths[0], paths[0]]))


def test_a_plan_knows_the_bytes_that_it_was_read_from(tmp_path: Path) -> None:
    path = written(tmp_path, "suite: tiny\ntargets: cat\n")
    assert plans.read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and Plan(("tiny",)).sha256 == ""
    with pytest.raises(UsageError, match="has sha256"):
        plans.read(written(tmp_path, "suite: tiny\nsha256: made up\n"))


def test_a_missing_plan_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the plan"):
        plans.read(tmp_path / "none.yaml")


def test_defaults() -> None:
    plan = Plan(("tiny",))
    assert (plan.model, plan.control, plan.batch, plan.seed) == ("emoji", "random", 16, 0)


def test_a_home_folder_is_expanded_and_what_is_empty_is_left_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "m").mkdir(parents=True)
    text = "suites: tiny\nmodel: ~/m\ntitle:\nbatch:\nedits:\n  - ~/cat.safetensors\n  - {targets: cat, name: , anchor: }\n"
    plan = plans.read(written(tmp_path, text))
    assert (plan.title, plan.batch, plan.model) == ("", 16, str(tmp_path / "home/m"))
    assert plan.edits[0].file == tmp_path / "home/cat.safetensors"
    assert plan.edits[1].name == "erasepro-cat" and plan.edits[1].anchor is None


def test_a_prompt_file_for_all_suites_or_for_each(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    one = plans.read(written(tmp_path, "suites: [i2p, coco]\nprompts: a.csv\n"))
    assert [one.prompts_of(name) for name in one.suites] == [tmp_path / "a.csv"] * 2
    each = plans.read(written(tmp_path, "suites: [i2p, mine.yaml, coco]\nprompts: {i2p: a.csv, mine.yaml: /b.csv}\n"))
    assert [each.prompts_of(name) for name in each.suites] == [tmp_path / "a.csv", Path("/b.csv"), None]
    assert Plan(("a",)).prompts_of("a") is None


def test_published_figures_are_kept(tmp_path: Path) -> None:
    text = "suites: tiny\npublished: {source: x, figures: [{metric: m, group: g, method: y, value: 1, year: 2025}]}\n"
    found = plans.read(written(tmp_path, text)).published
    assert found == {"source": "x", "figures": [{"metric": "m", "group": "g", "method": "y", "value": 1, "year": 2025}]}


def test_real_images_lie_beside_the_plan_or_are_the_worlds_own(tmp_path: Path, monkeypatch) -> None:
    def real(line: str) -> str | None:
        return plans.read(written(tmp_path, f"suites: [emoji/object]\n{line}\n")).real

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert real("real: coco/val2014") == str(tmp_path / "coco/val2014") and real("real: /coco") == "/coco"
    assert (real("real: emoji"), real("real:"), real("")) == ("emoji", None, None)
    assert (real("real: ./emoji"), real("real: ~/coco")) == (str(tmp_path / "emoji"), str(tmp_path / "home/coco"))
    with pytest.raises(UsageError, match="real must be a folder"):
        Plan(("tiny",), real=" ")


def test_weights_lie_beside_the_plan(tmp_path: Path) -> None:
    plan = plans.read(written(tmp_path, "suites: [emoji/object]\nlpips: weights\ninception: /elsewhere/inception.pth\n"))
    assert (plan.lpips, plan.inception) == (tmp_path / "weights", Path("/elsewhere/inception.pth"))
    assert plans.read(written(tmp_path, "suites: [emoji/object]\n")).lpips is None
