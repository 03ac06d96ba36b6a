"""The one rule by which the notes' defaults for Stable Diffusion 1.4 are scaled to the emoji model, for every method.

STEPS times the steps, RATE times the learning rate, and sentences of words that the emoji model was trained on where a
method has sentences of its own (`emoji_sentences`); nothing else. docs/training.md has the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import emoji_sentences

from erasekit import methods
from erasekit.errors import UsageError

STEPS, RATE = 0.25, 8.0


@dataclass(frozen=True)
class Rule:
    """The two factors, and what `--set` gives to single methods besides."""

    steps: float = STEPS
    rate: float = RATE
    own: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def parameters(self, method: str, kind: str = "object") -> dict[str, Any]:
        """What a method (or method:preset) is fitted with for such targets: only methods that train are scaled."""
        scaled: dict[str, Any] = dict(wording(method, kind))
        if trains(method):
            config = defaults(method)
            rate = float(f"{config.rate * self.rate:.4g}")
            scaled = {"steps": max(1, round(config.steps * self.steps)), "rate": rate, **scaled}
        return scaled | dict(self.own.get(method.partition(":")[0], {}))


def wording(method: str, kind: str) -> dict[str, str]:
    """What is set so that a method reads words of the emoji world. A style's name takes the place of the anchor's in a
    whole caption, as an object's does: "painting" and "in ink's style" are no words of that world."""
    base, style = method.partition(":")[0], kind == "style"
    sentences = str(emoji_sentences.FOLDER / ("style.txt" if style else "object.txt"))
    if base == "ac" and defaults(method).kind in ("object", "style"):
        # Augmentation would put "far away" or "zoomed in" before a caption.
        return {"prompts": sentences, "augment": "false"} | ({"kind": "object"} if style else {})
    if base in ("mace", "mace-refine"):
        words = {"template_file": sentences, "prior_file": str(emoji_sentences.FOLDER / "captions.txt")}
        return words | ({"picture": "a picture in {}" if style else "a photo of {a}"} if base == "mace" else {})
    return {}


def rule(steps: float, rate: float, words: Sequence[str]) -> Rule:
    """The rule with METHOD.KEY=VALUE words read."""
    own: dict[str, dict[str, str]] = {}
    for word in words:
        place, equals, value = word.partition("=")
        method, dot, key = place.partition(".")
        if not (equals and dot and key and method in methods.METHODS):
            raise UsageError(f"--set {word}: give METHOD.KEY=VALUE with one of {', '.join(methods.METHODS)}")
        own.setdefault(method, {})[key] = value
    return Rule(steps, rate, own)


def trains(method: str) -> bool:
    return methods.trains(methods.resolve(method)[0])


def defaults(method: str) -> Any:
    """The configuration of a method (or method:preset) as its note gives it."""
    cls, preset = methods.resolve(method)
    return methods.make_config(cls, dict(preset.values))


def for_suite(method: str, kind: str) -> str:
    """The method on a suite of such targets: with its own preset for them, where it trains and has one of that name."""
    cls, _ = methods.resolve(method)
    own = ":" not in method and methods.trains(cls) and kind in cls.presets
    return f"{method}:{kind}" if own else method


def settings(used: Sequence[tuple[str, str]], chosen: Rule) -> list[dict[str, Any]]:
    """What every method that trains was fitted with; `used`: method (or method:preset) and kind of target."""
    found: list[dict[str, Any]] = []
    for method, kind in dict.fromkeys(used):
        if not trains(method):
            continue
        config, own = defaults(method), chosen.parameters(method, kind)
        besides = {key: value for key, value in own.items() if key not in ("steps", "rate", "batch")}
        row = {
            "method": method, "steps": [config.steps, own["steps"]], "rate": [config.rate, own["rate"]],
            "batch": own.get("batch", config.batch), "besides": {key: _named(value) for key, value in besides.items()},
        }  # fmt: skip
        found += [row] if row not in found else []
    return found


def _named(value: Any) -> str:
    """A setting as the page has it: of a file its name."""
    return Path(value).name if Path(str(value)).is_absolute() else str(value)
