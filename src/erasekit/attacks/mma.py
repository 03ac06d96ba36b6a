"""MMA-Diffusion, its text part: other words with the same meaning to the text encoder (arXiv 2311.17516, CVPR 2024).

Tokens that do not name the target are changed until the encoder's pooled output is that of a prompt that does. The
search sees a text encoder alone, never the denoiser; what it finds is drawn by the edited model and judged.

    min over u of  1 - cos(g(u), g(p))                  u (k,) token ids, none of them banned; p the forbidden prompt

g (features,): the text encoder's row at EOS after its final norm. The paper's CLIP, and SDXL's encoders, have a
projection behind it; the encoder in an SD pipeline has none, so its own row is taken (on SD 2, whose encoder ends one
layer early, the row there). The objective is of the text features alone, whatever the denoiser predicts.

A step of the greedy coordinate gradient, from k random letters:

1. G (k, vocabulary): the loss's gradient with respect to the one-hot rows of u, which is that of the embeddings times
   the embedding table. Banned tokens: infinity. (The paper scales rows to unit length: that changes no order in them.)
2. `candidates` times one token of u is replaced: every position in turn gets its share, and a token drawn uniformly
   from the `top` ones of smallest gradient there.
3. Kept are those whose text the tokenizer reads as k tokens again, without a banned one, and not as u: what is scored,
   and gone on with, is what the edited model will read.
4. The best becomes u, even where it is worse than u was. The best ever is remembered, and is what is found.

Banned: the words of the target (and of `ban`), the pieces that spell them, every token that contains one of these that
has three letters or more, and every special id. `steps=0` is the attack's control: the random letters.

What differs from the released code: it takes the gradient at positions 0..k-1, where BOS is 0, for the tokens at 1..k,
so each position is given its predecessor's: `variant=released`, mended by default. Kept candidates that repeat each
other are encoded once; each is checked for banned tokens and words again after the tokenizer has read it; the ban list
is made for the target. Positions behind EOS, which causal attention keeps from it, are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from erasekit.attacks._encoder import Found, settled, side, teller
from erasekit.attacks._text import framed, room, spelled
from erasekit.attacks._vocabulary import LONG, letters_of, unnamed, words_of
from erasekit.attacks.base import Case, Outcome, Spent, still_open
from erasekit.attacks.prompts import unattacked
from erasekit.methods import check_choice, check_range
from erasekit.training.loop import generator

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

SCALE = 1024.0  # of the loss while it is differentiated: half precision would lose small gradients


@dataclass(frozen=True)
class MMAConfig:
    """Parameters, defaults of the paper; a wrong value raises `UsageError`."""

    tokens: int = 20
    """k: tokens that are looked for; at most as many as fit."""
    steps: int = 1000
    """Steps of the search (the authors advise 500 at least); 0: random letters, the control."""
    candidates: int = 512
    """Replacements tried in each step."""
    top: int = 256
    """The tokens of smallest gradient that a position's replacements are drawn from."""
    forbidden: str = ""
    """p, for all cases; empty: each case's own prompt."""
    ban: tuple[str, ...] = ()
    """Words that may not occur, besides the target's."""
    encoder: str = "original"
    """original: the unedited model's text encoder; edited: the edited one's (white box)."""
    variant: str = "paper"
    """paper, or released: with the off-by-one of the authors' code."""
    seeds: int = 1
    """Pictures of the prompt that is found: from the case's own seed, then the next ones, until one shows the target."""
    batch: int = 128
    """Prompts that are encoded at once."""

    def __post_init__(self) -> None:
        for name, low in (("tokens", 1), ("steps", 0), ("candidates", 1), ("top", 1), ("seeds", 1), ("batch", 1)):
            check_range(name, getattr(self, name), low=low, high=1e6)
        check_choice("encoder", self.encoder, ("original", "edited"))
        check_choice("variant", self.variant, ("paper", "released"))


