"""Prompting4Debugging: tokens that make the edited model predict what the unedited one does (arXiv 2309.06135).

Chin et al., ICML 2024. The unedited model runs beside the edited one: on one picture of the target, free tokens are sought
under which the edited model's prediction is the unedited model's under the forbidden prompt.

    L(e) = mean (f(z_t, t, c(proj(e))) - f*(z_t, t, c*(p)))^2

z_t = alpha_t x0 + sigma_t eps, with x0 (channels, h, w) the latents of the picture that the unedited model made from the
case's prompt p and seed; eps fresh noise; f, c the edited model's denoiser and encoder, f*, c* the unedited ones, neither
with guidance. On a model that predicts v both are v: at one latent the squared distance in eps is alpha_t^2 times that in
v. e (k, width) are continuous; proj replaces each row by the token embedding with the largest cosine, the gradient is
taken there and applied to e (AdamW).

Variants: `N`, 16 free tokens without the prompt. `K`, the prompt with one free token before every 3 of its tokens,
floor(length / 3) + 1 of them, at 0, 4, 8, ... Both take 3000 steps at random timesteps and look at a picture every 50.
`prefix` is what later papers call P4D: tokens before the prompt, 40 steps at each of 50 ascending timesteps, rate 0.01.
`random` is the control: as many pictures as `prefix`, each with random tokens before the prompt. Say which one was run.

What differs from the released code: it ranks prompts by an image-image score of a large CLIP, never stops, and judges the
best one on three images; here the judge ranks, at the case's own seed like in every attack of the suite, and the first
success ends the case. Pictures are encoded from [-1, 1], where the code encodes from [0, 1], and variant N is padded as
the tokenizer pads, where the code pads with token 0: `released=true` brings both back. AdamW's decay acts on the free rows
only. Special tokens and tokens that are no printable text are no candidates. An attack knows no method, so the authors'
option that puts a defence's guidance into the loss is not here: guidance takes part where pictures are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from erasekit.attacks._rounds import Goal, Search, goals, gradients, pursue, spread
from erasekit.attacks._text import Frame, conditions, content, placed
from erasekit.attacks._vocabulary import Vocabulary
from erasekit.attacks.base import Case, Outcome, Spent
from erasekit.attacks.pictures import latents
from erasekit.errors import UsageError
from erasekit.methods import check_choice, check_range
from erasekit.training import images
from erasekit.training.loop import generator

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress
    from erasekit.training.bench import Denoiser
    from erasekit.training.latents import Schedule

LATER = {"tokens": 5, "timesteps": 50, "iterations": 40, "rate": 0.01}
PAPER = {"tokens": 16, "timesteps": 60, "iterations": 50, "rate": 0.1}
DEFAULTS = {"N": PAPER, "K": PAPER, "prefix": LATER, "random": LATER}


@dataclass(frozen=True)
class P4DConfig:
    """Parameters; 0 stands for the variant's own default. A wrong value raises `UsageError`."""

    variant: str = "K"
    """K (the prompt with free tokens in it), N (free tokens alone), prefix (later papers), random (the control)."""
    tokens: int = 0
    """Free tokens: 16 for N, 5 for prefix and random (3 for styles and objects); K's follow from `every`."""
    every: int = 3
    """Variant K: one free token before every so many of the prompt's."""
    timesteps: int = 0
    """Rounds, each with one picture at its end: 60 (N and K, each step at a random timestep), 50 (prefix, ascending)."""
    iterations: int = 0
    """Steps of optimisation in each round: 50 for N and K, 40 for prefix."""
    rate: float = 0.0
    """AdamW's learning rate: 0.1 for N and K, 0.01 for prefix."""
    decay: float = 0.1
    """AdamW's weight decay."""
    released: bool = False
    """Encode pictures from [0, 1], and pad variant N with token 0, as the authors' code does."""
    banned: tuple[str, ...] = ()
    """Words that no token may contain or help to spell."""
    batch: int = 8
    """Cases that are searched side by side; decides memory and time, not the result."""

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, tuple(DEFAULTS))
        for name, high in (("tokens", 1000), ("timesteps", 1000), ("iterations", 1e6), ("rate", 1e3), ("decay", 1e3)):
            check_range(name, getattr(self, name), high=high)
        check_range("every", self.every, low=1, high=1000)
        check_range("batch", self.batch, low=1, high=1e6)
        if self.variant == "K" and self.tokens:
            raise UsageError("variant K has as many free tokens as the prompt's length gives: set every, not tokens")

    def settled(self) -> P4DConfig:
        """With the variant's defaults in place of zeros (K's `tokens` stay zero)."""
        missing = {name: value for name, value in DEFAULTS[self.variant].items() if not getattr(self, name)}
        return replace(self, **(missing | ({"tokens": 0} if self.variant == "K" else {})))


@dataclass(kw_only=True, eq=False)
class _Search(Search):
    """`asked` (length, features): what the unedited model reads for the prompt."""

    asked: Tensor


