"""M-ErasureBench: text, learned words and inverted latents asked for the target, each beside its controls (Weng, Liao,
Chou and Chen, arXiv 2512.22877, WACV 2026).

The score of a scenario is the Concept Reproduction Rate (lower is better for an edit), over its N generated pictures x_i:

    CRR = #{i : the judge finds the target in x_i} / N        pictures that cannot be judged are counted apart

The five scenarios (`_bench_scenarios.py`; the two latent ones in three settings each) say what is confirmed and what is
inferred: only the abstract was read, and there is no released code. K pictures with the target are made by the unedited
model. A word is learned from one half of them and asked for in fixed sentences x seeds, as are plain words; the other half is
inverted. The same pictures, sentences and noise serve every edit: two runs differ in the edit alone.

Inversion is almost an auto-encoder, and enough steps teach any word: a CRR alone does not show that a concept survived.
Beside each stands what the same procedure gives on

    unedited    the model without the edit                          (how strong the input is at all)
    scrambled   the same pictures with their tiles shuffled, put right again before the judge looks: what no model was
                trained on, asked the same question                 (latents only: what inversion returns of anything)
    never-knew  a model of the same recipe that never saw the target (optional: what is taught, or merely handed through)

with the gap, CRR - control, and its interval (Newcombe 1998, method 10, of the two Wilson intervals).

Under the null prompt guidance combines two equal predictions: guidance 1 and the usual one are one row. With the usual
guidance under the concept prompt the loop does not close, and no null-text optimisation (an attack of its own) closes it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from erasekit.attacks import _bench_scenarios as scenarios
from erasekit.attacks import check_family
from erasekit.attacks._bench import CONCEPT_SEEDS, Store, by_latent, by_word, collected, taught, through, without
from erasekit.attacks._bench_rates import counted, gap, warned
from erasekit.attacks._bench_scenarios import ENOUGH, TEMPLATES, MErasureBenchConfig, Scenario, chosen, named
from erasekit.attacks._inversion import BLIND
from erasekit.attacks.base import Case, Outcome, Spent
from erasekit.attacks.ladder import kept, memory_line
from erasekit.attacks.never_knew import PARTS
from erasekit.attacks.prompts import drawn
from erasekit.backbones import family_of
from erasekit.errors import UsageError
from erasekit.fingerprint import parts_sha256
from erasekit.training.images import scale_of

if TYPE_CHECKING:
    from erasekit.attacks.sight import Sight
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress


class MErasureBench:
    """The benchmark: not an attack on given cases, but attacks with the pictures and the controls that they need."""

    name: ClassVar[str] = "m-erasurebench"
    title: ClassVar[str] = "M-ErasureBench: text, learned words and inverted latents, with controls"
    version: ClassVar[str] = scenarios.VERSION
    paper: ClassVar[str] = "arXiv 2512.22877"
    access: ClassVar[tuple[str, ...]] = ("prompts", "gradients", "original", "images")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[MErasureBenchConfig]] = MErasureBenchConfig

    def run(
        self, victim: Victim, folder: Path, config: MErasureBenchConfig, *, others: Sequence[str],
        about: Mapping[str, Any], templates: Sequence[str] = (), only: Sequence[str] = (), never: Victim | None = None,
        seed: int = 0, progress: Progress | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What `results.json` holds. Every part is kept in `folder` as it is done, the same call goes on from there, and
        the parts are the same whether or not it was stopped, and whatever `only` asks for first.

        `others`: prompts for other things. `about`: what else decides (model, edit, judge, sampling). `only`: keys of the
        scenarios to draw, `never`: for them; what else earlier calls left in the folder is in the results as well. Both
        victims are entered. Raises `UsageError` for what does not fit, or a folder of another run.
        """
        rows, templates = chosen(only), tuple(templates) or TEMPLATES[victim.sight.kind]
        check(victim, config, templates, others, never)
        asked = {"benchmark": self.version, "config": asdict(config), "templates": list(templates),
                 "others": list(others), "kind": victim.sight.kind, "seed": seed, "word_rate": config.word_rate,
                 **about}  # fmt: skip
        stores = [Store(folder, asked)]
        if never is not None:
            stores.append(Store(scenarios.store_of(folder, scenarios.NEVER), {"never_knew_sha256": _whole(never.pipe)}))
        bench = _Bench(victim, config, templates, others, stores, never, seed, progress)
        with memory_line():
            return asked | bench.results(rows)


