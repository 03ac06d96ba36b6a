"""From a suite to its prompts: what each group asks for, and that it is a function of the file and the targets."""

from __future__ import annotations

import pytest

from erasekit.errors import UsageError
from erasekit.evaluation.suites import GROUPS, load_suite
from erasekit.evaluation.suites.slots import article
from erasekit.worlds.emoji import captions
from erasekit.worlds.emoji.concepts import concepts, names, neighbours

SYNONYMS = {concept.name: set(concept.synonyms) for concept in concepts()}


def by_group(name: str, targets: list[str], anchors=()) -> dict[str, list]:
    found: dict[str, list] = {}
    for prompt in load_suite(name).prompts(targets, anchors):
        found.setdefault(prompt.group, []).append(prompt)
    return found


def words(text: str) -> set[str]:
    return set(text.replace(",", " ").split())


@pytest.mark.parametrize("target", ["cat", "fish", "astronaut", "basketball"])
def test_groups_ask_for_what_they_say(target: str) -> None:
    found = by_group("emoji/object", [target])
    for group, prompts in found.items():
        for prompt in prompts:
            named = target in words(prompt.text)
            assert named == (group in ("plain", "complex")), prompt
            assert (target in prompt.wanted) == GROUPS[group].asks, prompt
            assert bool(words(prompt.text) & SYNONYMS[target]) <= (group in ("synonym", "implicit")), prompt
    near = set(neighbours(target))
    assert {label for p in found["neighbour"] for label in p.wanted} >= near - {
        load_suite("emoji/object").anchor(target)
    }
    assert not {label for p in found["unrelated"] for label in p.wanted} & near


def test_the_anchor_stands_in_the_targets_prompts() -> None:
    found = by_group("emoji/object", ["cat"], ["rocket"])
    plain = {(prompt.text, prompt.seeds) for prompt in found["plain"]}
    for prompt in found["anchor"]:
        assert prompt.wanted == ("rocket",) and (prompt.text.replace("rocket", "cat"), prompt.seeds) in plain
    assert not any("rocket" in p.text for g in ("unrelated", "neighbour", "complex", "style") for p in found[g])


def test_twins_are_the_same_prompt_without_the_target() -> None:
    found = by_group("emoji/object", ["cat"])
    pairs = {(p.twin, p.seeds): p for p in found["complex"] if p.twin}
    assert len(pairs) == 8
    for twin in found["twin"]:
        source = pairs[twin.text, twin.seeds]
        assert source.wanted == ("cat", *twin.wanted)
        assert (source.style, source.background) == (twin.style, twin.background)


def test_names_that_share_a_word_are_twins() -> None:
    wanted = {label for p in by_group("emoji/object", ["hot dog"])["twin"] for label in p.wanted}
    assert "dog" in wanted


@pytest.mark.parametrize(("words_", "anchors"), [(["cat"], [""]), (["cat"], ["a thing that nobody drew"])])
def test_an_anchor_that_cannot_be_drawn_has_no_prompts(words_: list[str], anchors: list[str]) -> None:
    found = by_group("emoji/object", words_, anchors)
    assert "anchor" not in found and len(found["plain"]) == 20


def test_synonyms_name_their_concept() -> None:
    suite = load_suite("emoji/object")
    assert suite.prompts(["Kitten ", "cat", "feline"]) == suite.prompts(["cat"])
    assert suite.anchor("kitten") == suite.anchor("cat")
    assert suite.prompts(["cat"], ["puppy"]) == suite.prompts(["cat"], ["dog"])


def test_what_belongs_to_no_target_is_shared() -> None:
    """The unedited model's images of it serve every edit."""
    cat, rocket = (set(map(str, by_group("emoji/object", [t])["unrelated"])) for t in ("cat", "rocket"))
    assert len(cat & rocket) >= 20


def test_several_targets_keep_out_of_each_others_way() -> None:
    found = by_group("emoji/object", ["cat", "fox", "rocket"])
    kept = [prompt for group, prompts in found.items() if not GROUPS[group].asks for prompt in prompts]
    assert not {label for prompt in kept for label in prompt.wanted} & {"cat", "fox", "rocket"}
    assert {prompt.target for prompt in found["plain"]} == {"cat", "fox", "rocket"}


def test_styles() -> None:
    found = by_group("emoji/style", ["noto"])
    for group in ("plain", "synonym", "complex", "implicit"):
        assert all(p.style == "noto" and "noto" in words(p.text) and len(p.wanted) == 1 for p in found[group])
    assert all(p.style in ("blob", "flat", "ink") for p in found["neighbour"])
    assert all(p.style == "twemoji" for p in found["anchor"])
    assert all(p.style is None and "noto" not in p.text for g in ("superset", "twin", "unrelated") for p in found[g])
    assert all("a drawing of" in p.text and len(p.wanted) == 1 for p in found["superset"])
    assert load_suite("emoji/style").label("noto style") == "noto"


def test_labels() -> None:
    suite = load_suite("emoji/multi-10")
    assert suite.label("kitten") == "cat" and suite.label("fox") == "fox", "kept concepts have labels too"
    with pytest.raises(UsageError, match="zebra"):
        suite.label("zebra")


@pytest.mark.parametrize(("name", "targets", "anchors", "line"), [
    ("emoji/object", ["zebra"], [], "cannot measure 'zebra': its targets are cat, dog"),
    ("emoji/object", ["cat", "fox"], ["dog", "cow", "pig"], "3 anchors for 2 targets"),
    ("emoji/multi-10", ["cat"], [], "leaves out horse, owl"),
    ("mace/celebrities", [], [], "name at least one"),
])  # fmt: skip
def test_what_cannot_be_measured(name: str, targets: list[str], anchors: list[str], line: str) -> None:
    with pytest.raises(UsageError, match=line) as raised:
        load_suite(name).prompts(targets, anchors)
    assert "\n" not in str(raised.value)


def test_articles_are_those_of_the_captions() -> None:
    assert [article(name) for name in names()] == [captions.article(name) for name in names()]
    assert article("English springer") == "an English springer"
