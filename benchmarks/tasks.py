"""The edits that are measured, and what was to be reached: seconds, times faster than the textbook, the same result, the
residual, memory. The bars are for SD 1.4's shapes on two cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import measuring
from shapes import concepts, words

Results = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Task:
    """One edit to measure: sizes (targets, retained), the sizes for --small, what it is compared with, its bars (`faster`: on
    the ratios of whole edits), and whether the command is run as typed too."""

    method: str
    size: tuple[int, int]
    small: tuple[int, int] = (1, 3)
    names: Callable[[int], list[str]] = concepts
    anchor: str | None = None
    against: str | None = None
    faster: float | None = None
    seconds: float | None = None
    residual: float | None = None
    typed: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)

    def work(self, small: bool) -> measuring.Work:
        count, retained = self.small if small else self.size
        targets = tuple(self.names(count))
        # A retained concept that begins with a target's word has the target's column: an exact method refuses both.
        apart = (concept for concept in concepts(retained + count, start=count) if concept.split()[0] not in targets)
        return measuring.Work(
            self.method,
            targets,
            tuple(islice(apart, retained)),
            self.anchor,
            self.parameters,
        )


RATIO, DIFFERENCE, MEMORY, RESIDUAL = 20.0, 1e-6, 1500, 1e-5
SAMPLE = 64
"""So many prompts stand for all in the textbook's encoder, unless --full."""
ONE, WORD = concepts(1, start=5)[0], words(1, start=5000)[0]
TASKS: dict[str, Task] = {
    "erasepro": Task(
        "erasepro", (1, 0), (1, 0), anchor=ONE, against="erasepro", seconds=3, residual=RESIDUAL, typed=True
    ),
    "erasepro100": Task(
        "erasepro", (100, 0), (2, 0), words, anchor=WORD, against="erasepro", seconds=10, residual=RESIDUAL
    ),
    "erasepro_large": Task("erasepro", (100, 1000), (2, 3), words, anchor=WORD, residual=RESIDUAL),
    "crowd": Task("erasepro:crowd", (100, 1000), (2, 3), words, anchor=WORD),
    "uce": Task("uce", (10, 100), (3, 6), against="uce", faster=RATIO),
    "large": Task("uce", (100, 1000), (10, 40), against="uce", faster=RATIO),
    "rece": Task("rece:nudity", (1, 0), (1, 0), against="rece", faster=RATIO, seconds=3),
    "rece_many": Task("rece:nudity", (10, 100), (2, 3), against="rece", faster=RATIO),
    "speed": Task("speed", (100, 1000), (3, 12), against="speed", faster=RATIO, seconds=5),
    "mace": Task("mace-refine", (100, 1000), (3, 6), against="mace", parameters={"retain_templates": 3}),
    "trce": Task("trce-text", (1, 0), (1, 0), against="trce"),
    "realera": Task("realera-text", (1, 0), (1, 0), against="realera"),
}


def basis(kind: str, taken: dict[str, Any]) -> str:
    """Whether the textbook's side of a ratio ran whole, or is computed from a part of it."""
    (solved, matrices), (summed, sums) = taken["matrices"], taken.get("sums", (0, 0))
    all_ = solved == matrices and summed == sums
    encoded = (taken.get("full", False) or taken["prompts"][0] <= SAMPLE) and not taken.get("rounds")
    whole = {"as_released": "loop" in taken, "recomputed": taken.get("looped", False), "encoded_once": encoded and all_}
    return "run" if whole.get(kind, all_) else "computed"


def bars(results: Results) -> list[dict[str, Any]]:
    """What was to be reached on SD 1.4's shapes, as (what, value, bound, met); without values for a task without numbers."""
    found = results.get("sd14", {})
    rows: list[tuple[str, float | None, float | None, bool | None]] = []
    for task, run in found.items():
        if "ours" not in run:
            rows.append((task, None, None, None))
            continue
        limit = TASKS[task].seconds
        if limit is not None:
            rows.append((f"{task}: seconds", run["ours"]["seconds"], limit, run["ours"]["seconds"] <= limit))
        bound = TASKS[task].faster
        for kind, ratio in run.get("ratios", {}).items():
            if bound is not None and kind != "after_encoding":
                what = f"{task}: times faster, {kind} ({basis(kind, run['textbook'])})"
                rows.append((what, ratio, bound, ratio >= bound))
        if "relative_difference" in run:
            apart = run["relative_difference"]["weight"]
            rows.append((f"{task}: relative difference", apart, DIFFERENCE, apart <= DIFFERENCE))
        if (allowed := TASKS[task].residual) is not None:
            left = run["ours"]["residual"]
            rows.append((f"{task}: residual after the cast", left, allowed, left <= allowed))
        peak = run["ours"]["peak_rss_mb"]
        rows.append((f"{task}: peak MB", peak, MEMORY, peak < MEMORY))
    return [dict(zip(("what", "value", "bound", "met"), row, strict=True)) for row in rows]


def told(bar: dict[str, Any]) -> str:
    """The bar as a line of text."""
    if bar["value"] is None:
        return f"{bar['what']}: not measured"
    return f"{bar['what']}: {bar['value']:.4g}, bar {bar['bound']:g}: {'met' if bar['met'] else 'missed'}"