@dataclass
class _Bench:
    """One run; `stores`: of the victim's parts, and of the never-knew model's."""

    victim: Victim
    config: MErasureBenchConfig
    templates: Sequence[str]
    others: Sequence[str]
    stores: Sequence[Store]
    never: Victim | None
    seed: int
    progress: Progress | None

    @cached_property
    def concept(self) -> list[Outcome]:
        prompts, count = named(self.templates, self.victim.sight.target), self.config.images
        return self.stores[0].outcomes(
            scenarios.BEGIN, lambda: collected(self.victim, prompts, count, tries=self.config.tries)
        )

    @cached_property
    def cases(self) -> list[Case]:
        prompts = named(self.templates, self.victim.sight.target)
        return [Case(prompt, seed) for seed in range(self.config.seeds) for prompt in prompts]

    def results(self, asked: Sequence[Scenario]) -> dict[str, Any]:
        """The pictures, the judge's false positives, the autoencoder alone, and the rows: those that are asked for, and
        those that the folder has whole."""
        rows = [row for row in scenarios.SCENARIOS if row in asked or self._done(row)]
        drawn_in_all = self.concept[-1].case.seed - CONCEPT_SEEDS + 1  # the last one drawn is always kept
        store, (_, inverted), tiles = self.stores[0], halves(self.concept), self.config.tiles
        false = store.outcomes("others", lambda: without(self.victim, self.others, self.config.images))
        alone = {}
        if any(row.key[0] == "L" for row in rows):
            for name, cut in (("autoencoder", 1), ("autoencoder scrambled", tiles)):
                alone[name] = counted(store.outcomes(
                    name, lambda cut=cut: through(self.victim, inverted, tiles=cut, seed=self.seed)))  # fmt: skip
        return {"concept_images": {"kept": len(self.concept), "drawn": drawn_in_all, "short": len(self.concept) < ENOUGH},
                "false_positives": counted(false), "autoencoder": alone,
                "rows": self._rows(rows, asked)}  # fmt: skip

    def _done(self, scenario: Scenario) -> bool:
        return all(scenarios.lies(self.stores[0].folder, scenario.row, side).exists() for side in scenario.sides)

    def _rows(self, rows: Sequence[Scenario], asked: Sequence[Scenario]) -> list[dict[str, Any]]:
        """Each scenario's row; one that its twin beats, which sees less, says so."""
        made = [self.row(row, i, len(rows), draw=row in asked) for i, row in enumerate(rows)]
        store, victim = self.stores[0], self.victim
        return warned(made, {row.row: self.arm(store, scenarios.EDITED, row, victim, row.found_on) for row in rows})

    def row(self, scenario: Scenario, number: int, total: int, *, draw: bool) -> dict[str, Any]:
        """The scenario on the edited model, and its controls with their gaps."""
        if self.progress:
            self.progress(number, total, f"{MErasureBench.name}: {scenario.row}")
        edited = self.arm(self.stores[0], scenarios.EDITED, scenario, self.victim, scenario.found_on)
        controls: dict[str, list[Outcome]] = {}
        with self.victim.original():
            controls[scenarios.UNEDITED] = self.arm(
                self.stores[0], scenarios.UNEDITED, scenario, self.victim, "original"
            )
        if scenario.key[0] == "L":
            controls[scenarios.SCRAMBLED] = self.arm(
                self.stores[0], scenarios.SCRAMBLED, scenario, self.victim, "", tiles=self.config.tiles)  # fmt: skip
        if (never := self._never_knew(scenario, draw=draw)) is not None:
            controls[scenarios.NEVER] = never
        crr, others = counted(edited), {name: counted(found) for name, found in controls.items()}
        blind = [BLIND] * any(BLIND in one.note for one in edited)
        return {**asdict(scenario), "crr": crr, "warnings": blind, "spent": asdict(sum((one.spent for one in edited), Spent())),
                "controls": {name: one | {"gap": gap(crr, one)} for name, one in others.items()}}  # fmt: skip

    def _never_knew(self, scenario: Scenario, *, draw: bool) -> list[Outcome] | None:
        """On the model without the target: of a row to draw where that is given, else as an earlier run left it."""
        if draw and self.never is not None:
            return self.arm(self.stores[1], scenarios.NEVER, scenario, self.never, scenarios.NEVER)
        place = scenarios.lies(self.stores[0].folder, scenario.row, scenarios.NEVER)
        return kept(place) if place.exists() else None

    def arm(
        self, store: Store, of: str, scenario: Scenario, victim: Victim, word: str, *, tiles: int = 1
    ) -> list[Outcome]:
        """The outcomes of a scenario on a side (`of`) and its victim; `word`: on which model one is learned, for the
        scenarios that need it."""
        config, seed, progress = self.config.of(scenario), self.seed, self.progress
        learning, inverted = halves(self.concept)
        side = victim.original if word == "original" else nullcontext

        def make() -> list[Outcome]:
            if scenario.key[0] == "T":
                return drawn(victim, self.cases)
            if scenario.key[0] == "L":
                return by_latent(victim, inverted, config, tiles=tiles, seed=seed, progress=progress)
            found = store.tensors(
                word, lambda: taught(victim, learning, config, side=side, seed=seed, progress=progress))  # fmt: skip
            return by_word(victim, self.cases, found, config, sources=learning)

        return store.outcomes(scenarios.part_of(scenario.row, of), make)


