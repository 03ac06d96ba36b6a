"""What a reader of results must see first: images that could not be judged, and groups in which nothing can be lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from erasekit.evaluation.rates import Side, group

RARE = 0.1  # a base rate below this leaves an edit nothing to do


def cautions(
    labels: Mapping[str, str], counts: Mapping[str, Mapping[str, int]], sides: Sequence[Side]
) -> Iterator[str]:
    """The sentences, arms first. `labels` and `counts` are by arm; `sides` are all arms with all judges."""
    for arm, label in labels.items():
        if counts[arm]["failed"] or counts[arm]["invalid"]:
            yield unjudged(label, counts[arm])
    for side in sides:
        if side.arm == "base" and side.reading.decides(side.rows):
            yield from _rare(side)


def unjudged(label: str, counts: Mapping[str, int]) -> str:
    """The sentence about an arm's images that are in no rate."""
    return (f"{label}: {counts['failed']} images could not be judged and {counts['invalid']} are black or constant; they "
            "are in no rate, and the pessimistic rates count them against the arm")  # fmt: skip


def _rare(side: Side) -> Iterator[str]:
    read = side.reading
    for name in dict.fromkeys(row.group for row in side.rows):
        part = [row for row in side.rows if row.group == name and read.status(row) == "ok"]
        asks = bool(part) and group(part[0]).asks
        part = part if asks else [row for row in part if read.asks(row)]
        hits = sum(map(read.target if asks else read.wanted, part))
        if part and hits < RARE * len(part):
            what = "the target" if asks else "what is asked for"
            yield (f"{read.judge} finds {what} in {hits} of {len(part)} images of the unedited model in the group {name}: "
                   "what is measured there says little about an edit")  # fmt: skip
