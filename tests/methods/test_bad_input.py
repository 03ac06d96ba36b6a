"""Slips in a request, whatever the method: one clear line or one warning each, and never a silent average."""

from __future__ import annotations

import re

import pytest
import torch

import erasekit
from erasekit.backbones import backbone
from erasekit.concept import EraseRequest, as_read
from erasekit.errors import InfeasibleError, UsageError
from erasekit.methods import CACHING, METHODS, get, trains
from erasekit.methods._cross import silent
from erasekit.methods._features import last_subject

SHARED = {"targets": ["cat fox", "cat style"], "anchor": ["dog fox", "photo style"]}
UNKNOWN = [
    "\u200b",
    "\u732b",
    "\U0001f431",
]  # a space without width, and signs that the tiny tokenizer has no token for


def warned(pipe: object, targets: object = "cat", **options) -> list[str]:
    options = {"anchor": "dog", "method": "uce", "tokens": "last"} | options
    return erasekit.erase(pipe, targets, **options).self_check["warnings"]


def test_a_shared_first_token_is_named_where_it_is_a_conflict(sd1) -> None:
    with pytest.raises(InfeasibleError, match="share the token 'cat'") as error:
        erasekit.erase(sd1, **SHARED, method="erasepro")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_targets_that_read_the_same_and_differ_in_their_anchor_are_refused(name: str, sd1) -> None:
    with pytest.raises(UsageError, match="reads the targets 'cat-fox' and 'cat - fox' as the same") as error:
        erasekit.erase(sd1, ["cat-fox", "cat - fox"], anchor=["dog", "photo"], method=name)
    assert "\n" not in str(error.value)
    same = as_read(EraseRequest.build(["cat-fox", "cat - fox"], anchor=["dog", " DOG"]), backbone(sd1))
    assert len(same.targets) == 2, "with one anchor there is nothing to choose between"


@pytest.mark.parametrize("method", [("rece", {}), ("speed", {"tokens": "all", "tau": 100.0})])
def test_a_shared_first_token_is_said_where_rows_are_paired_by_position(method, sd1) -> None:
    name, parameters = method
    lines = erasekit.erase(sd1, **SHARED, method=name, **parameters).self_check["warnings"]
    (line,) = [line for line in lines if "share the token 'cat' at position 1" in line]
    assert "mix of both anchors" in line and "'cat fox' -> 'dog fox'" in line
    alike = erasekit.erase(sd1, ["cat fox", "cat style"], anchor="dog", method=name, **parameters)
    assert not any("share the token" in line for line in alike.self_check["warnings"])


@pytest.mark.parametrize("name", [name for name in METHODS if not trains(get(name)) and name != "irece"])
def test_a_retain_cache_is_used_or_said_to_be_of_no_use(name: str, sd1, tmp_path) -> None:
    edit = erasekit.erase(sd1, "cat", anchor="dog", retain=["fox"], method=name, retain_cache=tmp_path / "cache")
    said = any("--retain-cache" in line for line in edit.self_check["warnings"])
    assert (tmp_path / "cache").exists() == (name in CACHING) == (not said)


@pytest.mark.parametrize("method", [("mace-refine", {"preserve_weight": 1e9}), ("trce-text", {"retain_weight": 1e9})])
def test_a_prior_that_spans_a_target_says_what_is_left_of_it(method, sd1) -> None:
    name, parameters = method
    given = {"anchor": "dog", "method": name}
    lines = erasekit.erase(sd1, ["cat"], retain=["a cat", "cat fox", "fox", "style"], **given, **parameters)
    (line,) = [line for line in lines.self_check["warnings"] if "erasable" in line]
    assert "1 of 1 targets" in line and "'cat' " in line
    quiet = erasekit.erase(sd1, ["cat"], **given, **parameters)
    assert not any("erasable" in line for line in quiet.self_check["warnings"])


def test_what_is_left_counts_the_ridge_that_the_retained_bring(sd1) -> None:
    """A prior that is nearly all ridge: what is retained makes it larger, and the target is held back by as much."""
    options = {"templates": "none", "preserve_weight": 2.4e6, "eps": 1e3}
    held, free = (erasekit.erase(sd1, "cat", anchor="dog", retain=retain, method="mace-refine", **options).self_check
                  for retain in (["fox"], []))  # fmt: skip
    (line,) = [line for line in held["warnings"] if "erasable" in line]
    left = free["prior"]["ridge"] / held["prior"]["ridge"]
    assert left < 0.4 and abs(float(re.search(r"'cat' (\d+)%", line)[1]) / 100 - left) < 0.03


