"""What a reader of results must see first: images that could not be judged, and groups in which nothing can be lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from erasekit.evaluation.rates import Side, group
from erasekit.evaluation.statistics import wilson
from erasekit.evaluation.suites.names import listed

RARE = 0.1  # a base rate below this leaves an edit nothing to do


def cautions(
    labels: Mapping[str, str], counts: Mapping[str, Mapping[str, int]], sides: Sequence[Side]
) -> Iterator[str]:
    """The sentences, arms first. `labels` and `counts` are by arm; `sides` are all arms with all judges."""
    for arm, label in labels.items():
        if counts[arm]["failed"] or counts[arm]["invalid"]:
            yield unjudged(label, counts[arm])
    for side in sides:
        if side.arm == "base" and side.reading.decides:
            yield from [*_nameless(side), *_rare(side)]
        if side.noise and side.reading.decides:
            yield from _damage(side, labels[side.arm])


def unjudged(label: str, counts: Mapping[str, int]) -> str:
    """The sentence about an arm's images that are in no rate."""
    return (f"{label}: {counts['failed']} images could not be judged and {counts['invalid']} are black or constant; they "
            "are in no rate, and the pessimistic rates count them against the arm")  # fmt: skip


def _nameless(side: Side) -> Iterator[str]:
    """What prompts ask for and the judge has no label for."""
    read = side.reading
    asked = {word for row in side.rows for word in (read.labels.get(row.target, (row.target,)) if group(row).asks else ())
             if not read.seeks(row)}  # fmt: skip
    kept = {word for row in side.rows if not group(row).asks and not read.asks(row) for word in row.wanted}
    if missing := sorted(word for word in asked | kept if read.name(word) is None):
        yield f"{read.judge} has no label for {listed(missing)}: images that ask for these are in none of its rates"


def _damage(side: Side, label: str) -> Iterator[str]:
    """Where noise of the edit's norm loses the target as well: what is not there is no proof of an edit then."""
    read = side.reading
    asked = [row for row in side.rows if group(row).asks and read.seeks(row) and row.shot in side.noise]
    pairs = [(side.base[row.shot], side.noise[row.shot]) for row in asked if row.shot in side.base]
    pairs = [pair for pair in pairs if all(read.status(row) == "ok" for row in pair)]
    before, after = (sum(not read.target(pair[i]) for pair in pairs) for i in (0, 1))
    if pairs and after / len(pairs) > wilson(before, len(pairs))[1]:
        yield (f"noise of the norm of {label} loses the target too: in {after} of {len(pairs)} images, "
               f"the unedited model in {before}. Efficacy and generality count such damage as erased, "
               "net_efficacy and net_generality do not")  # fmt: skip


def _rare(side: Side) -> Iterator[str]:
    read = side.reading
    for name in dict.fromkeys(row.group for row in side.rows):
        part = [row for row in side.rows if row.group == name and read.status(row) == "ok"]
        asks = bool(part) and group(part[0]).asks
        part = [row for row in part if (read.seeks if asks else read.asks)(row)]
        hits = sum(map(read.target if asks else read.wanted, part))
        if part and hits < RARE * len(part):
            what = "the target" if asks else "what is asked for"
            yield (f"{read.judge} finds {what} in {hits} of {len(part)} images of the unedited model in the group {name}: "
                   "what is measured there says little about an edit")  # fmt: skip
