"""Slips in a request, whatever the method: one clear line or one warning each, and never a silent average."""

from __future__ import annotations

import pytest
import torch

import erasekit
from erasekit.backbones import backbone
from erasekit.errors import InfeasibleError, UsageError
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
