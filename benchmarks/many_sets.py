"""Many targets of the emoji world: which, mapped to what, and the prompts that ask for them and for all the others.

The sets are the pinned suites' own: 1 is `cat`, 10 are those of emoji/multi-10, 100 those of emoji/multi-100, and 50 the
first 50 of these hundred. The anchors are the suites' (for `cat` and the 50, the hundred's). Everything else of the
132 concepts is retained, the anchors too. 1, 50 and 100 are nested; the ten are spread over the kinds of things, so a few
of them are not among the first 50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
from emoji_prompts import Prompt

from erasekit.evaluation.shards import digest
from erasekit.evaluation.suites import load_suite
from erasekit.worlds.emoji.captions import HELD_OUT_SINGLE, SINGLE, article, fill
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, names

COUNTS = (1, 10, 50, 100)
IMAGES = 100  # prompts for the targets, and as many for the others, at each count
SENTENCES = 48  # that features are read in, and plain prompts of retained concepts
KEPT = 32
TRAINED = tuple(dict.fromkeys(SINGLE))[: len(HELD_OUT_SINGLE)]
FORMS = tuple(form for pair in zip(TRAINED, HELD_OUT_SINGLE, strict=True) for form in pair)


@dataclass(frozen=True)
class Work:
    """What is erased at once: `anchors[i]` is what `targets[i]` becomes, `retained` is everything else."""

    targets: tuple[str, ...]
    anchors: tuple[str, ...]
    retained: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.targets)


def work(count: int) -> Work:
    """The pinned set of 1, 10, 50 or 100 targets."""
    suite = load_suite("emoji/multi-10" if count == 10 else "emoji/multi-100")
    targets = suite.targets[:count]
    anchors = tuple(str(suite.anchor(target)) for target in targets)
    return Work(targets, anchors, tuple(name for name in names() if name not in targets))


@cache
def works_sha256() -> str:
    """Of all the sets: rows of other targets, anchors or retained concepts answer another question."""
    return digest([asdict(work(count)) for count in COUNTS])


def target_prompts(work: Work, count: int = IMAGES) -> list[Prompt]:
    """Prompts for the targets in turn: a form that training used, a form that it never saw, and so on."""
    return _prompts(work.targets, count, np.random.default_rng([17, work.count]))


def other_prompts(work: Work, count: int = IMAGES) -> list[Prompt]:
    """The same forms for the retained concepts, in an order that depends on the number of targets alone."""
    rng = np.random.default_rng([19, work.count])
    return _prompts([work.retained[i] for i in rng.permutation(len(work.retained))], count, rng)


def sentences(pairs: Sequence[tuple[str, str]], count: int = SENTENCES) -> tuple[list[str], list[str]]:
    """Held-out sentences that name the target, and the same ones with the anchor in its place; pairs in random order."""
    rng = np.random.default_rng([23, len(pairs)])
    order = rng.permutation(len(pairs))
    asked, wanted = [], []
    for i in range(count):
        form, (style, background) = HELD_OUT_SINGLE[i % len(HELD_OUT_SINGLE)], _look(rng)
        target, anchor = pairs[order[i % len(pairs)]]
        asked.append(fill(form, (target,), STYLES[style], tuple(BACKGROUNDS)[background]))
        wanted.append(fill(form, (anchor,), STYLES[style], tuple(BACKGROUNDS)[background]))
    return asked, wanted


def plain_prompts(work: Work, count: int = KEPT) -> list[str]:
    """Plain prompts of retained concepts, evenly spread over the table, the styles in turn."""
    step = max(1, len(work.retained) // count)
    return [f"{article(w)} in {STYLES[i % 5]} style" for i, w in enumerate(work.retained[::step][:count])]


def _prompts(nouns: Sequence[str], count: int, rng: np.random.Generator) -> list[Prompt]:
    found = []
    for i in range(count):
        form, noun, (style, background) = FORMS[i % len(FORMS)], nouns[i % len(nouns)], _look(rng)
        text = fill(form, (noun,), STYLES[style], tuple(BACKGROUNDS)[background])
        found.append(Prompt(text, noun, style if "{s}" in form else -1, background if "{b}" in form else -1))
    return found


def _look(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(len(STYLES))), int(rng.integers(len(BACKGROUNDS)))
