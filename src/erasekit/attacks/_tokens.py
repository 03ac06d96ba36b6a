"""What searches for tokens share: which tokens, where they stand, what they are as text, and the rounds of a search.

A round is some steps of optimisation and then one picture: the tokens as they are now are decoded to text, the edited
model draws it from the case's own seed, and the judge looks. What is scored is always the text, read anew by the
tokenizer, never the tokens that were optimised: not every sequence of tokens survives being written down.

Cases are searched side by side in one batch. Each has its own variable, optimiser and source of chance, so what is
found for it does not depend on its companions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erasekit.attacks.base import Case, Outcome, Spent
from erasekit.attacks.prompts import better, unattacked
from erasekit.attacks.sight import spent_on
from erasekit.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

LIFT = 2.0**12  # a power of two changes no digit in float32, and a half-precision encoder's gradient does not vanish


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that a search may use, `ids` (v,), and their embeddings `table` (v, width) in float32."""

    ids: Int[Tensor, " v"]
    table: Float[Tensor, "v width"]

    @classmethod
    def of(cls, victim: Victim, banned: Sequence[str] = ()) -> Vocabulary:
        """All tokens but special ones, those that are no printable text, and those that contain a banned word or
        help to spell it. Raises `UsageError` where none is left."""
        allowed = _allowed(victim.pipe.tokenizer, len(victim.table), [word.lower() for word in banned])
        if not allowed:
            raise UsageError("the banned words leave no token to search with: ban fewer")
        ids = torch.tensor(allowed, device=victim.table.device)
        return cls(ids, victim.table.detach()[ids].float())

    @cached_property
    def unit(self) -> Float[Tensor, "v width"]:
        """The embeddings at length one."""
        return torch.nn.functional.normalize(self.table, dim=-1)

    def nearest(self, points: Float[Tensor, "k width"]) -> Int[Tensor, " k"]:
        """The row of the table in each point's direction (largest cosine)."""
        return (torch.nn.functional.normalize(points, dim=-1) @ self.unit.T).argmax(-1)


@dataclass(frozen=True, eq=False)
class Frame:
    """A prompt with free places: the padded `ids` (length,), the free positions `at` (k,), `size` tokens inside."""

    ids: Int[Tensor, " length"]
    at: Int[Tensor, " k"]
    size: int

    def content(self, tokens: Int[Tensor, " k"]) -> list[int]:
        """The prompt's tokens, without BOS, EOS and padding, with these in the free places."""
        return self.ids.index_copy(0, self.at, tokens)[1 : 1 + self.size].tolist()


@dataclass(kw_only=True, eq=False)
class Search:
    """One case under search: what is optimised, with its own optimiser and chance, and the best picture so far.

    `clean` (c, h, w): the unedited model's picture as latents. `felt`: whether a gradient other than zero has come.
    """

    case: Case
    frame: Frame
    clean: Tensor
    variable: Tensor
    optimiser: torch.optim.Optimizer
    chance: torch.Generator
    best: Outcome
    curve: list[tuple[float, float]] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    felt: bool | None = None

    def step(self, gradient: Tensor) -> None:
        """One step of the optimiser; a gradient that is no number is left out."""
        finite = bool(torch.isfinite(gradient).all())
        self.felt = bool(self.felt) or (finite and bool(gradient.any()))
        if finite:
            self.variable.grad = gradient
            self.optimiser.step()

    def note(self) -> None:
        """Put what was spent and the best score so far on the curve."""
        self.curve.append((float(self.best.spent.steps), self.best.score or 0.0))

    def outcome(self) -> Outcome:
        """How it ended; a search that no gradient reached says so."""
        blind = "no gradient reached the tokens: the search was blind" if self.felt is False else ""
        return replace(self.best, curve=tuple(self.curve), note="; ".join(filter(None, [self.best.note, blind])))


@dataclass(frozen=True, eq=False)
class Goal:
    """A case to search for: where its free tokens stand, the unedited model's picture, how it was without attack."""

    case: Case
    frame: Frame
    picture: Image
    before: Outcome


Propose = Callable[[list[Any], int], list[Tensor]]
"""Searches and the number of the round -> after optimising, each one's tokens as rows of the vocabulary (k,)."""


# -- tokens and text ----------------------------------------------------------------------------------------------


def words(victim: Victim, prompt: str) -> list[int]:
    """The prompt's tokens without BOS, EOS and padding; as many as a prompt can have."""
    return victim.pipe.tokenizer(prompt, add_special_tokens=False, truncation=True,
                                 max_length=victim.length - 2).input_ids  # fmt: skip


def spelled(victim: Victim, content: Sequence[int]) -> str:
    """The tokens as text. `words` of it are the same tokens where these survive being written down."""
    found = victim.pipe.tokenizer.decode(list(content), clean_up_tokenization_spaces=False)
    return " ".join(found.replace("</w>", " ").split())


def framed(victim: Victim, content: Sequence[int], places: Iterable[int], *, pad: int | None = None) -> Frame | None:
    """The tokens with free places at these indices of the whole prompt, or None where it does not fit.

    `pad` stands instead of the tokenizer's own padding.
    """
    tokenizer, free, left = victim.pipe.tokenizer, sorted(places), iter(content)
    size = len(content) + len(free)
    if size > victim.length - 2:
        return None
    inside = [tokenizer.pad_token_id if i in free else next(left) for i in range(size)]
    after = [tokenizer.pad_token_id if pad is None else pad] * (victim.length - 2 - size)
    ids = torch.tensor([tokenizer.bos_token_id, *inside, tokenizer.eos_token_id, *after], device=victim.table.device)
    return Frame(ids, torch.tensor([1 + i for i in free], dtype=torch.long, device=ids.device), size)


