"""What `erasepro_knobs.py --images` draws of each setting, counted before anything is loaded to draw it.

The sentences, the other concepts and the seeds depend on the target alone, not on the setting: along a curve the same is
asked. Settings that say the same in other words, as every knob's paper point, are drawn once.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emoji_prompts import PAIRS, Prompt, complex_prompts, other_prompts
from emoji_rows import BASE, Image, maker
from knobs_measure import point, values
from knobs_settings import KNOBS, Setting
from knobs_tables import markdown
from knobs_world import Case, World

from erasekit.errors import UsageError
from erasekit.evaluation.judges import emoji
from erasekit.evaluation.shards import digest
from erasekit.worlds.emoji.concepts import names

PROMPTS, SEEDS, OTHERS = 6, 2, 12  # a target: PROMPTS x SEEDS pictures of it, OTHERS of other concepts
ASKED = {"prompts": PROMPTS, "seeds": SEEDS, "others": OTHERS}
SETTINGS = [setting for knob in KNOBS.values() for setting in knob.settings]
RETAINED = max(setting.retain for setting in SETTINGS)
KEPT = {word for setting in SETTINGS for word in setting.kept}
Pair = tuple[str, str]


@dataclass(frozen=True)
class Sheet:
    """The prompts of one edit: for each measured pair its sentences, and the same ones with the anchor in place of the
    target; of the other concepts plain prompts, with the first so many seeds."""

    asked: Mapping[Pair, list[Prompt]]
    replaced: Mapping[Pair, list[Prompt]]
    others: list[Prompt]
    other_seeds: int

    def images(self, run: str, replaced: bool) -> set[Image]:
        """The pictures of one run; those that ask for the anchor are of the unedited model alone."""
        sentences = [*self.asked.values(), *(self.replaced.values() if replaced else ())]
        shots = [(p.text, seed) for prompts in sentences for p in prompts for seed in range(SEEDS)]
        shots += [(p.text, seed) for p in self.others for seed in range(self.other_seeds)]
        return {(run, *shot) for shot in shots}


class Plan:
    """The cases of a setting, what is drawn of each, and under which name, for the first of a world's targets or all."""

    def __init__(self, world: World, targets: int | None = None) -> None:
        count = min(targets or len(world.targets), len(world.targets))
        self.world = world
        self.targets = [world.targets[i * len(world.targets) // count] for i in range(count)]  # spread as the world's

    def cases(self, setting: Setting) -> list[Case]:
        """The features' own cases, those in which a target is pictured."""
        return [case for case in self.world.cases(setting) if self.measured(case)]

    def measured(self, case: Case) -> list[Pair]:
        """The pairs whose targets are pictured; a setting with pairs of its own is pictured whole."""
        unseen = set(self.world.targets) - set(self.targets)
        return [pair for pair in self.world.measured(case) if pair[0] not in unseen]

    def sheet(self, case: Case) -> Sheet:
        """What is drawn of one case."""
        pairs = self.measured(case)
        said = {word for pair in case.pairs for word in pair}
        others = self._others(pairs[0][0], said, OTHERS * len(pairs))
        return Sheet({pair: _sentences(pair[0], pair[0]) for pair in pairs},
                     {pair: _sentences(*pair) for pair in pairs if pair[1]},
                     others, -(-OTHERS * len(pairs) // max(1, len(others))))  # fmt: skip

    def _others(self, target: str, said: Container[str], count: int) -> list[Prompt]:
        """Of the concepts in no pair of the list a stretch of its own for each target; without what an edit names, and what
        any setting retains of it: the same are asked with nothing retained, and are others in every setting."""
        words = {*PAIRS, *PAIRS.values(), *KEPT}
        words |= {*self.world.retained((), RETAINED + 2), *self.world.retained(said, RETAINED)}  # 2: a pair's own words
        order = [p for p in other_prompts("", "", len(names())) if p.wanted not in words]
        place = self.world.targets.index(target) if target in self.world.targets else 0
        start = place * OTHERS % len(order)
        return [p for p in (*order[start:], *order[:start]) if p.wanted not in said][:count]

    def images(self, setting: Setting) -> set[Image]:
        """All pictures that a setting needs, the unedited model's too, if no edit is refused."""
        found: set[Image] = set()
        for case in self.cases(setting):
            sheet = self.sheet(case)
            found |= sheet.images(run_name(case, setting), replaced=False) | sheet.images(BASE, replaced=True)
        return found


def _sentences(target: str, noun: str) -> list[Prompt]:
    """The target's held-out sentences around a noun: whatever the anchor of the setting, the same ones."""
    return complex_prompts(target, PAIRS.get(target, ""), noun, PROMPTS)


def names_it(prompt: Prompt, word: str) -> bool:
    """Whether a sentence asks for the word, as its second object: a picture of it then tells nothing."""
    return re.search(rf"\b{re.escape(word)}\b", prompt.text) is not None


def run_name(case: Case, setting: Setting) -> str:
    """What an edit's pictures are kept under: what is erased into what, what is retained, and the whole configuration."""
    method, config = values(setting)
    known = digest([[list(pair) for pair in case.pairs], list(case.retain), method, config])
    more = f"+{len(case.pairs) - 1}" if len(case.pairs) > 1 else ""
    return f"{method}|{case.pairs[0][0]}{more}|{known[:12]}"


def made(plan: Plan, by: Mapping[str, Any]) -> dict[str, Any]:
    """All that the judged points of a file have in common: model, judge, sampling, versions; targets, counts, and the
    prompts of one edit for each target."""
    shots = set().union(*(plan.sheet(case).images("", replaced=True) for case in plan.cases(Setting(""))))
    return {**by, "targets": plan.targets, "asked": ASKED, "prompts_sha256": digest(sorted(shots))}


def kept(results: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The judged points that a results file holds; `UsageError` where they are of another model, judge, version, target,
    count or prompt than `found`: beside new ones they could not stay."""
    old = results.get("pictures") or {"made": found, "points": {}}
    was = old["made"]
    if old["points"] and (other := [name for name in {**was, **found} if was.get(name) != found.get(name)]):
        raise UsageError(f"the file has judged pictures of other {', '.join(other)}: name another --out")
    return dict(old["points"])


@dataclass(frozen=True)
class Asked:
    """What `--images` judges: what is drawn, all that makes it, and the points of it that a results file holds."""

    plan: Plan
    made: Mapping[str, Any]
    points: dict[str, Any]

    @classmethod
    def of(cls, results: Mapping[str, Any], model: str, targets: int, pictured: int | None) -> Asked:
        """Of the file's targets (`targets` where there is no file) so many. `UsageError` as `kept` raises it."""
        plan = Plan(World(model, results.get("targets", targets)), pictured)
        by = made(plan, maker(model, emoji.load()))
        return cls(plan, by, kept(results, by))


def estimate(plan: Plan, knobs: Sequence[str], points: Container[str], rate: float) -> str:
    """A table of the pictures that are left and of the minutes that they take; what knobs share is the first one's."""
    settings = [s for name in knobs for s in KNOBS[name].settings]
    done: set[Image] = set().union(*(plan.images(s) for s in settings if point(s) in points))
    rows, total = [], 0
    for name in knobs:
        wanted = set().union(*(plan.images(s) for s in KNOBS[name].settings)) - done
        rows.append([name, str(len(KNOBS[name].settings)), str(len(wanted)), f"{len(wanted) / rate / 60:.0f}"])
        done |= wanted
        total += len(wanted)
    table = markdown(["knob", "settings", "pictures", "minutes"], rows)
    return (f"{table}\n\nat most {total} pictures, about {total / rate / 60:.0f} minutes at {rate:g} a second (--rate), and "
            f"the fits; targets: {', '.join(plan.targets)}")  # fmt: skip
