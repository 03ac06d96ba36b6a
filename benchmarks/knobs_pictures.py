"""The pictures of `erasepro_knobs.py --images`: a fixed, small number for each telling setting, judged and kept as rows."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emoji_erasure import PAIRS, Prompt, Recorder, Row, complex_prompts, other_prompts, share
from knobs_settings import Setting

import erasekit
from erasekit.evaluation.statistics import Share
from erasekit.worlds.emoji.judge import load_judge

PROMPTS, SEEDS, OTHERS = 6, 2, 12  # a target: images asked for it, PROMPTS x SEEDS, and of other concepts, one each
NAMES = ("efficacy", "anchor in its place", "specificity")


class Gallery:
    """Draws what is not yet in `rows.jsonl`. Runs are named by the weights too: those of other weights do not count."""

    def __init__(self, model: str, folder: Path, targets: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pipe = erasekit.load(model)
        sampling = erasekit.models.defaults(erasekit.models.resolve(model))
        self.recorder = Recorder(folder / "rows.jsonl", pipe, load_judge(), sampling)
        self.weights, self.targets = _digest(pipe), list(PAIRS)[:targets]

    def judge(self, settings: Sequence[Setting]) -> dict[str, dict[str, Any]]:
        """Setting -> measure -> hits, images, share, 95 % Wilson interval; the first row is the unedited model."""
        start, missing = time.perf_counter(), self._missing("base")
        totals = {"no edit": self._total([self._shares("base", t) for t in self.targets])}
        if missing:
            left = sum(self._missing(s.name) for s in settings)
            minutes = (time.perf_counter() - start) / missing * left / 60
            print(
                f"\n{left} images to draw, about {minutes:.0f} minutes; a run that is stopped goes on", file=sys.stderr
            )
        for setting in settings:
            totals[setting.name] = self._total([self._edited(setting, t) for t in self.targets])
        return {name: {k: _plain(v) for k, v in total.items()} for name, total in totals.items()}

    def _prompts(self, target: str) -> tuple[list[Prompt], list[Prompt]]:
        anchor = PAIRS[target]
        return complex_prompts(target, anchor, target, PROMPTS), other_prompts(target, anchor, OTHERS)

    def _run(self, name: str, target: str) -> str:
        """A run's name in the rows; the unedited model draws the others of all targets once."""
        return f"{self.weights}|{name}" if name == "base" else f"{self.weights}|{name}|{target}"

    def _missing(self, name: str) -> int:
        keys = {(self._run(name, t), p.text, seed) for t in self.targets for group, seeds in
                zip(self._prompts(t), (SEEDS, 1), strict=True) for p in group for seed in range(seeds)}  # fmt: skip
        return len(keys - set(self.recorder.rows))

    def _edited(self, setting: Setting, target: str) -> dict[str, Share]:
        edit = erasekit.erase(
            self.recorder.pipe, target, anchor=PAIRS[target], method=setting.method, **setting.parameters
        )
        with edit.applied(self.recorder.pipe):
            return self._shares(setting.name, target)

    def _shares(self, name: str, target: str) -> dict[str, Share]:
        asked, others = self._prompts(target)
        rows: list[Row] = self.recorder.record(self._run(name, target), asked, range(SEEDS))
        kept = self.recorder.record(self._run(name, target), others, range(1))
        right = {p.text: p.wanted for p in others}
        found = [target not in r.found for r in rows], [PAIRS[target] in r.found for r in rows]
        return dict(zip(NAMES, (*map(share, found), share(r.best == right[r.text] for r in kept)), strict=True))

    def _total(self, each: Sequence[dict[str, Share]]) -> dict[str, Share]:
        return {name: Share(sum(e[name].hits for e in each), sum(e[name].trials for e in each)) for name in NAMES}


def _digest(pipe: Any) -> str:
    """Eight hexadecimal digits of the denoiser's weights."""
    found = hashlib.sha256()
    for parameter in pipe.unet.parameters():
        found.update(parameter.detach().cpu().numpy().tobytes())
    return found.hexdigest()[:8]


def _plain(s: Share) -> dict[str, Any]:
    return {"hits": s.hits, "images": s.trials, "share": s.value, "interval95": s.interval}
