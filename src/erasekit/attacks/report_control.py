"""Two more pieces of the page of attacks: the curve of relearning, and the rates of a model that never knew the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasekit.evaluation.page_parts import text
from erasekit.evaluation.plots import line

Rung = Mapping[str, Any]


def beside(found: Mapping[str, Any]) -> list[Rung | None]:
    """For each rung the same one on the model that never knew the target; None where there is none."""
    control = found.get("never_knew")
    return list(control["rungs"]) if control else [None] * len(found["rungs"])


def control_lead(found: Mapping[str, Any]) -> str:
    """What is said of the control under the ladder; nothing without one."""
    control = found.get("never_knew")
    said = ("Never knew: every rung alone, on every case, on {} of the same recipe, which never saw the target. A rate that is "
            "as high there is what the attack brings along itself.")  # fmt: skip
    return f'<p class="note">{text(said.format(control["model"]))}</p>' if control else ""


def curves(found: Mapping[str, Any]) -> str:
    """The curve of every rung that has one, the never-knew model's below it; empty without one."""
    parts = []
    for one, other in zip(found["rungs"], beside(found), strict=True):
        theirs: Any = other.get("curve") if other else None
        for curve, who in ((one.get("curve"), ""), (theirs, ", never knew")):
            parts += [_curve(f"{one['label']}{who}", curve)] if curve and len(curve) > 1 else []
    return "".join(parts)


def _curve(label: str, curve: Sequence[Sequence[int]]) -> str:
    said = ", ".join(f"{hits}/{of} after {steps}" for steps, hits, of in curve)
    points = [(steps, hits / of if of else 0.0) for steps, hits, of in curve]
    drawn = line(points, title=f"{label}: cases shown by steps")
    return f'<p class="note">{text(f"{label}, cases that show the target after so many steps: {said}.")}</p>{drawn}'
