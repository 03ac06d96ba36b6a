"""Prompts as token ids and as text: what is inside a prompt, what it spells, and prompts with places that are free.

A prompt is BOS, its content, EOS and padding; which ids these are is read from the tokenizer. What counts is always the
text, read anew by the tokenizer, never the ids that were found: not every sequence of tokens survives being written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim


def room(victim: Victim) -> int:
    """How many tokens fit between BOS and EOS."""
    return victim.length - 2


def content(victim: Victim, prompt: str) -> list[int]:
    """The prompt's tokens without BOS, EOS and padding; as many as fit."""
    return victim.pipe.tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=room(victim)).input_ids


def spelled(victim: Victim, contents: Iterable[Sequence[int]] | Int[Tensor, "n k"]) -> list[str]:
    """The text of each row of ids. Its `content` are the same ids where these survive being written down."""
    decode = victim.pipe.tokenizer.decode
    rows = contents.tolist() if isinstance(contents, Tensor) else contents
    texts = (decode(list(row), clean_up_tokenization_spaces=False) for row in rows)
    return [" ".join(text.replace("</w>", " ").split()) for text in texts]


def framed(victim: Victim, ids: Int[Tensor, "n k"], *, pad: int | None = None) -> Int[Tensor, "n length"]:
    """The ids as prompts: BOS before them, EOS and padding behind. `pad` stands instead of the tokenizer's own padding."""
    rows = victim.ids([""]).repeat(len(ids), 1)
    end, behind = rows[:, 1].clone(), ids.shape[1] + 1
    rows[:, 1:behind] = ids.to(rows.device)
    rows[:, behind] = end
    if pad is not None:
        rows[:, behind + 1 :] = pad
    return rows


# -- free places ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Frame:
    """A prompt with free places: the padded `ids` (length,), the free positions `at` (k,), `size` tokens inside."""

    ids: Int[Tensor, " length"]
    at: Int[Tensor, " k"]
    size: int

    def content(self, tokens: Int[Tensor, " k"]) -> list[int]:
        """What is inside the prompt with these tokens in the free places."""
        return self.ids.index_copy(0, self.at, tokens)[1 : 1 + self.size].tolist()


def placed(victim: Victim, inside: Sequence[int], places: Iterable[int], *, pad: int | None = None) -> Frame | None:
    """The tokens with free places at these indices of the whole, or None where that does not fit. `pad` as for `framed`."""
    free, left = sorted(places), iter(inside)
    size = len(inside) + len(free)
    if size > room(victim):
        return None
    whole = [victim.pipe.tokenizer.pad_token_id if i in free else next(left) for i in range(size)]
    (ids,) = framed(victim, torch.tensor([whole], dtype=torch.long), pad=pad)
    return Frame(ids, torch.tensor([1 + i for i in free], dtype=torch.long, device=ids.device), size)


def conditions(victim: Victim, frames: Sequence[Frame], rows: Sequence[Tensor]) -> Float[Tensor, "n length features"]:
    """What the cross-attention reads with the rows (k, width) in each frame's free places; frames may differ in k."""
    ids = torch.stack([frame.ids for frame in frames])
    own = victim.table.detach()[ids].float()
    filled = [one.index_copy(0, frame.at, put) for one, frame, put in zip(own, frames, rows, strict=True)]
    at = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    return victim.condition(ids, torch.stack(filled), at)
