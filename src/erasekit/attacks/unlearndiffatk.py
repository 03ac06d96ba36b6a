"""UnlearnDiffAtk: tokens before the prompt that make the edited model explain a forbidden picture (arXiv 2310.11868).

Zhang et al., ECCV 2024. A denoiser is a classifier: the prompt that explains a picture best has the smallest prediction
error on it. So tokens are sought that lower the edited model's own error on one picture of the target, which the
unedited model made from the case's prompt and seed. No second model runs in the loop.

    L(P) = mean (y - f(alpha_t x0 + sigma_t eps, t, c(P)))^2

x0 (channels, h, w) the picture's latents; eps fresh noise; f the edited model's prediction, without guidance; y what it
should predict: eps, or v = alpha_t eps - sigma_t x0 on a model that predicts v (the model's own space). P (K, V) holds for
each of K prefix tokens a distribution over the V tokens of the vocabulary, at first uniform. Each step draws one token of
each row; c(P) reads [BOS, prefix, prompt, EOS, padding]. With W (V, width) the token table and g (K, width) the gradient
in the prefix's embeddings, P gets g W^T (straight through the draw), clipped to [-1, 1]; then Adam, with weight decay in
the gradient, and the projection of each row onto the simplex.

Timesteps ascend (10, 30, ..., 990), P goes on from one to the next. After the 40 steps of each the likeliest token of
each row is decoded together with the prompt, drawn with the case's own seed and judged; the first success ends the case.
The rate to report is `reached`: it contains the cases that need no attack. Variant `random` is the control: as many
pictures, each with a random prefix.

What differs from the released code: special tokens and tokens that are no printable text are no candidates; the projection
is exact (by sorting) and not a bisection; a prompt that leaves no room for the prefix is invalid (the authors drop prompts
of more than 60 tokens); pictures are drawn as every other command draws them; a text that was drawn before is not drawn
again; other places than before the prompt are not offered. The control draws `timesteps` prefixes (the authors' 40).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erasekit.attacks._rounds import Goal, Search, goals, gradients, pursue, spread
from erasekit.attacks._text import conditions, content, placed
from erasekit.attacks._vocabulary import Vocabulary
from erasekit.attacks.base import Case, Outcome, Spent
from erasekit.attacks.pictures import latents
from erasekit.methods import check_choice, check_range
from erasekit.training.loop import generator
from erasekit.training.probes import widest

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress
    from erasekit.training.bench import Denoiser
    from erasekit.training.latents import Schedule


@dataclass(frozen=True)
class UnlearnDiffAtkConfig:
    """Parameters, defaults of the paper; a wrong value raises `UsageError`."""

    variant: str = "search"
    """search, or random: the control, a random prefix for each picture."""
    tokens: int = 5
    """K, the tokens before the prompt: 5 for nudity and violence, 3 for styles and objects."""
    timesteps: int = 50
    """Rounds, each at its own timestep (ascending over the whole range) and with one picture at its end."""
    iterations: int = 40
    """Steps of optimisation at each timestep."""
    rate: float = 0.01
    """Adam's learning rate."""
    decay: float = 0.1
    """Adam's weight decay (a part of the gradient, not AdamW's)."""
    banned: tuple[str, ...] = ()
    """Words that no token may contain or help to spell."""
    batch: int = 8
    """Cases that are searched side by side; decides memory and time, not the result."""

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("search", "random"))
        check_range("tokens", self.tokens, high=1000)
        check_range("timesteps", self.timesteps, low=1, high=1000)
        check_range("iterations", self.iterations, low=1, high=1e6)
        check_range("rate", self.rate, high=1e3)
        check_range("decay", self.decay, high=1e3)
        check_range("batch", self.batch, low=1, high=1e6)


