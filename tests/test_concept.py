"""What a request accepts, what it refuses, and that it says which concept is at fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasekit.concept import EraseRequest
from erasekit.errors import UsageError


def test_one_target_with_the_methods_default_anchor():
    request = EraseRequest.build(" cat ", default_anchor="animal")
    assert (request.targets, request.anchors, request.retain, request.seed) == (("cat",), ("animal",), (), 0)


def test_one_anchor_serves_all_targets():
    assert EraseRequest.build(["cat", "dog"], anchor="fox").anchors == ("fox", "fox")


def test_one_anchor_for_each_target():
    assert EraseRequest.build(["cat", "dog"], anchor=["fox", ""]).anchors == ("fox", "")


def test_the_empty_anchor_is_the_empty_prompt():
    assert EraseRequest.build("cat", anchor="").anchors == ("",)


def test_spaces_are_tidied_and_retained_concepts_kept_once_in_order():
    request = EraseRequest.build("van  gogh", anchor=" a\tpainting", retain=["monet", " Monet ", "klee", "monet"])
    assert (request.targets, request.anchors) == (("van gogh",), ("a painting",))
    assert request.retain == ("monet", "klee")


@pytest.mark.parametrize(
    ("targets", "options", "words"),
    [
        ([], {}, "no target"),
        ("", {}, "empty"),
        (["cat", "  "], {}, "empty"),
        (["cat", "Cat "], {}, "'Cat' is given twice"),
        ("cat", {"anchor": " CAT"}, "its own anchor"),
        (["cat", "dog"], {"anchor": ["fox", "dog"]}, "'dog' is its own anchor"),
        ("cat", {"retain": ["dog", "cat"]}, "'cat' is also among the retained"),
        (["cat", "dog", "fox"], {"anchor": ["a", "b"]}, "2 anchors for 3 targets"),
        ("cat", {"anchor": ["a", "b"]}, "2 anchors for 1 target:"),
        ("cat", {"anchor": []}, "0 anchors"),
    ],
)
def test_a_wrong_request_is_one_line_that_names_the_fault(targets, options, words):
    with pytest.raises(UsageError, match=words) as caught:
        EraseRequest.build(targets, **options)
    assert "\n" not in str(caught.value)


def test_a_target_equal_to_the_default_anchor_is_refused():
    with pytest.raises(UsageError, match="own anchor"):
        EraseRequest.build("animal", default_anchor="animal")


def test_characters_compare_composed():
    with pytest.raises(UsageError, match="given twice"):
        EraseRequest.build(["caf\u00e9", "cafe\u0301"], anchor="x")


def test_what_is_dropped_is_noted():
    request = EraseRequest.build("cat", anchor="dog", retain=["fox", "FOX", " ", "", "\n", "wolf"])
    assert request.retain == ("fox", "", "wolf")  # the empty string is the empty prompt, a blank line is none
    assert request.notes == ("retained concepts dropped as blank: 2 of 6",
                             "retained concepts dropped as repetitions: 1 of 6")  # fmt: skip
    assert EraseRequest.build("cat", anchor="dog", retain=["fox"]).notes == ()


@pytest.mark.parametrize(("retain", "held"), [("black cat", True), ("cat's eye", True), ("Cat-like", True),
                                              ("catalog", False), ("bobcat", False), ("concatenate", False)])  # fmt: skip
def test_targets_are_found_as_whole_words(retain, held):
    assert bool(EraseRequest.build("cat", anchor="dog", retain=[retain]).notes) == held


def test_notes_and_cache_are_no_part_of_the_request(tmp_path):
    one = EraseRequest.build("cat", anchor="dog", retain=["fox", "fox"], retain_cache=tmp_path)
    assert one.notes and one == EraseRequest.build("cat", anchor="dog", retain=["fox"])


def test_a_direct_request_is_checked_too():
    with pytest.raises(UsageError, match="1 anchors for 2 targets"):
        EraseRequest(targets=("cat", "dog"), anchors=("fox",))


@given(st.lists(st.text("abc ", min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_built_request_never_holds_an_empty_or_repeated_target(names):
    try:
        request = EraseRequest.build(names, anchor="x")
    except UsageError:
        return
    assert all(target == target.strip() and target for target in request.targets)
    assert len(set(request.targets)) == len(request.targets) == len(request.anchors)
