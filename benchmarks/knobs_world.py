"""The emoji model as `erasepro_knobs.py` measures it: its features, its concepts by distance, and what to erase."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from emoji_prompts import PAIRS, other_prompts
from knobs_settings import Setting
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.backbones.base import Tokens
from erasekit.concept import EraseRequest
from erasekit.methods._pairs import plan
from erasekit.worlds.emoji.concepts import concepts, names

POSITIONS, UNRELATED = 32, 8  # read of each prompt; prompts of unrelated concepts


@dataclass(frozen=True)
class Case:
    """What is erased into what, and what is retained."""

    pairs: tuple[tuple[str, str], ...]
    retain: tuple[str, ...] = ()


def spread(count: int) -> list[tuple[str, str]]:
    """So many of the benchmark's pairs, spread over the list."""
    return [list(PAIRS.items())[i * len(PAIRS) // count] for i in range(count)]


class World:
    """The model with what is measured on it."""

    def __init__(self, model: str, targets: int) -> None:
        self.model: Any = backbone(model)
        self.targets = [target for target, _ in spread(targets)]
        words = {*PAIRS, *PAIRS.values()}
        prompts = [p for p in other_prompts("", "", 60) if p.wanted not in words][:UNRELATED]
        self.unrelated, aside = [p.text for p in prompts], {p.wanted for p in prompts}
        self.length = dict(zip(names(), self.model.tokenize(names()).ends, strict=True))
        self.pool = [n for n in names() if self.length[n] == 2 and n not in aside]  # BOS, one token, EOS

    def text(self, prompts: Sequence[str], ops: dict[str, Any], positions: int = POSITIONS) -> Tensor:
        """The text output (n, positions, d) of the model with the ops of an edit (module -> op)."""
        tower, tokens = self.model.tower, self.model.tokenize(prompts)
        if max(tokens.ends) >= positions:
            raise ValueError(f"a prompt has more than {positions} tokens")
        hidden = tower.embed(Tokens(tokens.ids[:, :positions], tokens.ends))
        for layer in range(tower.depth):
            sites = (s for s in self.model.sites("text.q", "text.k", "text.v", "text.out") if s.depth == layer)
            deltas = {s.group.removeprefix("text."): ops[s.module].delta(self.model.weight(s).float())
                      for s in sites if s.module in ops}  # fmt: skip
            hidden = tower.layer(hidden, layer, deltas)
        return tower.output(hidden)

    def outputs(self, prompts: Sequence[str], ops: dict[str, Any]) -> Tensor:
        """Every cross-attention key and value (n, positions, all of them)."""
        weights = [(site.module, self.model.weight(site).float()) for site in self.model.sites("cross.kv")]
        edited = [weight + ops[name].delta(weight) if name in ops else weight for name, weight in weights]
        return self.text(prompts, ops) @ torch.cat(edited).T

    @cached_property
    def distances(self) -> dict[str, dict[str, float]]:
        """1 - cosine of every two concepts: the text output at the last token, less the mean over all concepts."""
        ends = list(self.length.values())
        text = self.text(names(), {}, max(ends) + 1)
        features = torch.stack([rows[end - 1] for rows, end in zip(text, ends, strict=True)])
        unit = torch.nn.functional.normalize(features - features.mean(0), dim=1)
        return {
            n: dict(zip(names(), row, strict=True))
            for n, row in zip(names(), (1 - unit @ unit.T).tolist(), strict=True)
        }

    def distance(self, one: str, other: str) -> float:
        """Between two concepts; of the empty prompt: not a number."""
        return self.distances[one][other] if other else float("nan")

    def ranked(self, target: str, words: Sequence[str]) -> list[str]:
        """The words, nearest to the target first, without it."""
        return sorted((w for w in words if w != target), key=lambda w: self.distance(target, w))

    def anchor(self, target: str, rule: str) -> str:
        """The anchor that a rule picks among the concepts of one token."""
        if rule in ("pair", "empty"):
            return PAIRS[target] if rule == "pair" else ""
        ranked = self.ranked(target, self.pool)
        if rule == "category":  # the nearest of another category
            kinds = {c.name: c.category for c in concepts()}
            return next(w for w in ranked if kinds[w] != kinds[target])
        place = {"nearest": 0.0, "near": 0.1, "middle": 0.5, "far": 0.9, "farthest": 1.0}[rule]
        return ranked[round(place * (len(ranked) - 1))]

    def cases(self, setting: Setting) -> list[Case]:
        """The edits that a setting is the mean of."""
        if setting.pairs:
            return [Case(setting.pairs, setting.kept)]
        if setting.concepts > 1:
            sets = self._sets(setting.concepts)
            return [Case(s, tuple(self.retained({w for pair in s for w in pair}, setting.retain))) for s in sets]
        pairs = [(t, self.anchor(t, setting.anchor)) for t in self.targets]
        return [Case((pair,), tuple(self.retained(pair, setting.retain))) for pair in pairs]

    def measured(self, case: Case) -> list[tuple[str, str]]:
        """Those of a case's pairs that its numbers are of: the world's targets without their company, or, of a case that
        has none of them, all."""
        return [pair for pair in case.pairs if pair[0] in self.targets] or list(case.pairs)

    def retained(self, said: Container[str], count: int) -> list[str]:
        """Every third concept of one token, then the others, without those of the pairs."""
        words = [w for start in range(3) for w in self.pool[start::3]]
        return [w for w in words if w not in said][:count]

    def _sets(self, count: int) -> list[tuple[tuple[str, str], ...]]:
        """The measured targets in groups of `count`, or all of them in the company of others."""
        pairs = [(t, PAIRS[t]) for t in self.targets]
        if count <= len(pairs):
            starts = range(0, len(pairs) - count + 1, count)
            return [tuple(pairs[start : start + count]) for start in starts]
        free = [w for w in self.pool if w not in {*PAIRS, *PAIRS.values()}]
        more = [w for start in range(2) for w in free[start::2]][: count - len(pairs)]
        anchors = [w for w in self.pool if w not in {*self.targets, *more}]
        return [(*pairs, *((t, self.ranked(t, anchors)[0]) for t in more))]


def conflicts(world: World, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """How many pairs of prompts ask two things of one column, for the first n concepts of the table."""
    found = []
    for count in sizes:
        targets = names()[:count]
        any_ = [world.ranked(t, names())[0] for t in targets]
        alike = [[n for n in names() if world.length[n] == world.length[t]] for t in targets]
        equal = [(world.ranked(t, words) or [near])[0] for t, words, near in zip(targets, alike, any_, strict=True)]
        rules = {"the nearest concept": any_, "the nearest of as many tokens": equal, "the empty prompt": [""] * count}
        for rule, anchors in rules.items():
            request = EraseRequest.build(targets, anchor=anchors)
            both, cross = (
                len(plan(world.model, request, ("{}",), context_free=free).conflicts) for free in (True, False)
            )
            found.append({"concepts": count, "anchor": rule, "text and cross": both, "cross alone": cross})
    return found
