"""How far every arm's unrelated images are, as a set, from real images: the lines of `metrics`, beside what chance gives.

Apart from `distances.py`, whose distances are to the unedited model's images and begin at 0: here the unedited model has a
distance, too, and an edit's is read beside it. The names end in `_real`, and hold the space as all others do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from erasekit.errors import EraseKitError
from erasekit.evaluation.distances import APART, DIGITS, Lines, distance_line, set_distance
from erasekit.evaluation.metrics import clip, distribution
from erasekit.evaluation.metrics.distribution import Features
from erasekit.evaluation.rates import Side
from erasekit.evaluation.rows import Row
from erasekit.evaluation.similarity import Space, rng

SPLITS = 5
"""Ways in which the real images are parted for the floor, which is the mean over them."""
NO_SPACE = ("no distance to the real images is stated: none of the suite's judges embeds images, and no weights of "
            "Inception were given")  # fmt: skip


class Fixed:
    """The real images in one space; `parts` numbers the prompts that they are references of, if they are. What a floor took to
    compute is kept for the next arm of as many images."""

    def __init__(self, facts: Mapping[str, Any], features: Features, parts: Sequence[int]) -> None:
        self.facts, self.features, self.parts = facts, features, parts
        self._floors: dict[tuple[str, int], float | None] = {}

    def refusal(self, kind: str, images: int) -> str:
        """Why the distance of so many images to these is not stated; "" if it is."""
        return refusal(kind, self.features.space, images, *self.features.values.shape)

    def found(self, kind: str, ours: np.ndarray, arm: str) -> dict[str, Any]:
        """The distance of an arm's features to these, as it is kept: name, value, n, sd, note, floor."""
        mine = Features(self.features.space, ours)
        one = set_distance(kind, mine, self.features, f"{arm}, to real images")
        note = "; ".join(filter(None, [f"to {len(self.features.values)} real images, {self.facts['name']}", one.note]))
        return {"arm": arm, "metric": key(kind, mine.space), "value": round(one.value, DIGITS), "n": len(ours),
                "sd": one.sd, "note": note, "floor": self.floor(kind, len(ours))}  # fmt: skip

    def floor(self, kind: str, images: int) -> float | None:
        """What real images are from real images: so many of them (half, where there are no more) from all the others, a
        mean over `SPLITS` draws. None where these would be too few for a distance. References are drawn as an arm draws: one
        of each prompt, before a second of any."""
        drawn = min(images, len(self.features.values) // 2)
        if (kind, drawn) not in self._floors:
            few = drawn < distribution.least(kind, self.features.values.shape[1])
            self._floors[kind, drawn] = None if few else round(float(np.mean(list(self._parted(kind, drawn)))), DIGITS)
        return self._floors[kind, drawn]

    def _parted(self, kind: str, drawn: int) -> Iterator[float]:
        space, values = self.features.space, self.features.values
        for split in range(SPLITS):
            order = self._in_turn(rng("real", kind, drawn, split).permutation(len(values)))
            ours, rest = (Features(space, values[part]) for part in (order[:drawn], order[drawn:]))
            if kind == "KID":  # its sd is not asked for
                yield distribution.kid(ours, rest, generator=rng("real", drawn, split), subsets=2).value
            else:
                yield set_distance(kind, ours, rest, "").value

    def _in_turn(self, order: np.ndarray) -> np.ndarray:
        """The order with the first of every part before the second of any, and so on."""
        seen: Counter[int] = Counter()
        rounds = []
        for part in (self.parts[i] for i in order) if self.parts else ():
            rounds.append(seen[part])
            seen[part] += 1
        return order[np.argsort(rounds, kind="stable")] if rounds else order


def fixed(spaces: Iterable[str], head: Mapping[str, Any], measures: Mapping[str, Any]) -> dict[str, Fixed]:
    """The real images by CLIP judge; {} for a run without. `EraseKitError` where `measures.json` holds other ones."""
    facts = head.get("real")
    if not facts:
        return {}
    known = measures.get("real", {})
    if known.get("sha256") != facts["sha256"] or any(space not in known["spaces"] for space in spaces):
        raise EraseKitError(
            "measures.json is of other real images than run.json: run the same `erasekit evaluate` again"
        )
    vectors = {space: np.stack([clip.decode(one) for one in known["spaces"][space]]) for space in spaces}
    return {space: Fixed(facts, Features(space, values), known["parts"]) for space, values in vectors.items()}


def distances(side: Side, space: Space, real: Fixed | None) -> Lines:
    """An arm's lines of `metrics` from one CLIP judge, the unedited model's too; none for a run without real images."""
    if real is None:
        return
    kept = unrelated(side, space)
    for kind in distribution.KEYS:
        if not real.refusal(kind, len(kept)):
            yield _line(real.found(kind, space.images(kept), side.arm), space.judge, real.facts)


def measured(side: Side, measures: Mapping[str, Any]) -> Lines:
    """An arm's lines on Inception's features, which `measures.json` has."""
    known = measures.get("real", {})
    for one in known.get("inception", {}).get("distances", ()):
        if one["arm"] == side.arm:
            yield _line(one, known["inception"]["name"], known)


def omitted(sides: Sequence[Side], spaces: Mapping[str, Space], real: Mapping[str, Fixed],
            measures: Mapping[str, Any]) -> list[str]:  # fmt: skip
    """A sentence for every distance to real images that is not stated, each once."""
    known = measures.get("real")
    if known is None:
        return []
    own = [(side, spaces[side.reading.judge]) for side in sides if side.reading.judge in real]
    said = [why for side, space in own for kind in distribution.KEYS
            if (why := real[space.judge].refusal(kind, len(unrelated(side, space))))]  # fmt: skip
    said += known.get("inception", {}).get("omitted", ())
    return [*dict.fromkeys(said)] if real or "inception" in known else [NO_SPACE]


def unrelated(side: Side, space: Space) -> list[Row]:
    """The arm's images of the prompts of which images should be as before, as far as the judge embedded them."""
    return [row for row in side.rows if row.group in APART and space.has(row)]


def key(kind: str, space: str) -> str:
    """`distribution.key` of a distance to real images: "fid_real", "kid_real(emoji-clip-v1[128])"."""
    stem, bracket, rest = distribution.key(kind, space).partition("(")
    return f"{stem}_real{bracket}{rest}"


def refusal(kind: str, space: str, drawn: int, real: int, width: int) -> str:
    """Why the distance of so many images to so many real ones is not stated; "" if it is. Each set has to be as large as
    for the distances to the unedited model's images."""
    least = distribution.least(kind, width)
    few = f"{drawn} unrelated images" if drawn < least else f"{real} real images" if real < least else ""
    return few and f"{key(kind, space)} is not stated: {few}, and {least} are needed"


def _line(one: Mapping[str, Any], judge: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return distance_line(one["metric"], one["arm"], judge, one["value"], one["n"], one["sd"], one["note"],
                         floor=one["floor"], real=facts["sha256"])  # fmt: skip