# -- what is asked --------------------------------------------------------------------------------------------------


def check(
    victim: Victim, config: MErasureBenchConfig, templates: Sequence[str], others: Sequence[str], never: Victim | None
) -> None:
    """Raises `UsageError` for what cannot be run, before any work."""
    for one in (victim, *([] if never is None else [never])):
        check_model(one.pipe)
    if wrong := [template for template in templates if "{}" not in template]:
        raise UsageError(f"the sentence {wrong[0]!r} must hold {{}}, where the target goes")
    if not others:
        raise UsageError("name prompts for other things: the judge's false positives are counted on them")
    if wrong := [prompt for prompt in others if names_target(prompt, victim.sight)]:
        raise UsageError(f"the control prompt {wrong[0]!r} names the target: give prompts for other things")
    if wrong := [side for side in victim.denoiser().shape[1:] if side % config.tiles]:
        raise UsageError(f"tiles={config.tiles} does not divide the {wrong[0]} latents of a side: give one that does")
    if never is not None and _size(never) != _size(victim):
        raise UsageError(f"the model without the target draws pictures of {_size(never)}, this one of {_size(victim)} "
                         "(height, width): give one of the same size")  # fmt: skip


def check_model(pipe: Any) -> None:
    """Raises `UsageError` for a pipeline of a family that lacks what the scenarios need."""
    check_family(MErasureBench, family_of(pipe))


def names_target(text: str, sight: Sight) -> bool:
    """Whether the text has the target, or a label that counts as it, as whole words."""
    names = "|".join(map(re.escape, (sight.target, *sight.labels)))
    return re.search(rf"(?<!\w)({names})(?!\w)", text, re.IGNORECASE) is not None


def halves(concept: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """(those that words are learned from, those that are inverted): every other one, so that both have all sentences."""
    return list(concept[::2]), list(concept[1::2])


def _whole(pipe: Any) -> str:
    """The sha256 of all that a model computes with: its weights, and its sampler with its parameters.

    What diffusers keeps beside these under names that begin with "_" is left out: one is a list in the order of a set,
    which is another in each process.
    """
    weights = parts_sha256({part: getattr(pipe, part) for part in PARTS})
    sampler = sorted((key, value) for key, value in pipe.scheduler.config.items() if not key.startswith("_"))
    return hashlib.sha256(f"{weights}{type(pipe.scheduler).__name__}{sampler}".encode()).hexdigest()


def _size(victim: Victim) -> tuple[int, ...]:
    return tuple(side * scale_of(victim.pipe.vae) for side in victim.denoiser().shape[1:])
