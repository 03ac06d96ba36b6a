"""The judge's part of `erasepro_knobs.py`: a setting's edits, those of the features, drawn, judged and counted.

Every picture is a line of the model's file of rows (`emoji_rows.py`), its run named by the knobs' values and by what the
edit changes: a run that is stopped goes on, and what another version of the code fits is drawn anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from emoji_rows import BASE, Hits, Recorder, Row, counted, plain, run_of, total
from knobs_measure import point
from knobs_plan import SEEDS, Plan, Sheet, names_it, run_name
from knobs_settings import Setting
from knobs_world import Case

import erasekit
from erasekit.edit import Edit
from erasekit.errors import EraseKitError

Point = dict[str, Any]


class Gallery:
    """Judges settings; draws only what is not yet in the file of rows."""

    def __init__(self, plan: Plan, recorder: Recorder) -> None:
        self.plan, self.recorder = plan, recorder

    def run(self, settings: Sequence[Setting], keep: Callable[[str, Point], object]) -> None:
        """Judges every setting once and hands each point over as soon as it is there."""
        distinct: dict[str, Setting] = {}
        for setting in settings:
            distinct.setdefault(point(setting), setting)
        for i, (key, setting) in enumerate(distinct.items(), 1):
            print(f"\n{i} of {len(distinct)}: {setting.name}", file=sys.stderr, flush=True)
            keep(key, self.judge(setting))

    def judge(self, setting: Setting) -> Point:
        """Measure -> hits, images, share, 95 % Wilson interval, over all edits of the setting that were not refused."""
        each, reasons = [], []
        for case in self.plan.cases(setting):
            try:
                edit = self._fit(case, setting)
            except EraseKitError as error:
                reasons.append(str(error))
            else:
                each.append(self._hits(case, setting, edit))
        return {"measures": plain(total(each)), "refused": len(reasons), "reasons": reasons[:1]}

    def _fit(self, case: Case, setting: Setting) -> Edit:
        targets, anchors = (list(words) for words in zip(*case.pairs, strict=True))
        return erasekit.erase(self.recorder.pipe, targets, anchor=anchors, retain=case.retain, method=setting.method,
                              **setting.parameters)  # fmt: skip

    def _hits(self, case: Case, setting: Setting, edit: Edit) -> dict[str, Hits]:
        """One edit's pictures beside the unedited model's of the same prompts and seeds."""
        sheet = self.plan.sheet(case)
        found = self._unedited(sheet)
        with edit.applied(self.recorder.pipe):
            return found | self._edited(run_of(run_name(case, setting), edit), sheet)

    def _edited(self, run: str, sheet: Sheet) -> dict[str, Hits]:
        target: Hits = {}
        anchor: Hits = {}
        for (erased, instead), prompts in sheet.asked.items():
            rows = self.recorder.record(run, prompts, range(SEEDS))
            target |= _shown(rows, erased)
            plainly = {p.text for p in prompts if instead and not names_it(p, instead)}
            anchor |= _shown((r for r in rows if r.text in plainly), instead)
        return {"target found": target, "anchor in its place": anchor, "others right": self._others(run, sheet)}

    def _unedited(self, sheet: Sheet) -> dict[str, Hits]:
        """What the unedited model shows: the target, the anchor where it is asked for, the others."""
        target: Hits = {}
        anchor: Hits = {}
        for (erased, instead), prompts in sheet.asked.items():
            target |= _shown(self.recorder.record(BASE, prompts, range(SEEDS)), erased)
            replaced = sheet.replaced.get((erased, instead), [])
            plainly = {new.text for old, new in zip(prompts, replaced, strict=False) if not names_it(old, instead)}
            rows = self.recorder.record(BASE, replaced, range(SEEDS))
            anchor |= _shown((r for r in rows if r.text in plainly), instead)
        return {"target unedited": target, "anchor asked for": anchor, "others unedited": self._others(BASE, sheet)}

    def _others(self, run: str, sheet: Sheet) -> Hits:
        right = {p.text: p.wanted for p in sheet.others}
        rows = self.recorder.record(run, sheet.others, range(sheet.other_seeds))
        return counted(rows, lambda r: r.best == right[r.text])


def _shown(rows: Iterable[Row], word: str) -> Hits:
    return counted(rows, lambda r: word in r.found)
