"""The recipes' table: which files it runs, ours beside the paper's figures, a dash for what was not measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import emoji_recipes  # noqa: E402

from erasekit.errors import UsageError  # noqa: E402


def metric(arm: str, name: str, group: str | None, value: float, **more: Any) -> dict[str, Any]:
    whole = {"arm": arm, "metric": name, "group": group, "target": None, "value": value, "low": value - 0.1,
             "high": value + 0.1, "n": 40}  # fmt: skip
    return whole | more


FOUND: dict[str, Any] = {
    "arms": [{"arm": "base", "kind": "base"}, {"arm": "edit:x", "kind": "edit"}],
    "metrics": [
        metric("edit:x", "efficacy", "plain", 0.1), metric("edit:x", "efficacy", None, 0.9, judge="first"),
        metric("edit:x", "efficacy", None, 0.2, judge="second"), metric("edit:x", "specificity", None, 0.5, n=0),
        metric("edit:x", "clip_accuracy", None, 0.25), metric("edit:x", "clip_accuracy", None, 0.75, target="cat"),
        metric("edit:x", "clip_score", "anchor", 0.7), metric("edit:x", "clip_score", "unrelated", 0.8),
    ],
    "published": {"model": "SD", "figures": [
        {"metric": "clip_score", "group": "anchor", "method": "erasepro", "value": 0.767}]},
}  # fmt: skip


def test_ours_stand_beside_what_is_published() -> None:
    base, edit, published = emoji_recipes.rows("erasepro-a-emoji", FOUND)
    assert edit["efficacy"]["value"] == 0.9, "all prompts of the first judge, and no single target's"
    assert edit["CLIP accuracy"]["value"] == 0.25 and edit["CLIP score, others"]["value"] == 0.8
    assert edit["specificity"] is None, "a rate of no images is none"
    assert base["efficacy"] is None
    assert published["CLIP score, anchor"] == {"value": 0.767} and published["CLIP accuracy"] is None
    lines = emoji_recipes.table([base, edit, published]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith("| a | x | 90.0 (80.0–100.0) | – |") and "0.700 (0.600–0.800)" in lines[3]
    assert "*published: erasepro, SD*" in lines[4] and "| 0.767 |" in lines[4]


def test_every_emoji_recipe_is_named_by_what_only_it_has() -> None:
    assert len(emoji_recipes.RECIPES) == 6
    assert emoji_recipes.named("instance") == emoji_recipes.named("erasepro-instance-emoji")
    for word in ("multi", "none"):
        with pytest.raises(UsageError, match="erasepro-multi-10-emoji"):
            emoji_recipes.named(word)


def test_the_images_are_counted_before_any_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    emoji_recipes.main(["--recipes", "instance", "style", "--estimate"])
    instance, style, whole = capsys.readouterr().out.splitlines()
    counts = [int(line.split()[1]) for line in (instance, style)]
    assert counts[0] % 5 == 0, "the unedited model, two edits and noise of each draw the same prompts"
    assert whole.startswith(f"{sum(counts)} images")
