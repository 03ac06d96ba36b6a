"""What every search in the text encoder needs: which encoder, its ids as prompts and as text, and what a found prompt
comes to when the edited model draws it. Special ids, their order and the padding are read from the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from string import ascii_lowercase
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from erasekit.attacks.base import Case, Outcome, Spent
from erasekit.attacks.prompts import better
from erasekit.attacks.sight import spent_on
from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

LONG = 3  # letters from which a banned piece may not even be a part of a token: with fewer, hardly a token were left


@dataclass(frozen=True, eq=False)
class Found:
    """A prompt that was found for a case, and what is to be said of the search."""

    prompt: str
    spent: Spent
    curve: tuple[tuple[float, float], ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    note: str = ""


def settled(victim: Victim, plain: Sequence[Outcome], found: Mapping[int, Found]) -> list[Outcome]:
    """The plain outcomes, and where a prompt was found the better of that and of the prompt as the edited model draws it
    from the case's seed. Curve, tensors and note are the search's."""
    outcomes, cases = list(plain), [plain[i].case for i in found]
    images = victim.draw([Case(one.prompt, case.seed) for one, case in zip(found.values(), cases, strict=True)])
    seen = victim.look(cases, images)
    for (i, one), image, now in zip(found.items(), images, seen, strict=True):
        new = now.outcome(plain[i].case, image, by=one.prompt, spent=spent_on([image]))
        best = better(plain[i], new, new.case)
        note = "; ".join(filter(None, [one.note, now.reason]))
        outcomes[i] = replace(best, spent=best.spent + one.spent, curve=one.curve, tensors=one.tensors, note=note)
    return outcomes


def teller(progress: Progress | None, number: int, count: int, each: int) -> Callable[[int], None]:
    """What reports the steps of search `number` of `count` that take `each` steps."""

    def tell(step: int) -> None:
        if progress:
            progress(number * each + step, count * each, f"searching words for prompt {number + 1} of {count}")

    return tell


def side(victim: Victim, encoder: str) -> AbstractContextManager[None]:
    """Inside, the pipeline's text encoder is the one of that name: original or edited."""
    return victim.original() if encoder == "original" else nullcontext()


def free_tokens(victim: Victim, tokens: int) -> int:
    """So many tokens, or as many as fit between BOS and EOS."""
    return min(tokens, victim.length - 2)


def free_ids(victim: Victim) -> Int[Tensor, " m"]:
    """The ids of the vocabulary that are not special, on the CPU."""
    special, known = set(victim.pipe.tokenizer.all_special_ids), min(len(victim.pipe.tokenizer), len(victim.table))
    return torch.tensor([i for i in range(known) if i not in special])


def framed(victim: Victim, ids: Int[Tensor, "n k"]) -> Int[Tensor, "n length"]:
    """The ids as a prompt: BOS before them, EOS and padding behind."""
    rows = victim.ids([""]).repeat(len(ids), 1)
    end, behind = rows[:, 1].clone(), ids.shape[1] + 1
    rows[:, 1:behind] = ids.to(rows.device)
    rows[:, behind] = end
    return rows


def decoded(victim: Victim, ids: Int[Tensor, "n k"]) -> list[str]:
    """The text of each row of ids."""
    texts = victim.pipe.tokenizer.batch_decode(ids.tolist(), clean_up_tokenization_spaces=False)
    return [" ".join(text.replace("</w>", " ").split()) for text in texts]


# -- what may not be said ------------------------------------------------------------------------------------------


def words_of(phrases: Iterable[str]) -> list[str]:
    """The different words of the phrases in lower case."""
    return list(dict.fromkeys(word for phrase in phrases for word in re.findall(r"\w+", phrase.lower())))


def allowed_ids(victim: Victim, phrases: Iterable[str]) -> Bool[Tensor, " vocabulary"]:
    """Which ids are neither special nor spell, alone or as a piece, a word of the phrases."""
    free, words = free_ids(victim), words_of(phrases)
    texts = [text.lower() for text in decoded(victim, free[:, None])]
    named = dict(zip(free.tolist(), texts, strict=True))
    pieces = {named[i] for row in (victim.ids(words).tolist() if words else []) for i in row if i in named}
    banned = {*words, *pieces} - {""}
    long = [piece for piece in banned if len(piece) >= LONG]
    allowed = torch.zeros(len(victim.table), dtype=torch.bool)
    allowed[free] = torch.tensor([text not in banned and not any(p in text for p in long) for text in texts])
    return allowed


def letters_of(victim: Victim, allowed: Bool[Tensor, " vocabulary"]) -> Int[Tensor, " m"]:
    """The ids of the letters that are an allowed token each; `UsageError` where there is none."""
    rows = victim.ids(list(ascii_lowercase)).cpu()
    single = rows[(rows[:, 2] == victim.ids([""])[0, 1].cpu()) & allowed[rows[:, 1]], 1]
    if not len(single):
        raise UsageError("the ban leaves no letter to start from: ban fewer words")
    return single
