"""Ring-A-Bell: a concept as a direction of prompts, and a search for words that read like it (arXiv 2310.10012, ICLR
2024).

The search asks a text encoder alone, by default the unedited model's; the edited model draws what was found.

    c = sum_i w_i [f(p_i+) - f(p_i-)] / sum_i w_i             what sets prompts with the concept apart from others
    y = f(p) + eta c                                          what the prompt p should read like
    min over u of || f([BOS, u, EOS, pad, ...]) - y ||^2      by a genetic search (`_genetic.py`)

f(p) (length, features): the text encoder's last hidden state after its final norm, at all positions, padding too;
c, y alike; p_i+ and p_i- the same sentence with the concept and with a neutral word; w_i >= 0 the pair's weight; u (k,)
token ids, any but special ones; eta the strength. The objective is of the text features alone: nothing in it depends on
what the denoiser predicts. The decoded u is drawn by the edited model from the case's noise, and judged.

With causal attention the padding reads the whole prompt, and is most of the sum (60 of 77 rows for k = 16): that is
the paper's. `padding=masked` ends the sum at the first EOS after u, and encodes no further: it is also cheaper.

The found ids are seldom what the tokenizer makes of their text (pieces merge across borders), and the edited model
reads the text: the outcome's note has the distance of both, and its tensors the two individuals, of which `variant`
says which is drawn: the best of the last generation (the paper), or the best of all (`best`).

`encoder=original` takes the unedited encoder: a black-box attack, and against an edit of the text encoder a transfer.
`encoder=edited` is the white-box variant: the same search in the edited encoder.

What differs from the released code: pairs have explicit weights (it repeats prompts); special ids and frame are the
tokenizer's own ("!" may occur, where it is no padding); one generator is the only source of chance; individuals that
did not change are not encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erasekit.attacks._encoder import Found, settled, side, teller
from erasekit.attacks._genetic import Rules, search
from erasekit.attacks._text import framed, room, spelled
from erasekit.attacks._vocabulary import free_ids
from erasekit.attacks.base import Case, Outcome, Spent, still_open
from erasekit.attacks.prompts import unattacked
from erasekit.errors import UsageError
from erasekit.methods import check_choice, check_range
from erasekit.methods._templates import TEMPLATES, fill
from erasekit.training.loop import generator

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

NEUTRAL = {"object": ("something", "an object", "a thing"), "style": ("someone", "an artist", "a painter")}


class Pair(NamedTuple):
    """A prompt with the concept, the same without it, and how much their difference counts."""

    shown: str
    absent: str
    weight: float = 1.0


@dataclass(frozen=True)
class RingABellConfig(Rules):
    """Parameters, defaults of the paper for nudity; a wrong value raises `UsageError`."""

    eta: float = 3.0
    """Strength of the direction; the authors used 5 and 5.5 for violence. 0: look for the prompt itself."""
    tokens: int = 16
    """K: free tokens of the prompt that is looked for (the paper: 16, 38, 77); at most as many as fit."""
    padding: str = "all"
    """all: every position counts (the paper); masked: those up to the first EOS after the free tokens."""
    encoder: str = "original"
    """original: the unedited model's text encoder (black box); edited: the edited one's (white box)."""
    variant: str = "paper"
    """What is drawn: paper, the best individual of the last generation; best, the best of all generations."""
    concept: str = ""
    """The words that name the concept in the built-in pairs; empty: the target."""
    neutral: tuple[str, ...] = ()
    """The words that stand for it in the other prompt of each pair; empty: built-in ones."""
    pairs: str = ""
    """A file of pairs instead: in each line, separated by tabs, a prompt with the concept, one without it, and maybe a
    weight."""
    seeds: int = 1
    """Pictures of the prompt that is found: from the case's own seed, then the next ones, until one shows the target."""
    batch: int = 64
    """Prompts that are encoded at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("eta", self.eta, low=-1e3, high=1e3)
        check_range("tokens", self.tokens, low=1, high=1e4)
        check_range("seeds", self.seeds, low=1, high=1e6)
        check_range("batch", self.batch, low=1, high=1e6)
        check_choice("padding", self.padding, ("all", "masked"))
        check_choice("encoder", self.encoder, ("original", "edited"))
        check_choice("variant", self.variant, ("paper", "best"))


class RingABell:
    """Looks, for each case, for a prompt that reads like the case's own with more of the concept in it."""

    name: ClassVar[str] = "ring-a-bell"
    title: ClassVar[str] = "Ring-A-Bell"
    paper: ClassVar[str] = "arXiv 2310.10012"
    access: ClassVar[tuple[str, ...]] = ("prompts", "original")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[RingABellConfig]] = RingABellConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: RingABellConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; its curve is (generation, smallest squared distance so far). The pairs'
        encodings count with the first case that is searched for. Raises `UsageError` for pairs that are no pairs."""
        sentences = pairs_of(victim, config)
        plain = unattacked(victim, cases)
        open_ = still_open(plain)
        found: dict[int, Found] = {}
        with side(victim, config.encoder), torch.no_grad():
            along, cost = direction(victim, sentences if open_ else [], config.batch)
            for number, i in enumerate(open_):
                goal = wanted(victim, cases[i].prompt, along, config)
                tell = teller(progress, number, len(open_), config.generations)
                rng = generator(seed, self.name, cases[i].prompt, cases[i].seed)  # its place in the list has no say
                one = _searched(victim, goal, config, rng, tell)
                found[i] = replace(one, spent=one.spent + Spent(encodings=cost * (number == 0)))
        return settled(victim, plain, found, config.seeds)


def _searched(
    victim: Victim, goal: Tensor, config: RingABellConfig, rng: torch.Generator, tell: Callable[[int], None]
) -> Found:
    bred = search(lambda ids: distances(victim, framed(victim, ids), goal, config.batch),
                  min(config.tokens, room(victim)), free_ids(victim), config, rng, tell)  # fmt: skip
    ids, loss = (bred.best, bred.best_loss) if config.variant == "best" else (bred.last, bred.last_loss)
    (prompt,) = spelled(victim, ids[None])
    read = float(distances(victim, victim.ids([prompt]), goal, 1))
    note = f"found {prompt!r}: squared distance {loss:.4g} as ids, {read:.4g} as text"
    tensors = {"last": bred.last, "best": bred.best, "distances": torch.tensor([loss, read])}
    return Found(prompt, Spent(config.generations, encodings=bred.evaluated + 2), bred.curve, tensors, note)


# -- the objective -------------------------------------------------------------------------------------------------


def pairs_of(victim: Victim, config: RingABellConfig) -> list[Pair]:
    """The user's pairs, or the target and each neutral word in the built-in sentences for its kind. Raises `UsageError`
    where no pair has a difference."""
    kind = victim.sight.kind
    concept, neutral = config.concept or victim.sight.target, config.neutral or NEUTRAL[kind]
    built = (Pair(fill(text, concept), fill(text, word)) for word, text in product(neutral, TEMPLATES[kind]))
    found = list(_read(Path(config.pairs)) if config.pairs else built)
    if not any(pair.weight and pair.shown != pair.absent for pair in found):
        raise UsageError("no pair says one thing with the concept and another without it: give other pairs, or weights")
    return found


def direction(victim: Victim, pairs: Sequence[Pair], batch: int) -> tuple[Float[Tensor, "length features"], int]:
    """c, and how many prompts were encoded for it: each distinct one once, and none whose parts cancel out."""
    share: dict[str, float] = {}
    for pair in pairs:
        for prompt, weight in ((pair.shown, pair.weight), (pair.absent, -pair.weight)):
            share[prompt] = share.get(prompt, 0.0) + weight
    prompts = [prompt for prompt, weight in share.items() if weight]
    found = torch.zeros(victim.length, victim.table.shape[1], device=victim.pipe.device)
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        weights = torch.tensor([share[prompt] for prompt in part], device=found.device)
        found += torch.einsum("n,nlf->lf", weights, victim.condition(victim.ids(part)).float())
    return found / (sum(pair.weight for pair in pairs) or 1.0), len(prompts)


def wanted(victim: Victim, prompt: str, along: Tensor, config: RingABellConfig) -> Float[Tensor, "rows features"]:
    """y, cut to the rows that count."""
    found = victim.condition(victim.ids([prompt]))[0].float() + config.eta * along
    return found[: min(config.tokens, room(victim)) + 2] if config.padding == "masked" else found


def distances(
    victim: Victim, ids: Int[Tensor, "n length"], goal: Float[Tensor, "rows features"], batch: int
) -> Float[Tensor, " n"]:
    """Squared distances of prompts from the goal, on the CPU."""
    cut = ids[:, : len(goal)]  # attention is causal: what does not count need not be encoded
    parts = [(victim.condition(part).float() - goal).square().sum((1, 2)) for part in cut.split(batch)]
    return torch.cat(parts).cpu()


def _read(path: Path) -> Iterator[Pair]:
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the pairs {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        columns = [column.strip() for column in line.split("\t")]
        try:
            weight = float(columns[2]) if len(columns) > 2 else 1.0
        except ValueError:
            weight = -1.0
        if line.strip() and (len(columns) not in (2, 3) or not 0 <= weight < float("inf")):
            raise UsageError(f"{path} line {number}: give a prompt with the concept, one without, maybe a weight, "
                             "separated by tabs")  # fmt: skip
        if line.strip():
            yield Pair(columns[0], columns[1], weight)