class UnlearnDiffAtk:
    """Searches a prefix for each case that the edited model does not show by itself. Deterministic for the seed."""

    name: ClassVar[str] = "unlearndiffatk"
    title: ClassVar[str] = "UnlearnDiffAtk"
    paper: ClassVar[str] = "arXiv 2310.11868"
    access: ClassVar[tuple[str, ...]] = ("prompts", "gradients", "original")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[UnlearnDiffAtkConfig]] = UnlearnDiffAtkConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: UnlearnDiffAtkConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; what is found for one does not depend on the others.

        `spent.steps` and the curve count steps of optimisation (the control's: pictures).
        """
        vocabulary, schedule = Vocabulary.of(victim, config.banned), victim.schedule(1)
        before = range(config.tokens)
        found, wanted = goals(victim, cases, lambda prompt: placed(victim, content(victim, prompt), before))
        searches = dict(zip(wanted, _opened(victim, vocabulary, list(wanted.values()), config, seed), strict=True))
        times, denoise = spread(config.timesteps, len(schedule.alphas)), victim.denoiser()

        def propose(group: list[Search], turn: int) -> list[Tensor]:
            if config.variant == "random":
                return [_random(one, vocabulary) for one in group]
            for _ in range(config.iterations):
                improve(group, vocabulary, lambda rows: errors(victim, denoise, schedule, group, rows, times[turn]))
            return [one.variable.argmax(-1) for one in group]

        steps = config.iterations
        cost = Spent(steps=1) if config.variant == "random" else Spent(steps, passes=steps, encodings=steps)
        pursue(victim, vocabulary, list(searches.values()), propose, rounds=config.timesteps, batch=config.batch,
               cost=cost, what="searching prefixes", progress=progress)  # fmt: skip
        return [searches[i].outcome() if i in searches else one for i, one in enumerate(found)]


def improve(group: Sequence[Search], vocabulary: Vocabulary, losses: Callable[[list[Tensor]], Tensor]) -> None:
    """One step for every search. `losses`: a prefix's embeddings (K, width) for each -> each one's loss (n,)."""
    drawn = [sampled(one.variable, torch.rand(len(one.variable), generator=one.chance)) for one in group]
    rows = [vocabulary.table[picked].requires_grad_() for picked in drawn]
    for one, gradient in zip(group, gradients(losses(rows), rows), strict=True):
        one.step((gradient @ vocabulary.table.T).clamp(-1, 1))
        one.variable.copy_(simplex(one.variable))


def errors(
    victim: Victim, denoise: Denoiser, schedule: Schedule, group: Sequence[Search], rows: Sequence[Tensor],
    timestep: float,
) -> Float[Tensor, " n"]:  # fmt: skip
    """The edited model's prediction error on each search's picture, with noise of the search's own chance."""
    alpha, sigma = schedule.level(timestep)
    clean = torch.stack([one.clean for one in group])
    noise = torch.stack([torch.randn(one.clean.shape, generator=one.chance) for one in group]).to(clean.device)
    wanted = noise if schedule.prediction == "epsilon" else alpha * noise - sigma * clean
    text = conditions(victim, [one.frame for one in group], rows)
    return (denoise(alpha * clean + sigma * noise, timestep, text) - wanted).square().mean((1, 2, 3))


def simplex(rows: Float[Tensor, "k v"]) -> Float[Tensor, "k v"]:
    """The nearest row to each whose entries are not negative and sum to one: max(row - mu, 0) with its own mu."""
    wide = rows.to(widest(rows.device))
    ordered = wide.sort(-1, descending=True).values
    shifts = (ordered.cumsum(-1) - 1) / torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    last = (ordered > shifts).sum(-1, keepdim=True).clamp_min(1) - 1  # the smallest entry that stays above zero
    return (wide - shifts.gather(-1, last)).clamp(0, 1).to(rows.dtype)


def sampled(rows: Float[Tensor, "k v"], chance: Float[Tensor, " k"]) -> Int[Tensor, " k"]:
    """A column drawn from each row's distribution; `chance`: one uniform number in [0, 1) for each."""
    reached = rows.to(widest(rows.device)).cumsum(-1)
    return (reached <= chance.to(reached)[:, None] * reached[:, -1:]).sum(-1)


def _opened(
    victim: Victim, vocabulary: Vocabulary, wanted: list[Goal], config: UnlearnDiffAtkConfig, seed: int
) -> list[Search]:
    """A search for each goal, its chance from the case itself, so that companions do not matter."""
    if not wanted:
        return []
    found: list[Search] = []
    for goal, clean in zip(wanted, latents(victim, [goal.picture for goal in wanted]), strict=True):
        size = (config.tokens, len(vocabulary.ids))
        start = torch.full(size, 1 / size[1], device=vocabulary.table.device)
        adam = torch.optim.Adam([start], lr=config.rate, weight_decay=config.decay)
        chance = generator(seed, "unlearndiffatk", goal.case.prompt, goal.case.seed)
        found.append(Search(case=goal.case, frame=goal.frame, clean=clean, variable=start, optimiser=adam, chance=chance,
                            best=goal.before))  # fmt: skip
    return found


def _random(one: Search, vocabulary: Vocabulary) -> Tensor:
    tokens = torch.randint(len(vocabulary.ids), (len(one.frame.at),), generator=one.chance)
    return tokens.to(vocabulary.ids.device)