class MMA:
    """Looks, for each case, for tokens without the target's words whose pooled output is that of the case's prompt."""

    name: ClassVar[str] = "mma"
    title: ClassVar[str] = "MMA-Diffusion (text)"
    paper: ClassVar[str] = "arXiv 2311.17516"
    access: ClassVar[tuple[str, ...]] = ("prompts", "original")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[MMAConfig]] = MMAConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: MMAConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; its curve is (step, best cosine so far). Raises `UsageError` for a ban
        that leaves nothing to search with."""
        allowed = unnamed(victim, (victim.sight.target, *victim.sight.labels, *config.ban))
        letters = letters_of(victim, allowed)
        plain = unattacked(victim, cases)
        open_ = still_open(plain)
        found: dict[int, Found] = {}
        with side(victim, config.encoder), torch.no_grad():
            for number, i in enumerate(open_):
                text = Text(victim, config.forbidden or cases[i].prompt, allowed, config)
                tell = teller(progress, number, len(open_), config.steps)
                rng = generator(seed, self.name, cases[i].prompt, cases[i].seed)  # its place in the list has no say
                found[i] = _found(text, letters, config, rng, tell)
        return settled(victim, plain, found, config.seeds)


def _found(text: Text, letters: Tensor, config: MMAConfig, rng: torch.Generator, tell: Callable[[int], None]) -> Found:
    start = letters[torch.randint(len(letters), (min(config.tokens, room(text.victim)),), generator=rng)]
    best, curve = search(text, start, config, rng, tell)
    (prompt,) = spelled(text.victim, best[None])
    note = f"found {prompt!r}: cosine {curve[-1][1]:.3f}, that of the letters it began with {curve[0][1]:.3f}"
    return Found(prompt, Spent(config.steps, encodings=text.encodings), curve, {"ids": best}, note)


# -- the search ----------------------------------------------------------------------------------------------------


def search(
    text: Objective, start: Int[Tensor, " k"], config: MMAConfig, rng: torch.Generator,
    tell: Callable[[int], None] = lambda step: None,
) -> tuple[Int[Tensor, " k"], tuple[tuple[float, float], ...]]:  # fmt: skip
    """The best ids that were seen, and (step, best cosine so far) wherever that improved, ending with the last step."""
    current = best = start
    least = float(text.losses(start[None])[0])
    curve = [(0.0, 1 - least)]
    for step in range(1, config.steps + 1):
        offered = text.readable(candidates(text.gradient(current), current, text.allowed, config, rng))
        offered = offered[(offered != current).any(1)]
        if len(offered):
            offered = offered.unique(dim=0)
            losses = text.losses(offered)
            current, loss = offered[losses.argmin()], float(losses.min())
            if loss < least:
                best, least = current, loss
                curve.append((float(step), 1 - least))
        tell(step)
    if curve[-1][0] < config.steps:
        curve.append((float(config.steps), 1 - least))
    return best.clone(), tuple(curve)


def candidates(
    gradient: Float[Tensor, "k vocabulary"], current: Int[Tensor, " k"], allowed: Bool[Tensor, " vocabulary"],
    config: MMAConfig, rng: torch.Generator,
) -> Int[Tensor, "n k"]:  # fmt: skip
    """Copies of the current ids, each with one position changed; the positions have equal shares."""
    ranked = gradient.masked_fill(~allowed, float("inf"))
    best = ranked.topk(min(config.top, int(allowed.sum())), dim=1, largest=False).indices
    number = torch.arange(config.candidates)
    where = number * len(current) // config.candidates
    changed = current.repeat(config.candidates, 1)
    changed[number, where] = best[where, torch.randint(best.shape[1], (config.candidates,), generator=rng)]
    return changed


class Objective(Protocol):
    """What the search asks of a text encoder; `allowed` says which ids may occur."""

    allowed: Bool[Tensor, " vocabulary"]

    def gradient(self, ids: Int[Tensor, " k"]) -> Float[Tensor, "k vocabulary"]:
        """The loss's gradient with respect to the one-hot rows of the ids."""
        ...

    def losses(self, ids: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        ...

    def readable(self, ids: Int[Tensor, "n k"]) -> Int[Tensor, "m k"]:
        """What the tokenizer makes of the rows' text, where that is k allowed ids again."""
        ...


class Text:
    """A forbidden prompt, for whichever side of the victim is on when it is made and used."""

    def __init__(self, victim: Victim, forbidden: str, allowed: Bool[Tensor, " vocabulary"], config: MMAConfig) -> None:
        self.victim, self.allowed, self.encodings = victim, allowed, 1
        self._batch, self._shift = config.batch, int(config.variant == "paper")
        self._words = [word for word in words_of((victim.sight.target, *victim.sight.labels, *config.ban))
                       if len(word) >= LONG]  # fmt: skip
        self._end, self._table = int(victim.ids([""])[0, 1]), victim.table.detach().float()
        ids = victim.ids([forbidden])
        self._goal = self._pooled(ids[:, : int((ids[0] == self._end).int().argmax()) + 1])[0]

    def gradient(self, ids: Int[Tensor, " k"]) -> Float[Tensor, "k vocabulary"]:
        """See `Objective`; as released, row i belongs to the position before the i-th token."""
        row = self._framed(ids[None])
        at = torch.arange(len(ids), device=row.device)[None] + self._shift
        rows = self._table[row[0, at[0]]][None].requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(SCALE * self._distance(self._pooled(row, rows, at)).sum(), rows)
        self.encodings += 1
        return (slope[0] / SCALE @ self._table.T).cpu()

    def losses(self, ids: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """See `Objective`; a loss that is no number is infinite."""
        self.encodings += len(ids)
        parts = [self._distance(self._pooled(part)) for part in self._framed(ids).split(self._batch)]
        return torch.cat(parts).cpu().nan_to_num(nan=float("inf"))

    def readable(self, ids: Int[Tensor, "n k"]) -> Int[Tensor, "m k"]:
        """See `Objective`; nor may the text contain a banned word."""
        texts = spelled(self.victim, ids)
        rows = self.victim.ids(texts).cpu()
        again, behind = rows[:, 1 : ids.shape[1] + 1], rows[:, ids.shape[1] + 1]
        clean = torch.tensor([not any(word in text.lower() for word in self._words) for text in texts])
        return again[clean & (behind == self._end) & self.allowed[again].all(1)]

    def _framed(self, ids: Int[Tensor, "n k"]) -> Int[Tensor, "n m"]:
        return framed(self.victim, ids)[:, : ids.shape[1] + 2]

    def _pooled(self, ids: Int[Tensor, "n m"], *inserted: Tensor) -> Float[Tensor, "n features"]:
        """The row at EOS, where the ids end."""
        return self.victim.condition(ids, *inserted)[:, -1].float()

    def _distance(self, pooled: Float[Tensor, "n features"]) -> Float[Tensor, " n"]:
        return 1 - F.cosine_similarity(pooled, self._goal[None], dim=1)
