"""EraseEval's criteria: the oracles of its protocol on small embeddings, and that a substitute is always labelled."""

from __future__ import annotations

import numpy as np
import pytest

from erasekit.errors import UsageError
from erasekit.evaluation.metrics import eraseeval as ee

LOCAL = "emoji-clip-v1 image embeddings"


def rows(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)) + 1


def test_pairs_against_a_loop() -> None:
    original, edited, present, named = rows(3, 0), rows(4, 1), [True, False, True, False], [True, True, False, False]
    total = 0.0
    for o in original:
        for e, p, n in zip(edited, present, named, strict=True):
            total += 0 if p and n else o @ e / np.linalg.norm(o) / np.linalg.norm(e)
    found = ee.m1(original, edited, present=present, named=named)
    assert found.name == "M1" and found.raw == pytest.approx(total / 12) and found.substitute == ""
    assert ee.m1(original, edited, present=present, substitute=LOCAL).raw < found.raw  # the detector alone decides
    assert ee.m2(original, edited, present=present, substitute=LOCAL).name == "M2-local"


def test_no_edit_gives_the_ceiling_and_full_marks() -> None:
    original, cosines = rows(5, 0), [0.3, 0.28, 0.31]
    no = [False] * 5
    assert ee.m1(original, original, present=no, named=no).value == ee.ceiling(original, original) < 1
    assert ee.m2(original, original, present=no).value == ee.ceiling(original, original)
    assert ee.m3(cosines, cosines).value == 1 and ee.m4(0.8, 0.8).value == 1


def test_always_present_gives_zero() -> None:
    yes = [True] * 5
    assert ee.m1(rows(5, 0), rows(5, 1), present=yes, named=yes).value == 0
    assert ee.m2(rows(5, 0), rows(5, 1), present=yes).value == 0


def test_ratios_are_clipped_and_the_raw_value_is_kept() -> None:
    better = ee.m3([0.2], [0.3])
    assert better.value == 1 and better.raw == pytest.approx(1.5)
    assert ee.m4(0.5, 0.75).value == pytest.approx(0.5) and ee.m4(0.5, 1.5).value == 0 and ee.m4(0.5, 0.4).raw > 1
    for call in (lambda: ee.m3([-0.1], [0.2]), lambda: ee.m4(0.0, 0.1), lambda: ee.m3([], [0.2])):
        with pytest.raises(UsageError):
            call()


def test_integration_is_labelled_as_ours() -> None:
    found = [ee.Criterion(f"M{i}", v, v, "") for i, v in enumerate((0.9, 0.6, 0.8, 0.7), 1)]
    result = ee.combined(found)
    assert result["label"] == "our integration"
    assert result["harmonic"] == pytest.approx(4 / (1 / 0.9 + 1 / 0.6 + 1 / 0.8 + 1 / 0.7))
    assert result["geometric"] == pytest.approx((0.9 * 0.6 * 0.8 * 0.7) ** 0.25)
    assert result["harmonic"] <= 4 * 0.6
    local = [found[0], ee.Criterion("M2-local", 0.0, 0.0, LOCAL), *found[2:]]
    assert ee.combined(local) == {"harmonic": 0, "geometric": 0, "label": "our integration, with local substitutes"}
    with pytest.raises(UsageError, match="in this order"):
        ee.combined(found[:3])


def test_floor_is_between_prompts() -> None:
    groups = [rows(2, 0), rows(3, 1), rows(2, 2)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert ee.floor(groups) == pytest.approx(np.mean([ee.ceiling(groups[a], groups[b]) for a, b in pairs]))
    with pytest.raises(UsageError):
        ee.floor(groups[:1])


def test_captions_without_a_captioner_must_be_named() -> None:
    with pytest.raises(UsageError, match="substitute"):
        ee.m1(rows(2, 0), rows(2, 1), present=[True, False])


def test_names_are_compared_as_words() -> None:
    assert ee.names_concept("An English springer, running.", "English-springer")
    assert ee.names_concept("a hot_dog", "Hot dog") and not ee.names_concept("a catalogue", "cat")


def test_answers_are_read_by_their_first_word() -> None:
    assert ee.says_yes("Yes, in the snow") and not ee.says_yes("No.")
    for answer in ("not sure", "", "snow"):
        with pytest.raises(UsageError, match="neither"):
            ee.says_yes(answer)
