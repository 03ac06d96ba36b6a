"""The tokens that a search may use: none that is special, and none that says what must not be said.

There are two rules for the latter. A search that adds tokens to a prompt bans words only where it is asked to, as what they
are: any token that contains one (`Vocabulary`). A search for other words must not name the target however it is cut up: no
token may be, or contain, a piece of its words either; short pieces alone excepted, or hardly a token were left (`unnamed`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_lowercase
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from erasekit.attacks._text import content, spelled
from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim

LONG = 3  # letters from which a banned piece may not even be a part of a token


def free_ids(victim: Victim) -> Int[Tensor, " m"]:
    """The ids of the vocabulary that are not special, on the CPU."""
    special, known = set(victim.pipe.tokenizer.all_special_ids), min(len(victim.pipe.tokenizer), len(victim.table))
    return torch.tensor([i for i in range(known) if i not in special])


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that a search may use, `ids` (v,), and their embeddings `table` (v, width) in float32."""

    ids: Int[Tensor, " v"]
    table: Float[Tensor, "v width"]

    @classmethod
    def of(cls, victim: Victim, banned: Sequence[str] = ()) -> Vocabulary:
        """All tokens but special ones, those that are no printable text, and those that contain a banned word or
        help to spell it. Raises `UsageError` where none is left."""
        free, words = free_ids(victim), [word.lower() for word in banned]
        parts = {i for word in words for i in content(victim, word)}
        texts = zip(free.tolist(), spelled(victim, free[:, None]), strict=True)
        usable = [i for i, text in texts if i not in parts and _printable(text)
                  and not any(word in text.lower() for word in words)]  # fmt: skip
        if not usable:
            raise UsageError("the banned words leave no token to search with: ban fewer")
        ids = torch.tensor(usable, device=victim.table.device)
        return cls(ids, victim.table.detach()[ids].float())

    @cached_property
    def unit(self) -> Float[Tensor, "v width"]:
        """The embeddings at length one."""
        return normalize(self.table, dim=-1)

    def nearest(self, points: Float[Tensor, "k width"]) -> Int[Tensor, " k"]:
        """The row of the table in each point's direction (largest cosine)."""
        return (normalize(points, dim=-1) @ self.unit.T).argmax(-1)


def unnamed(victim: Victim, phrases: Iterable[str]) -> Bool[Tensor, " vocabulary"]:
    """Which ids are neither special nor spell, alone or as a piece, a word of the phrases."""
    free, words = free_ids(victim), words_of(phrases)
    texts = [text.lower() for text in spelled(victim, free[:, None])]
    named = dict(zip(free.tolist(), texts, strict=True))
    pieces = {named[i] for word in words for i in content(victim, word) if i in named}
    banned = {*words, *pieces} - {""}
    long = [piece for piece in banned if len(piece) >= LONG]
    allowed = torch.zeros(len(victim.table), dtype=torch.bool)
    allowed[free] = torch.tensor([text not in banned and not any(p in text for p in long) for text in texts])
    return allowed


def letters_of(victim: Victim, allowed: Bool[Tensor, " vocabulary"]) -> Int[Tensor, " m"]:
    """The ids of the letters that are an allowed token each, on the CPU; `UsageError` where there is none."""
    read = [content(victim, letter) for letter in ascii_lowercase]
    single = [ids[0] for ids in read if len(ids) == 1 and allowed[ids[0]]]
    if not single:
        raise UsageError("the ban leaves no letter to start from: ban fewer words")
    return torch.tensor(single)


def words_of(phrases: Iterable[str]) -> list[str]:
    """The different words of the phrases in lower case."""
    return list(dict.fromkeys(word for phrase in phrases for word in re.findall(r"\w+", phrase.lower())))


def _printable(text: str) -> bool:
    """Whether a token is text by itself: not a half of a character, for one."""
    return bool(text) and text.isprintable() and "\ufffd" not in text
