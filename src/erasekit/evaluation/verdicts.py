"""What a judge's words mean for an image: is the target in it, is what was asked for in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erasekit.evaluation.rows import Row


@dataclass(frozen=True)
class Reading:
    """How one judge's judgements are read. `labels`: target -> the suite's words that count as it; `words`: what the judge
    calls the suite's words (None: the same; it cannot find a word that is not there); `kind`: what the suite's targets are
    ("style": the style decides, and an image keeps a prompt only in its style).

    `says` are the kinds of answer that the judge gave to any arm's image, so that an arm of black images is read like the
    others; `calibration` are its own error rates.
    """

    judge: str
    labels: Mapping[str, Sequence[str]]
    kind: str
    words: Mapping[str, str] | None = None
    says: frozenset[str] = frozenset()
    calibration: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(judge: Mapping[str, Any], rows: Iterable[Row], labels: Mapping[str, Sequence[str]], kind: str) -> Reading:
        """The reading of a judge as results name it; `rows` are those of all arms."""
        name = judge["name"]
        says = frozenset(key for row in rows for key in row.judgements.get(name, {}))
        return Reading(name, labels, kind, judge.get("words"), says, judge.get("calibration") or {})

    @property
    def decides(self) -> bool:
        """Whether the judge names things at all (a similarity alone decides nothing)."""
        return self.words is not None or not self.says.isdisjoint(("found", "best"))

    def name(self, word: str) -> str | None:
        """What the judge calls a word of the suite; None where it has no label for it."""
        return word if self.words is None else self.words.get(word)

    def sought(self, target: str) -> set[str]:
        """The judge's labels that count as a target; none where it cannot find it."""
        return {label for word in self.labels.get(target, (target,)) if (label := self.name(word)) is not None}

    def status(self, row: Row) -> str:
        """One of "ok", "failed", "invalid"; an image that this judge was not asked about has failed."""
        return str(row.judgements.get(self.judge, {}).get("status", "failed"))

    def seeks(self, row: Row) -> bool:
        """Whether `target` can be decided: the judge has a label for the row's target."""
        return bool(self.sought(row.target))

    def target(self, row: Row) -> bool:
        """Whether the row's target is found."""
        return not self._shown(row).isdisjoint(self.sought(row.target))

    def label(self, row: Row, label: str) -> bool:
        """Whether one of the judge's labels is found (for a suite of styles: whether it is the style)."""
        return label in self._shown(row)

    def asks(self, row: Row) -> bool:
        """Whether `wanted` can be decided: the judge has a label for all that the prompt asks for, or for its style in a
        suite of styles, which then decides."""
        if self._styled(row):
            return self.name(str(row.style)) is not None
        return bool(row.wanted) and all(self.name(word) is not None for word in row.wanted)

    def wanted(self, row: Row) -> bool:
        """Whether everything is found that the prompt asks for and the judge can name (in a suite of styles, the style too)."""
        named = {label for word in row.wanted if (label := self.name(word)) is not None}
        return named <= _found(self._said(row)) and (
            not self._styled(row) or self.name(str(row.style)) in self._shown(row)
        )

    def look(self, row: Row, part: str) -> bool:
        """Whether the judge's `part` ("style" or "background") is the one asked for; it decides only what is in `says`."""
        return self._said(row).get(part) == getattr(row, part)

    def _styled(self, row: Row) -> bool:
        return self.kind == "style" and row.style is not None

    def _shown(self, row: Row) -> set[str]:
        """What is found of the kind that the suite's targets are; a classifier of styles finds styles."""
        said = self._said(row)
        return {said["style"]} if self.kind == "style" and "style" in said else _found(said)

    def _said(self, row: Row) -> Mapping[str, Any]:
        return row.judgements.get(self.judge, {})


def _found(said: Mapping[str, Any]) -> set[str]:
    """The labels found; of a judge that has no threshold, its best one."""
    return set(said["found"]) if "found" in said else {said["best"]} if "best" in said else set()
