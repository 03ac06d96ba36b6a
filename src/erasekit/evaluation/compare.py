"""Two results side by side: what was measured in both, the differences with intervals, the significant ones marked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from erasekit.errors import UsageError
from erasekit.evaluation.page_view import Entry

Z = 1.959963984540054
LEVEL = 0.05
ORDER = ("edit", "random", "never", "base")
DEFINING = ("names", "terms", "substitute", "threshold", "real")
"""Fields of an estimate that say what it is of, beside its name."""


@dataclass(frozen=True)
class Difference:
    """One estimate in both results, and second minus first. `significant` is after Holm's correction over all lines."""

    metric: str
    group: str | None
    target: str | None
    judge: str
    unit: str
    direction: str
    arms: tuple[str, str]
    first: Entry
    second: Entry
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    significant: bool = False
    verdict: str = ""  # "better", "worse", "different" for the second, if significant


@dataclass(frozen=True)
class Comparison:
    """Everything that two results share, and what only one of them holds."""

    names: tuple[str, str]
    differences: list[Difference]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON-able data."""
        return {"erasekit_comparison": 1, "names": list(self.names), "notes": self.notes,
                "differences": [asdict(difference) for difference in self.differences]}  # fmt: skip


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Every estimate that both results hold (same metric, group, target, judge), arm against matching arm.

    Arms match by name; edits that are left over match in order if both results have as many. The two runs are treated
    as independent, which is cautious where prompts and seeds are the same. The edits come first, the unedited model
    last: the same in both runs by design, it is not tested, but a difference there is noted. So are metrics that are left
    out, being accuracies among other names, means of other terms or distances to other real images. Raises `UsageError`
    unless suite and judges are the same, by hash.
    """
    _check(first, second, names)
    pairs, notes = _pairs(first, second, names)
    kinds = {arm["arm"]: arm["kind"] for arm in first["arms"]}
    pairs = sorted(pairs, key=lambda pair: ORDER.index(kinds[pair[0]]))
    found = [_difference(arms, *both) for arms, both in _both(first, second, pairs) if not _unlike(*both)]
    odd = [entry["metric"] for _, (entry, other) in _both(first, second, pairs) if _unlike(entry, other)]
    if odd:
        said = ", ".join(dict.fromkeys(odd))
        notes.append(f"Not compared, being of other names, terms, thresholds or real images in each: {said}.")
    if first["model"]["sha256"] != second["model"]["sha256"]:
        notes.append("The two runs are of different base models: differences are not the edits' alone.")
    unedited = [d for d in found if kinds[d.arms[0]] == "base"]
    if any(d.value for d in unedited):
        notes.append("The unedited model's own estimates differ between the runs: they did not judge the same images.")
    tested = _marked([d for d in found if kinds[d.arms[0]] != "base"])
    return Comparison(names, [*tested, *unedited], notes)


def spread(first: Entry, second: Entry) -> tuple[float, float] | None:
    """The 95 % interval (low, high) of second minus first from their own intervals; None if either has none.

    Each side's distances to its ends are added in squares, so that lopsided intervals stay lopsided. Source: Newcombe,
    "Interval estimation for the difference between independent proportions", 1998, method 10 (for Wilson intervals);
    Zou and Donner 2008 for estimates in general.
    """
    (a, a_low, a_high), (b, b_low, b_high) = ((e["value"], e["low"], e["high"]) for e in (first, second))
    if None in (a, a_low, a_high, b, b_low, b_high):
        return None
    return b - a - math.hypot(b - b_low, a_high - a), b - a + math.hypot(b_high - b, a - a_low)


def holm(values: Sequence[float], *, level: float = LEVEL) -> list[bool]:
    """Which of the p values are significant together, at `level` for the whole family (Holm 1979, step down)."""
    marked = [False] * len(values)
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[i] > level / (len(values) - rank):
            break
        marked[i] = True
    return marked


