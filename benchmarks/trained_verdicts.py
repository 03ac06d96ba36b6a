"""Is a method better than noise of its own size? Said in plain lines, from the rows of the table.

H is the harmonic mean of efficacy, generality and specificity, of those that both rows have: neither damage alone nor
doing nothing has a high one. Its bounds here are H of the lower and of the upper bounds, wider than 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PARTS = ("efficacy", "generality", "specificity")
NOISE = "noise of "
Row = Mapping[str, Any]


def harmonic(row: Row, keys: Sequence[str], bound: str = "value") -> float:
    """H of a row's rates, or of one of their bounds."""
    values = [row[key][bound] for key in keys]
    return len(values) / sum(1 / value for value in values) if all(values) else 0.0


def control(row: Row, rows: Sequence[Row]) -> Row | None:
    """The noise of this method's edits; where there is none (an edit of code without a norm) the suite's best noise."""
    noise = [one for one in rows if one["suite"] == row["suite"] and one["arm"].startswith(NOISE)]
    own = [one for one in noise if one["arm"] == NOISE + row["arm"]]
    return own[0] if own else max(noise, key=lambda one: harmonic(one, shared(one, one)), default=None)


def shared(a: Row, b: Row) -> list[str]:
    return [key for key in PARTS if a[key] and b[key]]


def verdicts(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """One Markdown line for each method and suite that is worse than noise or not told from it, and for the others."""
    worse, unsure, without, above = [], [], [], 0
    for row in (one for one in rows if one["arm"] in methods):
        name, noise = f"{row['arm']} on {row['suite']}", control(row, rows)
        keys = shared(row, noise) if noise else []
        if noise is None or not keys:
            without.append(name)
            continue
        ours, theirs = harmonic(row, keys), harmonic(noise, keys)
        said = f"{name} (H {100 * ours:.1f} against {100 * theirs:.1f} of {noise['arm']})"
        if ours < theirs:
            worse.append(said)
        elif harmonic(row, keys, "low") <= harmonic(noise, keys, "high"):
            unsure.append(said)
        else:
            above += 1
    return _lines(worse, unsure, without, above)


def _lines(worse: list[str], unsure: list[str], without: list[str], above: int) -> str:
    if not (worse or unsure or above):
        return f"- Against the random control: not measured{' for ' + '; '.join(without) if without else ''}."
    lines = [f"- **Worse than the random control, a bug until shown otherwise:** {'; '.join(worse)}." if worse
             else "- No method does worse than the random control.",
             f"- Above the random control, the intervals of H apart: {above} of "
             f"{above + len(worse) + len(unsure) + len(without)} rows."]  # fmt: skip
    if unsure:
        lines.append(f"- Above it, but the intervals meet, so not shown: {'; '.join(unsure)}.")
    if without:
        lines.append(f"- Without a control to compare with: {'; '.join(without)}.")
    return "\n".join(lines)
