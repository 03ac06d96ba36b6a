"""How `erasepro_knobs.py` measures a setting: gap, drift and the edit's own numbers, on features, without pictures.

As `emoji_features.py`, but on the first 32 positions (sentence, end, and some of the padding, which repeats itself), on
fewer prompts, and straight from the model's folder: no pipeline is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from emoji_features import apart
from emoji_prompts import complex_prompts, other_prompts
from knobs_settings import Setting
from knobs_world import Case, World
from torch import Tensor

from erasekit import methods
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import EraseKitError
from erasekit.evaluation.shards import digest
from erasekit.methods.erasepro import ErasePro
from erasekit.worlds.emoji.concepts import names

SENTENCES, NEAR, KEPT = 6, 2, 5  # prompts a target, concepts nearest to a target, of the retained
TOGETHER = 12  # settings that one worker measures in a row
Numbers = dict[str, float]


class Probe:
    """The prompts of one case, and what the unedited model makes of them."""

    def __init__(self, world: World, case: Case) -> None:
        self.world, self.case = world, case
        said = {word for pair in case.pairs for word in pair} | set(case.retain)
        measured = self.measured = world.measured(case)
        near = [w for t, _ in measured for w in world.ranked(t, [w for w in world.pool if w not in said])[:NEAR]]
        kept = list(case.retain[:KEPT])
        styled = {p.wanted: p.text for p in other_prompts("", "", len(names()))}
        self.groups: dict[str, list[str]] = {
            f"target {t}": [p.text for p in complex_prompts(t, a, t, SENTENCES)] for t, a in measured
        } | {
            "drift": world.unrelated, "near": [styled[w] for w in dict.fromkeys(near)][: 2 * NEAR], "empty": [""],
            "kept": kept, "kept in sentences": [styled[w] for w in kept],
        }  # fmt: skip
        self.before = self._outputs({})
        anchors = [p.text for t, a in measured for p in complex_prompts(t, a, a or " ", SENTENCES)]
        self.wanted = world.outputs([" ".join(text.split()) for text in anchors], {}).split(SENTENCES)

    def _outputs(self, ops: dict[str, Any]) -> dict[str, Tensor]:
        """Every group's keys and values, from one pass over all prompts."""
        everything = self.world.outputs([text for group in self.groups.values() for text in group], ops)
        return dict(zip(self.groups, everything.split([len(g) for g in self.groups.values()]), strict=True))

    def _gaps(self, found: dict[str, Tensor]) -> list[float]:
        targets = [found[name] for name in self.groups if name.startswith("target")]
        return [apart([mine], [wanted]) for mine, wanted in zip(targets, self.wanted, strict=True)]

    def measure(self, setting: Setting) -> list[Numbers]:
        """The numbers of each measured target; raises where the method refuses."""
        cls, config = configured(setting)
        targets, anchors = zip(*self.case.pairs, strict=True)
        start = time.perf_counter()
        edit = cls().fit(self.world.model, EraseRequest.build(targets, anchor=anchors, retain=self.case.retain), config)
        seconds = time.perf_counter() - start
        numbers = own(edit) | {"seconds": seconds}
        found = self._outputs({op.module: op for op in edit.ops})
        for name in ("drift", "near", "empty", "kept", "kept in sentences"):
            numbers[name] = apart([found[name]], [self.before[name]]) if self.groups[name] else float("nan")
        gaps = zip(self._gaps(found), self._gaps(self.before), self.measured, strict=True)
        return [numbers | {"gap": now, "before": was, "left": now / was, "distance": self.world.distance(*pair)}
                for now, was, pair in gaps]  # fmt: skip


def own(edit: Edit) -> Numbers:
    """What the edit says of itself; an update is the root mean square over the matrices of its side."""
    sites = edit.self_check["sites"]
    sides = {"text update": "text", "cross update": "cross"}
    updates = {
        name: (sum(s["relative_update"] ** 2 for s in sites if s["group"].startswith(side))
               / max(1, sum(s["group"].startswith(side) for s in sites))) ** 0.5 for name, side in sides.items()
    }  # fmt: skip
    return updates | {
        "rank": float(edit.rank_max), "residual": edit.self_check["residual_before_cast"], "KiB": edit.nbytes / 1024,
        "warned": float(bool(edit.self_check["warnings"])),
    }  # fmt: skip


