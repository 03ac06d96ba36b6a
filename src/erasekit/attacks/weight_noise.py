"""Noise on weights: does the erasure survive a small random push of the model?

    W' = W + r |W| N / |N|        N normal, as W; |.| the Frobenius norm, r the relative norm

An erasure that holds the concept back by a fine balance of weights may fall to noise that leaves the rest of the model
as it is. Every tensor is pushed by the same share r of its own norm, either all weights of U-Net and text encoder or
those of the modules that the edit was made for (below an adapter: the weights that it stands beside). There is nothing to
optimise: each draw is an independent N, the cases still open are drawn with it, the best picture counts, and the budget
is the number of draws.

Two controls belong to a number. Noise so large that the unedited model draws nothing either has destroyed the model and
not the erasure: with `control` the unedited model draws the same cases with the first draw's noise, and each note says in
how many of them it still shows the target and how far its pictures moved. And the best of many pictures finds by chance
what one does not: the same draws on a model that never knew the target say how often.

There is no paper with these defaults; they are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from erasekit.attacks._finetune import FREE, Together, Weights, again, started
from erasekit.attacks.base import Case, Outcome, Spent, still_open
from erasekit.errors import UsageError
from erasekit.methods import check_choice, check_range
from erasekit.ops import plain_module
from erasekit.training.loop import generator
from erasekit.training.parameters import select

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress


@dataclass(frozen=True)
class WeightNoiseConfig:
    """Parameters; a wrong value raises `UsageError`."""

    norm: float = 0.05
    """r: the noise's norm relative to that of each tensor; 0 changes nothing."""
    where: str = "all"
    """all (every weight of U-Net and text encoder) or edited (the weights of the modules that the edit is for)."""
    draws: int = 8
    """The budget: independent draws of the noise, each on all the cases that are still open."""
    control: bool = True
    """Whether the unedited model is drawn with and without the first draw's noise."""

    def __post_init__(self) -> None:
        check_range("norm", self.norm, high=1e3)
        check_choice("where", self.where, ("all", "edited"))
        check_range("draws", self.draws, low=1, high=1e6)


@dataclass(frozen=True)
class Fidelity:
    """What the noise leaves of the unedited model: of the `known` cases in which it shows the target it still does in
    `kept`; its pixels, in [0, 1], move by `moved` (root mean square over all cases)."""

    known: int
    kept: int
    moved: float

    def __str__(self) -> str:
        return (f"control: with such noise the unedited model shows the target in {self.kept} of the {self.known} cases "
                f"that it shows without; pixels move by {self.moved:.3f}")  # fmt: skip


class WeightNoise:
    """Pushes the edited model's weights at random, draw after draw; the outcome is the best of a case's pictures."""

    name: ClassVar[str] = "weight-noise"
    title: ClassVar[str] = "Noise on weights"
    paper: ClassVar[str] = ""
    access: ClassVar[tuple[str, ...]] = ("weights", "original")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[WeightNoiseConfig]] = WeightNoiseConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: WeightNoiseConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order. Raises `UsageError` for `where=edited` on a model whose edit is for no
        weight, or that has none."""
        names = _names(victim, config.where)
        outcomes = started(victim, cases)
        open_ = [cases[i] for i in still_open(outcomes)]
        note, spent = "", FREE
        if open_ and config.control:
            note = str(fidelity(victim, open_, config, seed))
            with victim.original():
                spent = victim.cost(2)
        for turn in range(config.draws if open_ else 0):
            noise = _noisy(victim.pipe, names, config.norm, (seed, turn))
            with noise.drawing():
                outcomes = again(victim, outcomes, at=turn + 1, by=f"noise on weights, draw {turn + 1}", note=note,
                                 each=spent + Spent(steps=1))  # fmt: skip
            spent = FREE
            if progress:
                progress(turn + 1, config.draws, "drawing with noise on weights")
            if not still_open(outcomes):
                break
        return outcomes


def fidelity(victim: Victim, cases: Sequence[Case], config: WeightNoiseConfig, seed: int) -> Fidelity:
    """What the first draw's noise does to the unedited model in these cases."""
    with victim.original():
        plain = victim.draw(cases)
        with _noisy(victim.pipe, _names(victim, config.where), config.norm, (seed, 0)).drawing():
            noisy = victim.draw(cases)
    before, after = ([seen.hit for seen in victim.look(cases, drawn)] for drawn in (plain, noisy))
    pixels = [np.stack([np.asarray(image, dtype=np.float64) / 255 for image in drawn]) for drawn in (plain, noisy)]
    moved = float(np.sqrt(np.mean((pixels[1] - pixels[0]) ** 2)))
    return Fidelity(sum(before), sum(a and b for a, b in zip(before, after, strict=True)), moved)


@torch.no_grad()
def _noisy(pipe: Any, names: dict[str, list[str]], norm: float, draw: tuple[int, int]) -> Together:
    """The named weights of the side that is on, with the draw's noise added, in float32 until the model takes them."""
    parts = {part: Weights(getattr(pipe, part), own) for part, own in names.items()}
    noise = Together(parts)
    for name, tensor in noise.trained.items():
        normal = torch.randn(tensor.shape, generator=generator(draw[0], "weight-noise", draw[1], name)).to(tensor)
        tensor += normal * (norm * tensor.norm() / normal.norm())
    return noise


def _names(victim: Victim, where: str) -> dict[str, list[str]]:
    """Which weights are pushed: part of the pipeline -> names."""
    if where == "all":
        return {part: select(getattr(victim.pipe, part), "all") for part in ("unet", "text_encoder")}
    found: dict[str, list[str]] = {}
    for site in victim.edit.base.fingerprint if victim.edit else ():
        part, _, module = site.partition("/")
        own, plain = dict(getattr(victim.pipe, part).named_parameters()), plain_module(part, module)
        known = [name for name in (f"{plain}.weight", f"text_model.{plain}.weight") if name in own]
        found.setdefault(part, []).extend(known[:1])
    if not any(found.values()):
        raise UsageError("no weight is edited in this model: give where=all, or a model with an edit of weights")
    return found
