"""MACE's refinement, TRCE's text stage and RealEra's text part beside their textbook forms, with the default settings.

The textbook forms get the same sentences, weights and draws, and the features of erasekit's encoder. Where the pairs and
what is kept are more prompts than memory should hold (HELD), of which `mace` has 6,024, SAMPLE of each stand for the time of
all, also with `full`; and in the float64 result the sum over what is kept is that of erasekit's fit, as the papers' caches
are sums that are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import textbook
import torch
from beside import Found, Rows, encoding, features, numbers, originals, overheard, settings, spent, together
from measuring import Work, measured
from tasks import SAMPLE
from textbook import Pair, Weighted
from textbook_mace import mace, shared
from textbook_realera import around, realera
from textbook_trce import trce
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.methods import _prior
from erasekit.methods._cross import silent
from erasekit.methods._features import last_subject
from erasekit.methods._templates import fill
from erasekit.methods.trce_text import DIVISOR

HELD = 2000
Faced = tuple[str, Sequence[int], str, Sequence[int]]
"""Rows of a prompt and the rows of another that they should act as."""


@dataclass(frozen=True)
class Asked:
    """What MACE and TRCE sum over: rows that face each other, prompts that are kept with what they weigh, and features."""

    faced: list[Faced]
    kept: list[tuple[float, str]]
    rows: Rows

    def pairs(self, dtype: torch.dtype) -> Iterator[Pair]:
        """The rows that face each other, one prompt at a time."""
        return ((self.rows[f][0][mine].to(dtype), self.rows[g][0][its].to(dtype)) for f, mine, g, its in self.faced)

    def held(self, dtype: torch.dtype) -> Iterator[Weighted]:
        """The rows of what is kept, one prompt at a time."""
        return ((weight, self.rows[prompt][0].to(dtype)) for weight, prompt in self.kept)

    def some(self) -> Asked:
        """SAMPLE of each, where all are more than HELD."""
        few = len(self.faced) + len(self.kept) > HELD
        return Asked(self.faced[:SAMPLE], self.kept[:SAMPLE], self.rows) if few else self


def compare_mace(work: Work, folder: Path, out: Path, full: bool) -> Found:
    """MACE's refinement: every target in every sentence, captions and the retained in the sentences for them kept."""
    values = settings(work)
    sentences = values.sentences[: values.retain_templates]
    kept = captions(values.preserve_scale**2 * values.prior_count)
    kept += [(values.preserve_scale**2 * values.preserve_weight / len(sentences), fill(sentence, concept))
             for concept in work.retain for sentence in sentences]  # fmt: skip
    formula = partial(mace, lamb=values.lamb, eps=values.eps)
    return summed(work, folder, out, full, kept, words_around, formula)


def compare_trce(work: Work, folder: Path, out: Path, full: bool) -> Found:
    """TRCE's text stage: the first end-of-text of every target in every sentence, captions and the retained kept."""
    values = settings(work)
    eta = values.eta * values.prior_count / DIVISOR
    kept = captions(eta)
    kept += [(eta * values.retain_weight / len(work.retain), fill(values.sentences[0], concept))
             for concept in work.retain]  # fmt: skip
    return summed(work, folder, out, full, kept, ends, partial(trce, eps=values.eps))


def captions(weight: float) -> list[tuple[float, str]]:
    """The built-in captions, which weigh so much together."""
    found = _prior.read_captions(None)
    return [(weight / len(found), caption) for caption in found]


Sentences = list[tuple[str, str, str]]
"""The prompt, the same with the anchor, the target."""


