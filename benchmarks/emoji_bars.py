"""Whether single erasures reached what was asked of them, from their judged pictures, and which of them fall short.

All bars but the first compare a picture with its twin of the unedited model: the same seed and the same prompt, for the
anchor the prompt that names it in the target's place. So both sides weigh every prompt alike, also where the twin is one
picture for many targets, or was drawn with fewer seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from emoji_prompts import PAIRS, complex_prompts
from emoji_rows import BASE, Hits

from erasekit.evaluation import bootstrap
from erasekit.evaluation.statistics import Estimate, Share

Twins = Mapping[str, str]
"""A prompt that asks for a target, and the same one with the anchor named in its place."""
ASKED = {"targets": 10, "prompts": 20, "seeds": 8, "others": 50}
"""What the bars are set for, at least."""
KINDS = {1: "one object", 2: "two objects"}


@dataclass(frozen=True)
class Bar:
    """One thing that was asked for: `after` is counted with the edit; `before` is the twins' measure.

    `bound`: without twins the most that the share may be, with them the least that the difference may be. None where no
    margin was set ("as before"): then the difference's 95 % interval must reach zero.
    """

    name: str
    what: str
    after: str
    before: str = ""
    bound: float | None = None

    def met(self, found: Estimate) -> bool:
        if self.bound is None:
            return found.high >= 0
        return found.value >= self.bound if self.before else found.value <= self.bound


BARS = (
    Bar("target", "target found", "target after", bound=0.01),
    Bar("anchor", "anchor found, against the unedited model asked for it", "anchor after", "anchor asked for", -0.05),
    Bar("others", "other objects named right, against before", "others after", "others before", -0.02),
    Bar("style", "style followed, against before", "style after", "style before"),
    Bar("background", "background followed, against before", "background after", "background before"),
)


def twins(targets: Iterable[str], count: int) -> dict[str, str]:
    """Of all sentences that ask for these targets."""
    found = {}
    for target in targets:
        asked, replaced = (complex_prompts(target, PAIRS[target], noun, count) for noun in (target, PAIRS[target]))
        found |= {one.text: other.text for one, other in zip(asked, replaced, strict=True)}
    return found


def kinds(measures: Mapping[str, Hits], targets: Iterable[str], count: int) -> dict[str, dict[str, Hits]]:
    """The measures on sentences of one object, and of two; those of other concepts' prompts are in neither."""
    objects = {p.text: p.objects for target in targets for noun in (target, PAIRS[target])
               for p in complex_prompts(target, PAIRS[target], noun, count)}  # fmt: skip
    found = {}
    for number, kind in KINDS.items():
        part = {name: {image: hit for image, hit in hits.items() if objects.get(image[1]) == number}
                for name, hits in measures.items()}  # fmt: skip
        found[kind] = {name: hits for name, hits in part.items() if hits}
    return found


def judged(measures: Mapping[str, Hits], twin: Twins) -> list[dict[str, Any]]:
    """Every bar with what was found, its 95 % interval, of how many pictures, and whether it is met; none of those of
    which there is no picture."""
    found = []
    for bar in BARS:
        if (one := _found(bar, measures, twin)) is not None:
            found.append({"name": bar.name, "what": bar.what, "value": one.value, "low": one.low, "high": one.high,
                          "n": one.n, "interval": one.method, "bound": bar.bound, "paired": bool(bar.before),
                          "met": bar.met(one)})  # fmt: skip
    return found


def missed(measures: Mapping[str, Hits], twin: Twins) -> list[str]:
    """The names of the bars that these pictures miss."""
    return [bar["name"] for bar in judged(measures, twin) if not bar["met"]]


def _found(bar: Bar, measures: Mapping[str, Hits], twin: Twins) -> Estimate | None:
    after = measures.get(bar.after, {})
    if not bar.before:
        return Share(sum(after.values()), len(after)).estimate
    pairs = _paired(after, measures.get(bar.before, {}), twin if bar.name == "anchor" else {})
    if not pairs:
        return None
    texts, before, now = zip(*pairs, strict=True)
    generator = np.random.default_rng([7, *bar.name.encode()])
    return bootstrap.difference(before, now, texts, generator=generator, draws=bootstrap.DRAWS).difference


def _paired(after: Hits, before: Hits, twin: Twins) -> list[tuple[str, bool, bool]]:
    """The prompt of each picture that has a twin, what was counted of the twin, and of the picture."""
    keys = ((image, (BASE, twin.get(image[1], image[1]), image[2])) for image in after)
    return [(image[1], before[other], after[image]) for image, other in keys if other in before]
