"""Which feature columns an alignment constrains: prompts of target and anchor, paired position by position.

Attention is causal, so a column is fixed by the token ids up to its position. That makes equal columns and
conflicts (one column, two wanted values) a matter of ids, known before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from erasekit.backbones.base import Backbone, Tokens
from erasekit.concept import EraseRequest

SHOWN = 3
Place = tuple[int, int]
"""A column: (row of the paired prompts, position)."""


@dataclass(frozen=True)
class Plan:
    """Row i of `source` (read by the edited model) should act as row i of `reference` (read by the original).

    The first rows are target and anchor prompts; the rest are retained prompts, the same on both sides. `hard`
    are the columns to align, `kept` those of retained prompts, each without repetitions; `conflicts` says in words
    which two prompts ask two things of one column, and `disputed` are the kept columns among these. `giving` says it of
    retained prompts that need not be met: they give way. `targets` is the target of each of the first rows.
    """

    source: Tokens
    reference: Tokens
    hard: tuple[Place, ...]
    kept: tuple[Place, ...]
    conflicts: tuple[str, ...]
    disputed: tuple[Place, ...]
    giving: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Columns:
    """The ids of both sides as tuples, and what names a row in a message."""

    source: list[tuple[int, ...]]
    reference: list[tuple[int, ...]]
    names: list[str]

    def prefix(self, place: Place) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What a column is and what it should be, at any depth."""
        row, position = place
        return self.source[row][: position + 1], self.reference[row][: position + 1]

    def local(self, place: Place) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The same at layer 0, whose inputs know only their own token and position."""
        row, position = place
        return (self.source[row][position], position), (self.reference[row][position], position)


def fill(template: str, concept: str) -> str:
    """The template with the concept in it, and the spaces that an empty concept leaves closed up."""
    return " ".join(template.replace("{}", concept).split())


def plan(
    backbone: Backbone,
    request: EraseRequest,
    templates: Sequence[str],
    *,
    positions: str = "all",
    extra: Sequence[str] = (),
    context_free: bool = True,
    keep_exactly: bool = True,
) -> Plan:
    """The columns for every target and retained concept in every template; `extra` prompts are retained verbatim.

    `positions`: "all" (every position of the encoder), "content" (BOS, from the first differing position to the
    later first EOS, and the last padding position), or "concept" (BOS and the differing positions; a retained
    prompt's as for content). `context_free`: layer 0 is aligned too, where columns know
    only token and position, so more of them conflict; `keep_exactly`: a retained prompt can be in conflict too, else it
    gives way. A prompt that is too long raises `UsageError`.
    """
    pairs = [(t, a) for t, a in zip(request.targets, request.anchors, strict=True)]
    rows = [(fill(s, t), fill(s, a)) for t, a in pairs for s in templates]
    retained = list(dict.fromkeys([*extra, *(fill(s, r) for r in request.retain for s in templates)]))
    source = backbone.tokenize([t for t, _ in rows] + retained)
    reference = backbone.tokenize([a for _, a in rows] + retained)
    names = [f"{t!r} -> {a!r}" for t, a in rows] + [f"retained {r!r}" for r in retained]
    columns = _Columns([*map(tuple, source.ids.tolist())], [*map(tuple, reference.ids.tolist())], names)
    ends = [max(pair) for pair in zip(source.ends, reference.ends, strict=True)]
    places = [(i, p) for i in range(len(names)) for p in _positions(columns, i, ends[i], positions)]
    hard = _distinct(columns, [p for p in places if p[0] < len(rows)])
    retaining = [p for p in places if p[0] >= len(rows)]
    kept = _distinct(columns, retaining)
    keys = [columns.prefix, columns.local] if context_free else [columns.prefix]
    asked = [*hard, *(kept if keep_exactly else retaining)]  # every prompt that gives way is named
    clashes = [pair for key in keys for pair in _clashes(key, asked)]
    # Of two places the later is the kept one, if one is.
    firm = [pair for pair in clashes if keep_exactly or pair[1][0] < len(rows)]
    soft = [pair for pair in clashes if not keep_exactly and pair[1][0] >= len(rows)]
    disputed = tuple(dict.fromkeys(place for pair in firm for place in pair if place[0] >= len(rows)))
    conflicts, giving = (tuple(_sentences(backbone, columns, pairs)) for pairs in (firm, soft))
    return Plan(
        source, reference, hard, kept, conflicts, disputed, giving, tuple(t for t, _ in pairs for _ in templates)
    )


def given_way(plan: Plan) -> list[str]:
    """A warning for every retained prompt that gives way, after `SHOWN` only how many more there are."""
    why = "no weight can serve both, and the retained prompt moves: choose an anchor that keeps this token in place"
    more = len(plan.giving) - SHOWN
    last = [f"{more} more retained prompts share a token with a target like this, and move"] if more > 0 else []
    return [f"{text}; {why}" for text in plan.giving[:SHOWN]] + last


def begin_alike(backbone: Backbone, request: EraseRequest) -> list[str]:
    """A warning for every two targets that share their first tokens and have anchors that do not, after `SHOWN` only how
    many more there are: where bare prompts are paired position by position, the shared columns go to a mix of both."""
    source, reference = backbone.tokenize(request.targets), backbone.tokenize(request.anchors)
    names = [f"{t!r} -> {a!r}" for t, a in zip(request.targets, request.anchors, strict=True)]
    columns = _Columns([*map(tuple, source.ids.tolist())], [*map(tuple, reference.ids.tolist())], names)
    last = max(*source.ends, *reference.ends)
    places = [(row, position) for row in range(len(names)) for position in range(1, last + 1)]
    found = _sentences(backbone, columns, list(_clashes(columns.prefix, places)))
    why = "it goes to a mix of both anchors: choose anchors that begin alike, or erase one at a time"
    more = [f"{len(found) - SHOWN} more pairs of targets share a token like this"] if len(found) > SHOWN else []
    return [f"{text}; {why}" for text in found[:SHOWN]] + more


def _positions(columns: _Columns, row: int, end: int, positions: str) -> list[int]:
    length = len(columns.source[row])
    if positions == "all":
        return list(range(length))
    pairs = zip(columns.source[row], columns.reference[row], strict=True)
    differing = [i for i, (a, b) in enumerate(pairs) if a != b]
    if positions == "concept" and differing:
        return sorted({0, *differing})
    first = differing[0] if differing else 1
    return sorted({0, *range(first, end + 1), length - 1})


def _distinct(columns: _Columns, places: Sequence[Place]) -> tuple[Place, ...]:
    """The places without those whose column and wanted column an earlier place already has."""
    return tuple({columns.prefix(place): place for place in reversed(places)}.values())[::-1]


def _sentences(backbone: Backbone, columns: _Columns, clashes: Sequence[tuple[Place, Place]]) -> list[str]:
    """One for each two rows in conflict."""
    found: dict[tuple[int, int], str] = {}
    for one, other in clashes:
        token = backbone.token_text(columns.source[one[0]][one[1]])
        text = f"{columns.names[one[0]]} and {columns.names[other[0]]} share the token {token!r} at position {one[1]}"
        found.setdefault((one[0], other[0]), text)
    return list(found.values())


def _clashes(key: Callable[[Place], tuple[object, object]], places: Sequence[Place]) -> Iterator[tuple[Place, Place]]:
    """Every place whose column an earlier place has too, with another wanted column."""
    first: dict[object, tuple[object, Place]] = {}
    for place in places:
        column, wanted = key(place)
        known, where = first.setdefault(column, (wanted, place))
        if known != wanted:
            yield where, place