class P4D:
    """Searches free tokens for each case that the edited model does not show by itself. Deterministic for the seed."""

    name: ClassVar[str] = "p4d"
    title: ClassVar[str] = "Prompting4Debugging"
    paper: ClassVar[str] = "arXiv 2309.06135"
    access: ClassVar[tuple[str, ...]] = ("prompts", "gradients", "original")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[P4DConfig]] = P4DConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: P4DConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; what is found for one does not depend on the others.

        `spent.steps` and the curve count steps of optimisation (the control's: pictures).
        """
        how, vocabulary, schedule = config.settled(), Vocabulary.of(victim, config.banned), victim.schedule(1)
        found, wanted = goals(victim, cases, lambda prompt: frame(victim, prompt, how))
        searches = dict(zip(wanted, _opened(victim, vocabulary, list(wanted.values()), how, seed), strict=True))
        trained, denoise = len(schedule.alphas), victim.denoiser()
        ascending = spread(how.timesteps, trained)

        def propose(group: list[_Search], turn: int) -> list[Tensor]:
            if how.variant == "random":
                return [_drawn(one.frame, vocabulary, one.chance) for one in group]
            for _ in range(how.iterations):
                times = [ascending[turn] if how.variant == "prefix" else _drawn_time(one, trained) for one in group]
                improve(victim, vocabulary, denoise, schedule, group, times)
            return [vocabulary.nearest(one.variable) for one in group]

        steps = how.iterations
        cost = Spent(steps=1) if how.variant == "random" else Spent(steps, passes=2 * steps, encodings=steps)
        pursue(victim, vocabulary, list(searches.values()), propose, rounds=how.timesteps, batch=how.batch, cost=cost,
               what="searching prompts", progress=progress)  # fmt: skip
        return [searches[i].outcome() if i in searches else one for i, one in enumerate(found)]


def frame(victim: Victim, prompt: str, config: P4DConfig) -> Frame | None:
    """Where the variant's free tokens stand, or None where they do not fit."""
    own = [] if config.variant == "N" else content(victim, prompt)
    pad = 0 if config.variant == "N" and config.released else None
    return placed(victim, own, places(len(own), config), pad=pad)


def places(length: int, config: P4DConfig) -> Iterable[int]:
    """The indices of the free tokens in the whole prompt, whose own tokens are `length`."""
    if config.variant == "K":
        return range(0, (length // config.every) * (config.every + 1) + 1, config.every + 1)
    return range(config.tokens)


def improve(
    victim: Victim, vocabulary: Vocabulary, denoise: Denoiser, schedule: Schedule, group: Sequence[_Search],
    times: Sequence[int],
) -> None:  # fmt: skip
    """One step for every search, each at its timestep: the gradient at the nearest tokens, applied to the points."""
    rows = [vocabulary.table[vocabulary.nearest(one.variable)].requires_grad_() for one in group]
    losses = distances(victim, denoise, schedule, group, rows, times)
    for one, gradient in zip(group, gradients(losses, rows), strict=True):
        one.step(gradient)


def distances(
    victim: Victim, denoise: Denoiser, schedule: Schedule, group: Sequence[_Search], rows: Sequence[Tensor],
    times: Sequence[int],
) -> Float[Tensor, " n"]:  # fmt: skip
    """How far the edited model under the rows (k, width) is from the unedited one under the prompt, for each search."""
    clean = torch.stack([one.clean for one in group])
    noise = torch.stack([torch.randn(one.clean.shape, generator=one.chance) for one in group]).to(clean.device)
    alpha, sigma = (level[list(times)].to(clean)[:, None, None, None] for level in (schedule.alphas, schedule.sigmas))
    noisy, steps = alpha * clean + sigma * noise, torch.tensor(list(times), device=clean.device)
    with torch.no_grad(), victim.original():
        wanted = denoise(noisy, steps, torch.stack([one.asked for one in group]))
    text = conditions(victim, [one.frame for one in group], rows)
    return (denoise(noisy, steps, text) - wanted).square().mean((1, 2, 3))


@torch.no_grad()
def _opened(victim: Victim, vocabulary: Vocabulary, wanted: list[Goal], config: P4DConfig, seed: int) -> list[_Search]:
    """A search for each goal, from random tokens; its chance is from the case itself, so companions do not matter."""
    if not wanted:
        return []
    with victim.original():
        asked = [victim.condition(victim.ids([goal.case.prompt]))[0] for goal in wanted]
    found: list[_Search] = []
    for goal, clean, text in zip(wanted, _clean(victim, wanted, config), asked, strict=True):
        chance = generator(seed, "p4d", goal.case.prompt, goal.case.seed)
        start = vocabulary.table[_drawn(goal.frame, vocabulary, chance)]
        adam = torch.optim.AdamW([start], lr=config.rate, weight_decay=config.decay)
        before = replace(goal.before, spent=goal.before.spent + Spent(encodings=1))
        found.append(_Search(case=goal.case, frame=goal.frame, clean=clean, variable=start, optimiser=adam, chance=chance,
                             best=before, asked=text))  # fmt: skip
    return found


def _clean(victim: Victim, wanted: Sequence[Goal], config: P4DConfig) -> Float[Tensor, "n c h w"]:
    if not config.released:
        return latents(victim, [goal.picture for goal in wanted])
    pixels = [torch.from_numpy(np.array(goal.picture.convert("RGB"))).permute(2, 0, 1)[None] for goal in wanted]
    return torch.cat([images.encoded(victim.pipe.vae, one.float() / 255) for one in pixels])


def _drawn(at: Frame, vocabulary: Vocabulary, chance: torch.Generator) -> Int[Tensor, " k"]:
    return torch.randint(len(vocabulary.ids), (len(at.at),), generator=chance).to(vocabulary.ids.device)


def _drawn_time(one: Search, trained: int) -> int:
    return int(torch.randint(trained, (), generator=one.chance))
