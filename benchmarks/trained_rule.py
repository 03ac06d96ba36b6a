"""The one rule by which the notes' defaults for Stable Diffusion 1.4 are scaled to the emoji model, for every method.

STEPS times the steps, RATE times the learning rate, and nothing else. docs/training.md has the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erasekit import methods
from erasekit.errors import UsageError

STEPS, RATE = 0.25, 8.0


@dataclass(frozen=True)
class Rule:
    """The two factors, and what `--set` gives to single methods besides."""

    steps: float = STEPS
    rate: float = RATE
    own: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def parameters(self, method: str) -> dict[str, Any]:
        """What a method (or method:preset) is fitted with; methods that do not train have their defaults."""
        scaled: dict[str, Any] = {}
        if trains(method):
            config = defaults(method)
            rate = float(f"{config.rate * self.rate:.4g}")
            scaled = {"steps": max(1, round(config.steps * self.steps)), "rate": rate}
        return scaled | dict(self.own.get(method.partition(":")[0], {}))


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


def settings(used: Sequence[str], chosen: Rule) -> str:
    """What every method that trains was fitted with, as a Markdown table."""
    lines = ["| method | steps: paper | here | rate: paper | here | batch | set besides |", "|" + "---|" * 7]
    for method in dict.fromkeys(filter(trains, used)):
        config, found = defaults(method), chosen.parameters(method)
        besides = ", ".join(f"{k}={v}" for k, v in chosen.own.get(method.partition(":")[0], {}).items())
        lines.append(f"| {method} | {config.steps} | {found['steps']} | {config.rate:g} | {found['rate']:g} | "
                     f"{found.get('batch', config.batch)} | {besides} |")  # fmt: skip
    return "\n".join(lines)
