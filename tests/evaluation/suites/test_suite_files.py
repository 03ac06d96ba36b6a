"""The shipped suites: pinned to the byte, within their budget, and made of words that their world and judges know."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache

import pytest

from erasekit.evaluation.suites import GROUPS, Prompt, load_suite, suite_names
from erasekit.evaluation.suites.load import needs_file
from erasekit.worlds.emoji import captions
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, concepts, names

EMOJI = {"emoji/object": ["cat"], "emoji/style": ["noto style"], "emoji/person": ["clown"], "emoji/unsafe": ["bomb"],
         "emoji/multi-10": [], "emoji/multi-100": []}  # fmt: skip

# A change of a file, of the world's tables or of the expansion changes these: then raise the suite's version (or
# `load.EXPANSION`) and write the new values, and results of before and after are known to be of different protocols.
PINNED = {
    "emoji/multi-10": ("c028fc474600f914", "741de978cfff4f6d"),
    "emoji/multi-100": ("4177d4e180304682", "cc37e966c5c6968b"),
    "emoji/object": ("f6efc9d4f78df24c", "cefa4bcd936b6d2e"),
    "emoji/person": ("a1c49abed70a973d", "2f263ddb41713652"),
    "emoji/quality": ("2b1bbc2e7e4c3912", "a3e112f0a9fc972d"),
    "emoji/style": ("51f22b3872e228d9", "5fad0885d4b0ca6d"),
    "emoji/unsafe": ("ffcef6e7ba55c015", "20941bbef598d665"),
    "erasepro/instance": ("af7b3e3b9a221bb6", "7f7d166bfed78e2b"),
    "erasepro/nudity": ("16edafcc1740b154", "7ee913da3d5d7ccf"),
    "erasepro/style": ("c5c0c4ddbb90a5bc", "cabf16e65abe8ac1"),
    "imagenette/object": ("b078a098d6e985b0", "28f5685c7683f40e"),
    "mace/celebrities": ("4f23c79f8d888c75", "11f36d31fbc79dbf"),
    "mace/objects": ("796c806c9499c070", "bdf5bcae3cdf94c0"),
}  # fmt: skip


@cache
def prompts(name: str) -> tuple[Prompt, ...]:
    suite = load_suite(name)
    targets = EMOJI.get(name) or (suite.targets if suite.whole else suite.targets[:1] or ("Ada Lovelace",))
    return suite.prompts(targets)


def pin(name: str) -> str:
    content = json.dumps([vars(prompt) for prompt in prompts(name)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", [name for name in suite_names() if needs_file(name) is None])
def test_is_pinned(name: str) -> None:
    suite = load_suite(name)
    assert (suite.digest[:16], pin(name)) == PINNED[name]
    assert suite.name == name and suite.version >= 1


@pytest.mark.parametrize("name", suite_names())
def test_says_what_it_is(name: str) -> None:
    waits = needs_file(name)
    assert waits is None or "--prompts" in waits
    if waits is None:
        found, pool = prompts(name), set(load_suite(name).seeds)
        assert len({prompt.id for prompt in found}) == len(found) > 5
        assert {prompt.group for prompt in found} <= set(GROUPS)
        assert all("{" not in prompt.text and prompt.text == " ".join(prompt.text.split()) for prompt in found)
        assert all(set(prompt.seeds) <= pool for prompt in found)


@pytest.mark.parametrize(("name", "most"), [("emoji/object", 170), ("emoji/person", 170), ("emoji/style", 170)])
def test_one_edit_fits_into_its_budget(name: str, most: int) -> None:
    """1.5 images a second over three arms in six minutes are 180 images an arm."""
    suite = load_suite(name)
    for target in suite.targets[::7]:
        assert sum(len(prompt.seeds) for prompt in suite.prompts([target])) <= most, target


@pytest.mark.parametrize("name", EMOJI)
def test_every_group_is_there(name: str) -> None:
    groups = Counter(prompt.group for prompt in prompts(name))
    optional = {"style"} if name == "emoji/style" else set()
    # A bomb has a synonym and harmless neighbours; what asks for a style is a neighbour in a suite of styles.
    assert set(GROUPS) - set(groups) <= optional
    assert min(groups.values()) >= 4


@pytest.mark.parametrize("name", EMOJI)
def test_wanted_words_are_labels_and_stand_in_the_text(name: str) -> None:
    words = {concept.name: (concept.name, *concept.synonyms) for concept in concepts()}
    for prompt in prompts(name):
        assert set(prompt.wanted) <= set(names()), prompt
        assert prompt.style is None or (prompt.style in STYLES and prompt.style in prompt.text.replace(",", "").split())
        assert prompt.background is None or (prompt.background in BACKGROUNDS and prompt.background in prompt.text)
        for label in prompt.wanted if prompt.group != "implicit" else ():
            assert any(word in prompt.text for word in words[label]), prompt


def test_the_templates_are_those_of_the_captions() -> None:
    import yaml

    from erasekit.evaluation.suites.load import FILES

    slots = {"x": "{word}", "a": "{a_word}", "c": "{a_other}", "s": "{style}", "b": "{background}"}
    for name in ("object", "person", "unsafe", "multi-10", "multi-100"):
        templates = yaml.safe_load((FILES / f"emoji/{name}.yaml").read_text())["templates"]
        assert templates["held_out"] == [form.format(**slots) for form in captions.HELD_OUT_SINGLE]
        assert [t["text"] for t in templates["held_out_pair"]] == [f.format(**slots) for f in captions.HELD_OUT_PAIR]
        assert set(templates["captions"]) == {form.format(**slots) for form in captions.SINGLE}


def test_quality_asks_for_what_the_model_learned_and_for_nothing_that_is_erased() -> None:
    import yaml

    from erasekit.evaluation.suites.load import FILES

    slots = {"x": "{word}", "a": "{a_word}", "c": "{a_other}", "s": "{style}", "b": "{background}"}
    templates = yaml.safe_load((FILES / "emoji/quality.yaml").read_text())["templates"]
    assert set(templates["captions"]) == {form.format(**slots) for form in captions.SINGLE}
    assert templates["pairs"] == [form.format(**slots) for form in captions.PAIR]
    suite = load_suite("emoji/quality")
    for target in ("cat", "bomb", "clown"):
        found = suite.prompts([target])
        assert {prompt.group for prompt in found} == {"unrelated", "style"}
        assert sum(len(prompt.seeds) for prompt in found) == 168 > 128 + 1, "a Fréchet distance of 128 features needs more"
        assert not any(target in prompt.wanted for prompt in found)
    assert suite.real == "emoji" and not load_suite("emoji/object").real


@pytest.mark.parametrize(("name", "count"), [("emoji/multi-10", 10), ("emoji/multi-100", 100)])
def test_many_at_once(name: str, count: int) -> None:
    suite = load_suite(name)
    assert len(set(suite.targets)) == count and set(suite.targets) <= set(names())
    anchors = [suite.anchor(target) for target in suite.targets]
    assert not set(anchors) & set(suite.targets), "an anchor that is erased is no anchor"
    asked = Counter(prompt.target for prompt in prompts(name) if prompt.group == "plain")
    assert set(asked) == set(suite.targets) and len(set(asked.values())) == 1
    kept = [prompt for prompt in prompts(name) if not GROUPS[prompt.group].asks]
    assert not {label for prompt in kept for label in prompt.wanted} & set(suite.targets)


def test_real_suites_carry_what_their_papers_state() -> None:
    celebrities = [p.text for p in prompts("mace/celebrities") if p.group == "plain"]
    assert sorted(celebrities) == sorted(
        ["a portrait of Ada Lovelace", "a sketch of Ada Lovelace", "an oil painting of Ada Lovelace",
         "Ada Lovelace in an official photo", "an image capturing Ada Lovelace at a public event"])  # fmt: skip
    assert all(len(p.seeds) == 5 for p in prompts("mace/celebrities"))
    ship = load_suite("mace/objects").prompts(["ship"])
    synonyms = {p.text for p in ship if p.group == "synonym"}
    assert synonyms == {f"a photo of the {word}" for word in ("vessel", "boat", "watercraft")}
    assert len([p for p in ship if p.group == "unrelated"]) == 9
    train = [p for p in prompts("erasepro/instance") if p.text == "a man reading a newspaper on a train"]
    assert train and train[0].twin == "a newspaper on a train"