class Results:
    """The numbers of every setting, each edit fitted once, on as many processes as there are cores."""

    def __init__(self, model: str, targets: int) -> None:
        self.world, self.arguments = World(model, targets), (model, targets)
        self.found: dict[tuple[Any, ...], list[Numbers] | str] = {}

    def run(self, settings: Sequence[Setting], workers: int) -> None:
        """Measures every setting, case by case: a case's prompts are encoded once for all its settings."""
        work: dict[Case, dict[tuple[Any, ...], Setting]] = {}
        for setting in settings:
            for case in self.world.cases(setting):
                work.setdefault(case, {})[_key(case, setting)] = setting
        jobs = [(case, list(asked.values())[i::parts]) for case, asked in work.items()
                for parts in [-(-len(asked) // TOGETHER)] for i in range(parts)]  # fmt: skip
        jobs.sort(key=lambda job: -len(job[0].pairs) * len(job[1]))  # the long ones first
        with ProcessPoolExecutor(workers, get_context("spawn"), _start, self.arguments) as pool:
            done = pool.map(_job, *zip(*jobs, strict=True))
            for (case, asked), found in zip(jobs, done, strict=True):
                self.found |= {_key(case, s): numbers for s, numbers in zip(asked, found, strict=True)}

    def summary(self, setting: Setting) -> dict[str, Any]:
        """Mean and standard deviation over the targets of a setting; `refused` counts its edits that were refused."""
        found = [self.found[_key(case, setting)] for case in self.world.cases(setting)]
        rows = [row for rows in found if not isinstance(rows, str) for row in rows]
        columns = {
            key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in (rows[0] if rows else {})
        }
        reasons = [rows for rows in found if isinstance(rows, str)]
        return {
            "label": setting.label, "line": setting.line, "method": setting.method,
            "parameters": dict(setting.parameters), "targets": len(rows), "refused": len(reasons), "reasons": reasons[:1],
            "mean": {k: _finite(c.mean()) for k, c in columns.items()},
            "sd": {k: _finite(c.std()) if len(c) > 1 else None for k, c in columns.items()},
        }  # fmt: skip


def _finite(value: Tensor) -> float | None:
    return float(value) if torch.isfinite(value) else None


def configured(setting: Setting) -> tuple[type[methods.Method], Any]:
    """The method of a setting and its configuration."""
    cls, preset = methods.resolve(setting.method)
    return cls, methods.make_config(cls, {**preset.values, **setting.parameters})


def values(setting: Setting) -> tuple[str, str]:
    """The method's name and its whole configuration: the same for settings that say the same in other words."""
    cls, config = configured(setting)
    plain = replace(config, templates=config.prompts, tolerance=config.tau) if cls is ErasePro else config
    return cls.name, repr(plain)


def point(setting: Setting) -> str:
    """What a setting's judged pictures are known by: the knobs' values, whatever the setting is called."""
    asked = [setting.anchor, setting.retain, setting.concepts, setting.pairs, setting.kept]
    method, config = values(setting)
    return f"{method} {digest([config, *asked])[:16]}"


def _key(case: Case, setting: Setting) -> tuple[Any, ...]:
    return case, *values(setting)


_WORLD: list[World] = []  # a worker's own


def _start(model: str, targets: int) -> None:
    torch.set_num_threads(1)
    _WORLD.append(World(model, targets))


def _job(case: Case, settings: Sequence[Setting]) -> list[list[Numbers] | str]:
    """The numbers of every setting, or why the method refused it."""
    probe = Probe(_WORLD[0], case)
    found: list[list[Numbers] | str] = []
    for setting in settings:
        try:
            found.append(probe.measure(setting))
        except EraseKitError as error:
            found.append(str(error))
    return found
