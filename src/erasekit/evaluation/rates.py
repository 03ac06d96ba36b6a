"""The shares of a results document: efficacy, generality, specificity and the rates beside them, from rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erasekit.evaluation.corrections import correction
from erasekit.evaluation.metrics import get as metric
from erasekit.evaluation.metrics.harmonic import efficacy, generality, specificity
from erasekit.evaluation.rows import Row
from erasekit.evaluation.statistics import Estimate, Outcomes
from erasekit.evaluation.suites import GROUPS
from erasekit.evaluation.verdicts import Reading

Pick = tuple[str | None, str | None, list[Row]]  # group, target, rows
MANY = 10  # more targets than these get no table of group by target


@dataclass(frozen=True)
class Side:
    """An arm's rows beside the unedited model's of the same prompts and seeds (`base` by shot); `anchored` are the latter's
    of the prompts that ask for the arm's own anchors, `noise` those of an edit's random control."""

    arm: str
    rows: Sequence[Row]
    base: Mapping[tuple[str, int], Row]
    reading: Reading
    anchors: Mapping[str, str] = field(default_factory=dict)  # target -> the anchor's label
    anchored: Sequence[Row] = ()
    noise: Mapping[tuple[str, int], Row] = field(default_factory=dict)

    def of(self, side: str) -> list[Row]:
        """The rows of the groups on one side ("efficacy", "generality", "specificity")."""
        return [row for row in self.rows if group(row).side == side]


def group(row: Row) -> Any:
    """What is known of the row's group."""
    return GROUPS[row.group]


def picks(rows: Sequence[Row]) -> Iterator[Pick]:
    """The rows as a table wants them: all, each group, and where there are several targets each target."""
    if not rows:
        return
    yield None, None, list(rows)
    groups = list(dict.fromkeys(row.group for row in rows))
    targets = list(dict.fromkeys(row.target for row in rows if row.target))
    for name in groups:
        yield name, None, [row for row in rows if row.group == name]
    for target in targets if len(targets) > 1 else ():
        own = [row for row in rows if row.target == target]
        yield None, target, own
        for name in groups if len(targets) <= MANY else ():
            if part := [row for row in own if row.group == name]:
                yield name, target, part


def shares(side: Side) -> list[dict[str, Any]]:
    """Every share of one arm by one judge, as entries of `metrics`; those that no image was drawn for are left out.

    Where images were drawn and none could be judged there is no rate, and the pessimistic one alone."""
    entries = []
    for name, rows, outcomes in _tables(side):
        for group_name, target, part in picks(rows):
            entries.append(entry(name, side, group_name, target, part, outcomes(part)))
    return [found for found in entries if found is not None]


def _tables(side: Side) -> list[tuple[str, list[Row], Callable[[list[Row]], Outcomes]]]:
    """Each share's name, the rows that it is about, and its outcomes on a part of them."""
    read = side.reading
    asked = [row for row in side.of("efficacy") + side.of("generality") if read.seeks(row)]
    kept = [row for row in side.of("specificity") if read.asks(row)]
    styled = [row for row in side.rows if row.style is not None and read.kind != "style" and "style" in read.says]
    backed = [row for row in side.rows if row.background is not None and "background" in read.says]
    anchored = [row for row in asked if row.target in side.anchors]
    gone = {"efficacy": efficacy, "generality": generality}
    return [
        *((name, [row for row in asked if group(row).side == name], _gone(read, share)) for name, share in gone.items()),
        *((f"net_{name}", [row for row in asked if group(row).side == name and row.shot in side.noise],
           _rate(read, lambda row: net(side, row))) for name in gone),
        ("target_rate", asked, _rate(read, read.target)),
        ("anchor_rate", anchored, _rate(read, lambda row: read.label(row, side.anchors[row.target]))),
        ("specificity", kept, lambda part: _relative(side, part, read.wanted)),
        ("wanted_rate", kept, _rate(read, read.wanted)),
        ("fidelity", styled + [r for r in backed if r.style is None], lambda part: _relative(side, part, _followed(read))),
        ("style_rate", styled, _rate(read, lambda row: read.look(row, "style"))),
        ("background_rate", backed, _rate(read, lambda row: read.look(row, "background"))),
        ("valid_rate", list(side.rows), lambda part: _valid(read, part)),
    ]  # fmt: skip


