"""The columns that a closed-form fit measures its drift on."""

from __future__ import annotations

from erasekit.methods._check import DRIFT_COLUMNS, probes

NAMES = [(0, 0), *((row, position) for row in range(50) for position in range(1, 77))]
"""The columns of 50 prompts that share BOS: of every eighth of all none is at the first two positions behind it."""


def test_the_names_of_one_token_prompts_are_among_the_probes() -> None:
    found = probes(NAMES)
    assert len(found) == DRIFT_COLUMNS and list(found) == sorted(set(found) & set(NAMES))
    assert {1, 2} <= {position for _, position in found}
    assert probes(NAMES) == found


def test_few_columns_come_back_as_they_are() -> None:
    few = NAMES[:DRIFT_COLUMNS]
    assert probes(few) == few and probes(()) == ()
