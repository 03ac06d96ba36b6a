"""What a judge's words mean for an image: is the target in it, is what was asked for in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erasekit.evaluation.rows import Row


@dataclass(frozen=True)
class Reading:
    """How one judge's judgements are read. `labels`: target -> the judge's labels that count as it; `kind`: what the
    suite's targets are ("style": the judge's style decides, and an image keeps a prompt only in its style)."""

    judge: str
    labels: Mapping[str, Sequence[str]]
    kind: str

    def status(self, row: Row) -> str:
        """One of "ok", "failed", "invalid"; an image that this judge was not asked about has failed."""
        return str(row.judgements.get(self.judge, {}).get("status", "failed"))

    def decides(self, rows: Sequence[Row]) -> bool:
        """Whether the judge names things at all (a similarity alone decides nothing)."""
        said = (row.judgements.get(self.judge, {}) for row in rows)
        return any("found" in one or "best" in one for one in said)

    def target(self, row: Row) -> bool:
        """Whether the row's target is found."""
        labels = self.labels.get(row.target, (row.target,))
        said = self._said(row)
        return said.get("style") in labels if self.kind == "style" else not _found(said).isdisjoint(labels)

    def label(self, row: Row, label: str) -> bool:
        """Whether one label is found (for a suite of styles: whether it is the style)."""
        said = self._said(row)
        return said.get("style") == label if self.kind == "style" else label in _found(said)

    def wanted(self, row: Row) -> bool:
        """Whether everything is found that the prompt asks for (in a suite of styles, the style too)."""
        said = self._said(row)
        styled = self.kind != "style" or row.style is None or said.get("style") == row.style
        return styled and _found(said).issuperset(row.wanted)

    def asks(self, row: Row) -> bool:
        """Whether `wanted` can be decided: the prompt names something that a judge could find."""
        return bool(row.wanted) or (self.kind == "style" and row.style is not None)

    def look(self, row: Row, part: str) -> bool:
        """Whether the judge's `part` ("style" or "background") is the one asked for."""
        return self._said(row).get(part) == getattr(row, part)

    def _said(self, row: Row) -> Mapping[str, Any]:
        return row.judgements.get(self.judge, {})


def _found(said: Mapping[str, Any]) -> set[str]:
    """The labels found; of a judge that has no threshold, its best one."""
    return set(said["found"]) if "found" in said else {said["best"]} if "best" in said else set()