def _check(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    one, two = first["suite"], second["suite"]
    if one["digest"] != two["digest"]:
        said = " and ".join(f"{name} used {suite['name']} version {suite['version']} ({suite['digest'][:12]})"
                            for name, suite in zip(names, (one, two), strict=True))  # fmt: skip
        raise UsageError(f"these results cannot be compared: {said}; evaluate both with the same suite")
    judges = [{judge["name"]: judge["weights_sha256"] for judge in suite["judges"]} for suite in (one, two)]
    if judges[0] != judges[1]:
        odd = sorted(name for name in {**judges[0], **judges[1]} if judges[0].get(name) != judges[1].get(name))
        raise UsageError(f"these results cannot be compared: the judges differ ({', '.join(odd)}); evaluate both with "
                         "the same judges")  # fmt: skip
    given = [{one["name"]: one["weights_sha256"] for one in side.get("extractors", ())} for side in (first, second)]
    odd = sorted(name for name in given[0].keys() & given[1].keys() if given[0][name] != given[1][name])
    if odd:
        raise UsageError(f"these results cannot be compared: the weights of {', '.join(odd)} differ; evaluate both with "
                         "the same file")  # fmt: skip


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any],
           names: tuple[str, str]) -> tuple[list[tuple[str, str]], list[str]]:  # fmt: skip
    """The arms to compare, in the first's order, and a sentence for each arm that stays alone."""
    arms = [{arm["arm"]: arm for arm in results["arms"]} for results in (first, second)]
    match = {name: name for name in arms[0] if name in arms[1]}
    left = [[name for name in side if name not in match] for side in arms]
    for kind in ("edit", "random"):
        one, two = ([name for name in names_left if side[name]["kind"] == kind]
                    for side, names_left in zip(arms, left, strict=True))  # fmt: skip
        if len(one) == len(two):
            match |= dict(zip(one, two, strict=True))
    used = set(match), set(match.values())
    notes = [f"Only {who} has {name}." for who, side, taken in zip(names, arms, used, strict=True)
             for name in side if name not in taken]  # fmt: skip
    return [(name, match[name]) for name in arms[0] if name in match], notes


def _both(first: Mapping[str, Any], second: Mapping[str, Any],
          pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], tuple[Entry, Entry]]]:  # fmt: skip
    """Each pair of arms with the estimates of the same name in both, in the first's order."""
    there = {_key(entry): entry for entry in second["metrics"]}
    for one, two in pairs:
        for entry in first["metrics"]:
            other = there.get((two, *_key(entry)[1:])) if entry["arm"] == one else None
            if other is not None:
                yield (one, two), (entry, other)


def _unlike(entry: Entry, other: Entry) -> bool:
    """Whether two estimates of one name are no estimates of the same thing."""
    return any(entry.get(part) != other.get(part) for part in DEFINING)


def _key(entry: Entry) -> tuple[Any, ...]:
    return tuple(entry[name] for name in ("arm", "metric", "group", "target", "judge", "unit"))


def _difference(arms: tuple[str, str], first: Entry, second: Entry) -> Difference:
    a, b = first["value"], second["value"]
    value = None if a is None or b is None else b - a
    ends = None if _width(first) == _width(second) == 0 else spread(first, second)
    low, high = ends or (None, None)
    p = None if ends is None or value is None else _p(value, *ends)
    return Difference(first["metric"], first["group"], first["target"], first["judge"], first["unit"], first["direction"],
                      arms, first, second, value, low, high, p)  # fmt: skip


def _width(entry: Entry) -> float | None:
    """How wide the estimate's interval is; one without a width is of a sample in which nothing varied, and tests nothing."""
    return None if entry["low"] is None or entry["high"] is None else entry["high"] - entry["low"]


def _p(value: float, low: float, high: float) -> float | None:
    """Two-sided p value of "no difference": the end towards zero lies 1.96 standard errors from the value. None where it
    lies at the value: then no error is known on that side."""
    error = (value - low if value > 0 else high - value) / Z
    if value == 0:
        return 1.0
    return math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else None


def _marked(found: list[Difference]) -> list[Difference]:
    tested = [d for d in found if d.p is not None]
    marks = dict(zip(map(id, tested), holm([d.p for d in tested if d.p is not None]), strict=True))
    return [_with_mark(d) if marks.get(id(d)) else d for d in found]


def _with_mark(d: Difference) -> Difference:
    up = (d.value or 0.0) > 0
    verdict = {"up": "better" if up else "worse", "down": "worse" if up else "better"}.get(d.direction, "different")
    return replace(d, significant=True, verdict=verdict)