def test_a_solve_that_fills_the_width_is_said(sd1) -> None:
    many = erasekit.erase(sd1, [a + b for a in "bcdfgh" for b in "kmnpqr"], anchor="dog", method="uce", tokens="last",
                          lamb=1e-9)  # fmt: skip
    few = erasekit.erase(sd1, "cat", anchor="dog", method="uce", tokens="last")
    assert any("fills 32 of 32 directions" in line for line in many.self_check["warnings"])
    assert not few.self_check["warnings"]
    assert {(r["used"], r["width"]) for r in few.self_check["sites"]} == {(1, 32)}


def test_a_shared_first_token_is_no_conflict_at_the_last_one(sd1) -> None:
    """UCE reads the last subject token, which knows the whole phrase: each target still goes to its own anchor."""
    edit = erasekit.erase(sd1, **SHARED, method="uce", tokens="last")
    assert edit.self_check["residual"] < 0.1 and not edit.self_check["warnings"]


def test_a_retained_prompt_that_contains_a_target_is_named(sd1) -> None:
    (line,) = warned(sd1, retain=["a CAT, a dog", "catalog", "a photo"])
    assert "contain a target" in line and ": 1, 'a CAT, a dog' (cat);" in line
    many = warned(sd1, ["cat", "red fox"], retain=[f"{n} red  fox" for n in "abcdef"])
    assert ": 6, such as 'a red fox' (red fox), " in many[0]
    with pytest.raises(UsageError, match="also among the retained"):
        warned(sd1, retain=["Cat"])


def test_a_retained_list_that_spans_a_target_says_what_is_left_of_it(sd1) -> None:
    words = [a + " " + b for a in "abdeghij" for b in "klmnopqr"]  # 64 last tokens in a width of 32
    (line,) = [w for w in warned(sd1, ["cat", "fox"], retain=words, preserve_scale=1e4) if "erasable" in w]
    features = last_subject(backbone(sd1), [*words, "cat", "fox"], progress=silent, what="")
    kept, asked = features[:, :-2], features[:, -2:]
    inside = torch.linalg.inv(0.5 * torch.eye(32, dtype=torch.float64) + 1e4 * kept @ kept.T)
    reach = (asked * (inside @ asked)).sum(0)
    alone = asked.square().sum(0) / 0.5
    left = (reach / (1 + reach)) / (alone / (1 + alone))
    assert f"'cat' {float(left[0]):.0%}" in line and f"'fox' {float(left[1]):.0%}" in line and "2 of 2 targets" in line
    assert not warned(sd1, ["cat", "fox"], retain=words[:3])


def test_more_targets_than_the_width_are_a_compromise_aloud(sd1) -> None:
    targets = [a + b for a in "bcdfgh" for b in "kmnpqr"]
    assert len(targets) == 36 and "36 targets are more than the text width of 32" in warned(sd1, targets)[0]
    assert not warned(sd1, targets[:30])


def test_thousands_of_retained_with_repetitions_and_blank_lines(sd1) -> None:
    given = [word for _ in range(1000) for word in ("fox", "  \n", "Fox ", "a photo")]
    edit = erasekit.erase(sd1, "cat", anchor="dog", retain=given, method="uce", tokens="last")
    assert edit.retain == ("fox", "a photo")
    assert edit.self_check["warnings"] == [
        "retained concepts dropped as blank: 1000 of 4000",
        "retained concepts dropped as repetitions: 2998 of 4000",
    ]


@pytest.mark.parametrize("name", UNKNOWN)
def test_text_without_a_token_is_refused_by_name(name: str, sd1) -> None:
    with pytest.raises(UsageError, match=r"the anchor .* is nothing to the model's tokenizer") as error:
        warned(sd1, anchor=name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"the target .* is nothing"):
        warned(sd1, name)


def test_retained_text_without_a_token_is_dropped_aloud(sd1) -> None:
    edit = erasekit.erase(sd1, "cat", anchor="dog", retain=["fox", *UNKNOWN], method="uce")
    assert edit.retain == ("fox",) and "nothing to the model's tokenizer: 3, " in edit.self_check["warnings"][0]


def test_text_that_is_read_in_part_is_said(sd1) -> None:
    (line,) = warned(sd1, anchor="caf\u00e9")
    assert "does not know every character of the anchor 'caf\u00e9'" in line


def test_the_empty_anchor_is_the_empty_prompt(sd1) -> None:
    assert not warned(sd1, anchor="") and not warned(sd1, anchor="  ")


def test_an_anchor_that_is_itself_a_target_is_said(sd1) -> None:
    lines = warned(sd1, ["cat", "dog"], anchor=["dog", "a photo of cat"])
    assert len(lines) == 2
    assert "'dog' of 'cat' holds the target 'dog'" in lines[0] and "the target 'cat'" in lines[1]
