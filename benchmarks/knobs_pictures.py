"""The pictures of `erasepro_knobs.py --images`: a fixed, small number for each telling setting, judged and kept as rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emoji_prompts import PAIRS, Prompt, complex_prompts, other_prompts
from emoji_rows import BASE, Hits, counted, plain, recorder, run_of, total
from knobs_settings import Setting

import erasekit
from erasekit.edit import Edit

PROMPTS, SEEDS, OTHERS = 6, 2, 12  # a target: images asked for it, PROMPTS x SEEDS, and of other concepts, one each
NAMES = ("efficacy", "anchor in its place", "specificity")
Fitted = dict[str, Edit | None]
"""A setting's edit of each target; None is the unedited model."""


class Gallery:
    """Draws what is not yet in the model's file of rows; what another edit drew under a setting's name does not count."""

    def __init__(self, model: str, folder: Path, targets: int) -> None:
        self.recorder, self.targets = recorder(model, folder), list(PAIRS)[:targets]

    def judge(self, settings: Sequence[Setting]) -> dict[str, dict[str, Any]]:
        """Setting -> measure -> hits, images, share, 95 % Wilson interval; the first row is the unedited model."""
        fitted = {setting.name: self._fit(setting) for setting in settings}  # refused before anything is drawn
        unedited: Fitted = dict.fromkeys(self.targets)
        start, missing = time.perf_counter(), self._missing("", unedited)
        found = {"no edit": self._shares("", unedited)}
        if missing:
            left = sum(self._missing(name, edits) for name, edits in fitted.items())
            minutes = (time.perf_counter() - start) / missing * left / 60
            print(
                f"\n{left} images to draw, about {minutes:.0f} minutes; a run that is stopped goes on", file=sys.stderr
            )
        return found | {name: self._shares(name, edits) for name, edits in fitted.items()}

    def _fit(self, setting: Setting) -> Fitted:
        given = {"method": setting.method, **setting.parameters}
        return {t: erasekit.erase(self.recorder.pipe, t, anchor=PAIRS[t], **given) for t in self.targets}

    def _missing(self, name: str, edits: Fitted) -> int:
        keys = {(_run(name, t, edit), shot) for t, edit in edits.items()
                for prompts, seeds in zip(_prompts(t), (SEEDS, 1), strict=True)
                for shot in self.recorder.missing(_run(name, t, edit), prompts, range(seeds))}  # fmt: skip
        return len(keys)

    def _shares(self, name: str, edits: Fitted) -> dict[str, Any]:
        """A setting's measures over all targets."""
        return plain(total([self._hits(name, target, edit) for target, edit in edits.items()]))

    def _hits(self, name: str, target: str, edit: Edit | None) -> dict[str, Hits]:
        if edit is None:
            return self._drawn(BASE, target)
        with edit.applied(self.recorder.pipe):
            return self._drawn(_run(name, target, edit), target)

    def _drawn(self, run: str, target: str) -> dict[str, Hits]:
        asked, others = _prompts(target)
        rows, kept = self.recorder.record(run, asked, range(SEEDS)), self.recorder.record(run, others, range(1))
        right, anchor = {p.text: p.wanted for p in others}, PAIRS[target]
        found = (counted(rows, lambda r: target not in r.found), counted(rows, lambda r: anchor in r.found),
                 counted(kept, lambda r: r.best == right[r.text]))  # fmt: skip
        return dict(zip(NAMES, found, strict=True))


def _run(name: str, target: str, edit: Edit | None) -> str:
    """A run's name in the rows; the unedited model draws the others of all targets once."""
    return BASE if edit is None else run_of(f"{name}|{target}", edit)


def _prompts(target: str) -> tuple[list[Prompt], list[Prompt]]:
    anchor = PAIRS[target]
    return complex_prompts(target, anchor, target, PROMPTS), other_prompts(target, anchor, OTHERS)
