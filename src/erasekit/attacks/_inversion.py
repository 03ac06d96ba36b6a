"""What Concept Inversion and its black-box twin share: a new word is learned from pictures, then it asks for the target.

The word is k rows v (k, width) in the place of token embeddings, learned by textual inversion (arXiv 2208.01618):

    L(v) = E | wanted - f(z_t, t, E(v)) |^2

z_t (b, c, h, w) a picture's latents at timestep t ~ U{0..999}, sampled from the autoencoder's posterior (not its mean);
E(v) (b, length, features) the text encoder's output for a sentence with the word; f the denoiser; wanted is the noise, on
models that predict v the velocity: the model's own prediction space. Only v moves, by AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.attacks import pictures
from erasekit.attacks._inversion_learn import Learner, Lesson, Variant, pixels, posterior
from erasekit.attacks._inversion_word import TEMPLATES, Word, read
from erasekit.attacks.base import Case, Outcome, Spent, shares, still_open
from erasekit.attacks.prompts import better, unattacked
from erasekit.errors import UsageError
from erasekit.methods import check_choice, check_range

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

BLIND = "no gradient reached the word: nothing was learned"


@dataclass(frozen=True)
class InversionConfig:
    """Parameters; a wrong value raises `UsageError`. Defaults: the training scripts of arXiv 2308.01508."""

    steps: int = 5000
    """Optimiser steps."""
    batch: int = 16
    """Samples of a step (the script: 4, accumulated 4 times)."""
    rate: float = 0.08
    """AdamW's rate as it is used: the script's 5e-3 x 4 (batch) x 4 (accumulation). It is not scaled again."""
    passes: int = 1
    """In how many passes a step's samples go through the denoiser: more need less memory, and change rounding alone."""
    decay: float = 0.01
    """AdamW's weight decay."""
    num_vectors: int = 1
    """Rows of the word. With many, a concept that the model never knew can be taught."""
    initial: str = ""
    """The word to start from: one token, none of the target's own. Empty: the first of a few common words that is one."""
    kind: str = ""
    """object, style or person: which sentences. Empty: what the judge looks for."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for the word to learn in (the first is also for cases that do not name the target). Empty: by kind."""
    pictures: int = 25
    """Pictures of the target that the unedited model makes."""
    images: str = ""
    """A folder of pictures of the target instead; all are used."""
    prompt: str = ""
    """What the unedited model is asked for. Empty: the first sentence with the target."""
    flip: bool = True
    """Mirror each picture half of the time."""
    check: tuple[int, ...] = (100, 500, 1000, 2000)
    """Steps after which a few cases are drawn until they show the target (the curve), besides the last."""
    check_cases: int = 8
    """How many."""
    stop_at: float = 0.0
    """End once this share of the cases that are checked was shown; 0: never, but where all cases were."""
    precision: str = "model"
    """model: the frozen parts compute as they are stored (a float16 denoiser under bfloat16 autocast); bfloat16: under
    autocast. The word is float32 in any case."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "passes", "pictures", "check_cases"):
            check_range(name, getattr(self, name), low=1, high=1e9)
        check_range("num_vectors", self.num_vectors, low=1, high=64)
        check_range("check", min(self.check, default=1), low=1)
        check_range("rate", self.rate, low=1e-12, high=1e3)
        check_range("decay", self.decay, high=1e3)
        check_range("stop_at", self.stop_at, high=1)
        check_choice("kind", self.kind, ("", *TEMPLATES))
        check_choice("precision", self.precision, ("model", "bfloat16"))
        if wrong := [template for template in self.templates if template.count("{}") != 1]:
            raise UsageError(f"the template {wrong[0]!r} must hold {{}} once, where the word goes")


def invert(
    victim: Victim, cases: Sequence[Case], config: InversionConfig, variant: Variant, *,
    side: Callable[[], AbstractContextManager[object]], seed: int, progress: Progress | None,
) -> list[Outcome]:  # fmt: skip
    """Learns one word on the model inside `side()`, and draws every case that is open with it on the edited model.

    `spent` shares the learning, and making the pictures for it, among the cases it was for. Each case has its best picture
    over the checks, and a curve of its own: steps against its best score so far, ending where the target was seen.
    """
    word = Word(victim, config)
    paths = pictures.files(config.images) if config.images else []  # a folder without one is refused before the work
    text = word.laid([word.in_template(template) for template in word.templates])
    found = unattacked(victim, cases)
    open_ = still_open(found)
    if not open_:
        return found
    clean, making = pixels(victim, config, paths, word.templates[0], seed)
    moments = posterior(victim, torch.cat([clean, clean.flip(-1)]) if config.flip else clean)
    lesson = Lesson(victim, config, variant, text, moments, seed)
    with side():
        learner = Learner(word.start(), lesson, rate=config.rate, decay=config.decay)
    drawn = _learned(learner, word, [cases[i] for i in open_], config, side, progress)
    steps = len(learner.losses)
    learning = Spent(steps, steps * config.batch * variant.cost, lesson.encodings)
    last = {"rows": learner.rows.detach().cpu()}
    for i, outcome, cost in zip(open_, drawn, shares(making + learning, len(open_)), strict=True):
        best = better(found[i], replace(outcome, spent=outcome.spent + cost), cases[i])
        note = "; ".join(filter(None, [best.note, "" if learner.felt else BLIND]))
        found[i] = replace(best, curve=outcome.curve, tensors=outcome.tensors if outcome.shown else last, note=note)
    return found


def _learned(
    learner: Learner, word: Word, cases: Sequence[Case], config: InversionConfig,
    side: Callable[[], AbstractContextManager[object]], progress: Progress | None,
) -> list[Outcome]:  # fmt: skip
    """Each case's best over the checks (a few of the cases) and the end (all that are open then), with its word, its curve
    and what its own pictures cost."""

    def report(step: int, loss: float) -> None:
        if progress:
            progress(step, config.steps, f"learning a word: loss {loss:.3g}")

    found: dict[int, Outcome] = {}
    few, every = range(min(config.check_cases, len(cases))), range(len(cases))
    for step in [*sorted({step for step in config.check if step < config.steps}), config.steps]:
        with side():
            learner.until(step, report)
        found |= _checked(found, learner, word, cases, few)
        shown = sum(found[i].shown for i in few)
        if 0 < config.stop_at <= shown / len(few) or shown == len(every):
            break
    found |= _checked(found, learner, word, cases, every[len(few) :])
    return [found[i] for i in every]


def _checked(
    found: Mapping[int, Outcome], learner: Learner, word: Word, cases: Sequence[Case], which: Sequence[int]
) -> dict[int, Outcome]:
    """Those of the cases that were not shown yet, drawn with the word as it is now; the better picture is kept."""
    open_ = [i for i in which if i not in found or not found[i].shown]
    rows, checked = {"rows": learner.rows.detach().cpu().clone()}, {}
    for i, new in zip(open_, asked(word, learner.rows, [cases[i] for i in open_]), strict=True):
        best = better(found.get(i), replace(new, tensors=rows), cases[i])
        before = found[i].curve if i in found else ()
        checked[i] = replace(best, curve=(*before, (float(len(learner.losses)), best.score or 0.0)))
    return checked


@torch.no_grad()
def asked(word: Word, rows: Float[Tensor, "k width"], cases: Sequence[Case]) -> list[Outcome]:
    """Each case drawn with the word in its prompt, or in the first sentence where the prompt does not name the target."""
    if not cases:
        return []
    victim, placed = word.victim, [word.in_prompt(case.prompt) for case in cases]
    text = word.laid([content or word.in_template(word.templates[0]) for content in placed])
    drawn = victim.draw(cases, conditions=read(victim, text, rows))
    where = [
        "a learned word in the prompt" if content else f"a learned word in {word.templates[0]!r}" for content in placed
    ]
    return [seen.outcome(case, image, by=by, spent=victim.cost())
            for case, image, seen, by in zip(cases, drawn, victim.look(cases, drawn), where, strict=True)]  # fmt: skip