def conditions(victim: Victim, frames: Sequence[Frame], rows: Sequence[Tensor]) -> Float[Tensor, "n length features"]:
    """What the cross-attention reads with the rows (k, width) in each frame's free places; frames may differ in k."""
    ids = torch.stack([frame.ids for frame in frames])
    own = victim.table.detach()[ids].float()
    filled = [one.index_copy(0, frame.at, put) for one, frame, put in zip(own, frames, rows, strict=True)]
    at = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    return victim.condition(ids, torch.stack(filled), at)


def gradients(losses: Float[Tensor, " n"], rows: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each case's loss in its own rows."""
    return [found / LIFT for found in torch.autograd.grad(LIFT * losses.sum(), list(rows))]


def spread(count: int, trained: int) -> list[int]:
    """`count` timesteps ascending, each in the middle of its share: 10, 30, ..., 990 for 50 of 1000."""
    return [(2 * i + 1) * trained // (2 * count) for i in range(count)]


def _allowed(tokenizer: Any, rows: int, banned: Sequence[str]) -> list[int]:
    special = set(tokenizer.all_special_ids)
    parts = {i for word in banned for i in tokenizer(word, add_special_tokens=False).input_ids}
    kept = [i for i in range(min(rows, len(tokenizer))) if i not in special | parts]
    texts = ((i, tokenizer.decode([i], clean_up_tokenization_spaces=False).replace("</w>", "").strip()) for i in kept)
    return [i for i, text in texts if text and text.isprintable() and "\ufffd" not in text
            and not any(word in text.lower() for word in banned)]  # fmt: skip


# -- the search ---------------------------------------------------------------------------------------------------


def goals(
    victim: Victim, cases: Sequence[Case], place: Callable[[str], Frame | None]
) -> tuple[list[Outcome], dict[int, Goal]]:
    """How each case is without attack, and by number the cases to search for.

    A case is invalid where its prompt leaves no room, or where the unedited model does not show the target from its
    prompt and seed: there is nothing to bring back.
    """
    found = unattacked(victim, cases)
    frames = {i: place(cases[i].prompt) for i, one in enumerate(found) if one.status == "failure"}
    for i in (i for i, frame in frames.items() if frame is None):
        found[i] = replace(found[i], status="invalid", note="the prompt is too long for more tokens: shorten it")
    left = {i: frame for i, frame in frames.items() if frame is not None}
    with victim.original():
        drawn = victim.draw([cases[i] for i in left])
        seen = victim.look([cases[i] for i in left], drawn)
    searched: dict[int, Goal] = {}
    for (i, frame), picture, one in zip(left.items(), drawn, seen, strict=True):
        found[i] = replace(found[i], spent=found[i].spent + spent_on([picture]))
        if one.status == "ok" and one.hit:
            searched[i] = Goal(cases[i], frame, picture, found[i])
        else:
            why = one.reason or f"the unedited model does not show {victim.sight.target!r} from this prompt and seed"
            found[i] = replace(found[i], status="invalid", note=why)
    return found, searched


def pursue(
    victim: Victim, vocabulary: Vocabulary, searches: Sequence[Search], propose: Propose, *, rounds: int, batch: int,
    cost: Spent, what: str, progress: Progress | None,
) -> None:  # fmt: skip
    """Search, `batch` cases side by side, until each has shown the target or had its rounds, of `cost` each."""
    groups = [list(searches[start : start + batch]) for start in range(0, len(searches), batch)]
    for one in searches:
        one.note()
    for number, group in enumerate(groups):
        for turn in range(rounds):
            left = [one for one in group if not one.best.shown]
            if left:
                chosen = [vocabulary.ids[rows] for rows in propose(left, turn)]
                _check(victim, left, chosen, cost)
            if progress:
                progress(number * rounds + turn + 1, len(groups) * rounds, what)


def _check(victim: Victim, searches: Sequence[Search], chosen: Sequence[Tensor], cost: Spent) -> None:
    """Draw and judge what is found now as text. A text that was drawn before would give the same picture again."""
    contents = {id(one): one.frame.content(tokens) for one, tokens in zip(searches, chosen, strict=True)}
    texts = {key: spelled(victim, content) for key, content in contents.items()}
    fresh = [one for one in searches if texts[id(one)] not in one.tried]
    images = victim.draw([Case(texts[id(one)], one.case.seed) for one in fresh])
    tokens = {id(one): found.cpu() for one, found in zip(searches, chosen, strict=True)}
    for one in searches:
        one.best = replace(one.best, spent=one.best.spent + cost)
    seen = victim.look([one.case for one in fresh], images)
    for one, image, now in zip(fresh, images, seen, strict=True):
        text = texts[id(one)]
        one.tried.add(text)
        kept = words(victim, text) == contents[id(one)]
        found = now.outcome(one.case, image, by=text, spent=spent_on([image]), tensors={"tokens": tokens[id(one)]})
        found = replace(found, note="; ".join(filter(None, [found.note, "" if kept else "read as other tokens"])))
        one.best = better(one.best, found, one.case)
    for one in searches:
        one.note()
