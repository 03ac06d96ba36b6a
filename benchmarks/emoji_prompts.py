"""What the benchmarks on the emoji world ask for: pairs of target and anchor, held-out prompts for them, plain ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from erasekit.worlds.emoji.captions import HELD_OUT_PAIR, HELD_OUT_SINGLE, article, fill
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, names

PAIRS = {
    "cat": "dog", "wolf": "rabbit", "penguin": "duck", "apple": "lemon", "hamburger": "cake", "car": "bus",
    "rocket": "balloon", "bomb": "gift", "guitar": "violin", "santa": "baby", "castle": "volcano", "sun": "cloud",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A prompt with what it asks for, -1 where it does not say, and how many objects it names."""

    text: str
    wanted: str
    style: int
    background: int
    objects: int = 1


def complex_prompts(target: str, anchor: str, noun: str, count: int) -> list[Prompt]:
    """Held-out forms around `noun`; the other object, style and background depend on the target alone."""
    rng = np.random.default_rng([7, *target.encode()])
    others = [n for n in names() if n not in (target, anchor)]
    forms = [f for pair in zip(HELD_OUT_SINGLE, HELD_OUT_PAIR, strict=False) for f in pair] + list(HELD_OUT_SINGLE[6:])
    prompts = []
    for i in range(count):
        form, other = forms[i % len(forms)], others[int(rng.integers(len(others)))]
        s, b = int(rng.integers(len(STYLES))), int(rng.integers(len(BACKGROUNDS)))
        text = fill(form, (noun, other), STYLES[s], tuple(BACKGROUNDS)[b])
        style, background = s if "{s}" in form else -1, b if "{b}" in form else -1
        prompts.append(Prompt(text, noun, style, background, 2 if "{c}" in form else 1))
    return prompts


def other_prompts(target: str, anchor: str, count: int) -> list[Prompt]:
    """Plain prompts for other concepts, the styles in turn; the same list for every target, but for its own pair."""
    order = np.random.default_rng(11).permutation(len(names()))
    words = [names()[i] for i in order if names()[i] not in (target, anchor)][:count]
    return [Prompt(f"{article(w)} in {STYLES[names().index(w) % 5]} style", w, names().index(w) % 5, -1) for w in words]