def words_around(folder: Path, asked: Sentences, rows: Rows) -> list[Faced]:
    """The words that the two prompts share, and the padding."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = {prompt: tokenizer(prompt)["input_ids"] for one in asked for prompt in one}
    found = [(f, g, shared(ids[f], ids[g], ids[target][1:-1])) for f, g, target in asked]
    return [(f, mine, g, its) for f, g, (mine, its) in found]


def ends(folder: Path, asked: Sentences, rows: Rows) -> list[Faced]:
    """The first end-of-text tokens."""
    return [(m, [rows[m][1] + 1], s, [rows[s][1] + 1]) for m, s, _ in asked]


def summed(
    work: Work, folder: Path, out: Path, full: bool, kept: list[tuple[float, str]],
    face: Callable[[Path, Sentences, Rows], list[Faced]], formula: Callable[..., Tensor],
) -> Found:  # fmt: skip
    """erasekit's edit beside `formula` of the pairs and what is kept."""
    with overheard(_prior, "gather") as heard:
        ours, edit = measured(work, folder, out)
    anchor = work.anchor or ""
    asked = [(fill(sentence, target), fill(sentence, anchor), target)
             for target in work.targets for sentence in settings(work).sentences]  # fmt: skip
    prompts = [side for one in asked for side in one[:2]]
    many = len(asked) + len(kept) > HELD
    held = [prompt for _, prompt in (kept[:SAMPLE] if many else kept)]
    rows = features(folder, prompts) | features(folder, held)  # two calls: batches of what is kept are then the fit's
    given, old = Asked(face(folder, asked, rows), kept, rows), originals(folder, edit)
    counts, some = textbook.one_each(old, full), given.some()
    lists = list(some.pairs(torch.float32)), list(some.held(torch.float32))
    seconds = spent(lambda name, *sides: formula(old[name].float(), *sides), lists, (len(asked), len(kept)), counts)
    cache = [(1.0, rooted(heard[-1].matrix))] if many else None

    def exact(name: str) -> Tensor:
        return formula(old[name].double(), given.pairs(torch.float64), cache or given.held(torch.float64))

    _, solved = textbook.timed(exact, counts)
    taken = {"solve": seconds, "matrices": [len(counts), len(old)]}
    taken["sums"] = [sum(map(len, lists)), len(asked) + len(kept)]
    every = [*prompts, *(prompt for _, prompt in kept)]
    return told(ours, folder, every, rows, full, taken, textbook.difference(edit, old, solved))


def rooted(moment: Tensor) -> Tensor:
    """Rows R with R' R = moment."""
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp_min(0).sqrt()).T


def told(
    ours: Found, folder: Path, prompts: Sequence[str], rows: Rows, full: bool, taken: Found, distance: dict[str, float]
) -> Found:
    """The comparison with the seconds of encoding every different prompt once."""
    encode, apart = encoding(folder, prompts, rows, full)
    taken = {"encode": encode, "prompts": numbers(prompts), "encodings": 1, "full": full} | taken
    return together(ours, taken, distance | {"features": apart})


# -- RealEra ----------------------------------------------------------------------------------------------------


def compare_realera(work: Work, folder: Path, out: Path, full: bool) -> Found:
    """RealEra's text part, with the draws of seed 0; the drawing counts as solving, once."""
    ours, edit = measured(work, folder, out)
    values, old = settings(work), originals(folder, edit)
    # Encoded in the batches of the fit: in others float32 rounds otherwise, and close neighbours magnify that.
    model, anchors = backbone(str(folder)), [work.anchor or ""] * len(work.targets)
    centres, aims = (last_subject(model, side, progress=silent, what="").T for side in (work.targets, anchors))
    sides = [prompt for pair in zip(work.targets, anchors, strict=True) for prompt in pair]
    rows, kept = features(folder, sides), features(folder, ["", *work.retain])
    started = time.perf_counter()
    near, far = drawn(centres, values)
    drawing = time.perf_counter() - started
    pairs = [textbook.tails(rows[target], rows[anchor]) for target, anchor in zip(work.targets, anchors, strict=True)]
    pairs += [(points, aim.expand_as(points)) for points, aim in zip(near, aims, strict=True)]
    counts = textbook.one_each(old, full)

    def solve(name: str, dtype: torch.dtype) -> Tensor:
        given = [(x.to(dtype), y.to(dtype)) for x, y in pairs]
        outside, held = ([block.to(dtype) for block in blocks] for blocks in (far, [found for found, _ in kept.values()]))
        return realera(old[name].to(dtype), given, outside, held, beyond=values.beyond_scale, prior=values.prior_scale,
                       lamb=values.lamb)  # fmt: skip

    seconds, _ = textbook.timed(partial(solve, dtype=torch.float32), counts)
    _, solved = textbook.timed(partial(solve, dtype=torch.float64), counts)
    taken = {"solve": drawing + seconds, "matrices": [len(counts), len(old)]}
    prompts = [*sides, "", *work.retain]
    return told(ours, folder, prompts, rows | kept, full, taken, textbook.difference(edit, old, solved))


def drawn(centres: Iterable[Tensor], values: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The neighbours and the outsiders of every concept, rows (n, d), in the concepts' order."""
    generator, near, far = torch.Generator().manual_seed(0), [], []
    (least, d1, d2), (s0, s1, s2) = values.distances, values.cosines
    for e in centres:
        inside, outside = (len(e) // 12 if count is None else count for count in (values.neighbours, values.outsiders))
        near.append(around(e, inside, distance=(least, d1), cosine=(s1, s2), generator=generator))
        far.append(around(e, outside, distance=(d1, d2), cosine=(s0, s1), generator=generator))
    return near, far