def net(side: Side, row: Row) -> bool:
    """Whether the image shows the target no more and its twin under noise of the edit's norm does: a twin that could not be
    judged has nothing to show, and what the edit did there is not told from damage."""
    read, twin = side.reading, side.noise[row.shot]
    return not read.target(row) and read.status(twin) == "ok" and read.target(twin)


def _gone(read: Reading, share: Callable[..., Outcomes]) -> Callable[[list[Row]], Outcomes]:
    return lambda part: share([read.status(row) for row in part], [read.target(row) for row in part])


def _rate(read: Reading, found: Callable[[Row], bool]) -> Callable[[list[Row]], Outcomes]:
    return lambda part: Outcomes.count([read.status(row) for row in part], [found(row) for row in part])


def _relative(side: Side, part: list[Row], found: Callable[[Row], bool]) -> Outcomes:
    pairs = [(row, side.base[row.shot]) for row in part if row.shot in side.base]
    ours, base = [row for row, _ in pairs], [row for _, row in pairs]
    status = side.reading.status
    return specificity(list(map(status, ours)), list(map(found, ours)), list(map(status, base)), list(map(found, base)))


def _followed(read: Reading) -> Callable[[Row], bool]:
    """Style and background as asked (each where it is asked for, and the judge says it)."""
    parts = [part for part in ("style", "background") if part in read.says]
    return lambda row: all(read.look(row, part) for part in parts if getattr(row, part) is not None)


def _valid(read: Reading, part: list[Row]) -> Outcomes:
    """Here an image that could not be judged is an outcome and not a gap."""
    return Outcomes.count(["ok"] * len(part), [read.status(row) == "ok" for row in part])


def entry(name: str, side: Side, group_name: str | None, target: str | None, rows: list[Row],
          outcomes: Outcomes) -> dict[str, Any] | None:  # fmt: skip
    """One line of `metrics`; beside it the rate that counts failed and invalid images against the edit, and where the
    judge's own error rates are known the corrected one."""
    if not outcomes.drawn:
        return None
    worst = _against(name, outcomes)
    found = line(name, side.arm, group_name, target, outcomes.estimate, side.reading.judge)
    found |= {"pessimistic": {"value": worst.value, "low": worst.low, "high": worst.high, "n": worst.n}}
    better = correction(name, outcomes.estimate, rows, side.reading) if outcomes.estimate else None
    return found | ({"corrected": better} if better else {})


def _against(name: str, outcomes: Outcomes) -> Estimate:
    """The pessimistic rate: where less is better, each image that is not valid counts as a hit."""
    drawn = outcomes.drawn
    hits = outcomes.hits + (outcomes.failed + outcomes.invalid if metric(name).direction == "down" else 0)
    found = Outcomes(hits, drawn).estimate
    assert found is not None
    return found


def line(name: str, arm: str, group_name: str | None, target: str | None, estimate: Estimate | None, judge: str,
         **more: Any) -> dict[str, Any]:  # fmt: skip
    """One line of `metrics`; without an estimate, of no image that could be judged."""
    known = metric(name)
    interval = None if estimate is None or estimate.method.startswith("none") else estimate
    return {
        "metric": name, "arm": arm, "group": group_name, "target": target,
        "value": None if estimate is None else estimate.value, "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high, "n": 0 if estimate is None else estimate.n,
        "interval": "" if interval is None else interval.method, "unit": known.unit, "direction": known.direction,
        "judge": judge, **more,
    }  # fmt: skip
