"""UCE, RECE and SPEED as their formulas read: one prompt at a time, one inverse (or SVD) for every matrix.

Written for comparison only: plain loops over prompts and matrices, `inverse` where the formula has an inverse, and any
dtype (float32 as the systems were published, float64 to compare results). UCE's and RECE's features are rows (n, d),
SPEED's are columns (d, n); weights are (o, d). The others have files of their own: `textbook_erasepro`, `textbook_mace`,
`textbook_trce`, `textbook_realera`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]
Weighted = tuple[float, Tensor]


class Encoder:
    """Text features of one prompt at a time, padded to 77, by transformers; every call tokenises and encodes anew."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPTextModel, CLIPTokenizer

        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.model = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()

    def __call__(self, prompt: str) -> Tensor:
        """All 77 rows (77, d)."""
        return self.subject(prompt)[0]

    @torch.no_grad()
    def subject(self, prompt: str) -> tuple[Tensor, int]:
        """All 77 rows and the position of the last subject token (BOS in an empty prompt)."""
        batch = self.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
        return self.model(batch["input_ids"])[0][0], int(batch["attention_mask"].sum()) - 2


def tails(target: tuple[Tensor, int], anchor: tuple[Tensor, int]) -> Pair:
    """The rows from the last subject token on, those of target and anchor facing each other."""
    (rows, f), (others, g) = target, anchor
    far = max(f, g)
    return rows[f : 77 - (far - f)], others[g : 77 - (far - g)]


# -- UCE (arXiv 2308.14761) -------------------------------------------------------------------------------------


def uce(old: Tensor, pairs: Iterable[Pair], kept: Iterable[Tensor], *, lamb: float, scale: float) -> Tensor:
    """W = (lamb W_o + sum W_o y x' + b sum W_o r r') (lamb I + sum x x' + b sum r r')^-1, for one matrix."""
    top, bottom = lamb * old, lamb * torch.eye(old.shape[1], dtype=old.dtype)
    for x, y in pairs:
        top = top + (old @ y.T) @ x
        bottom = bottom + x.T @ x
    for r in kept:
        top = top + scale * (old @ r.T) @ r
        bottom = bottom + scale * r.T @ r
    return top @ torch.linalg.inv(bottom)


# -- RECE (arXiv 2407.12383) ------------------------------------------------------------------------------------


def attack(now: Weights, old: Weights, ridge: float) -> Tensor:
    """M with c* = M c: (r I + sum W'W)^-1 sum W'W_o, over all matrices."""
    some = next(iter(old.values()))
    left = ridge * torch.eye(some.shape[1], dtype=some.dtype)
    right = torch.zeros_like(left)
    for name, weight in now.items():
        left = left + weight.T @ weight
        right = right + weight.T @ old[name]
    return torch.linalg.inv(left) @ right


def rece(
    old: Weights, start: Weights, pairs: Sequence[Pair], kept: Sequence[Tensor], options: dict[str, Any]
) -> Weights:
    """From the UCE weights `start`: in every epoch the embeddings that still evoke the targets, then their erasure."""
    now = dict(start)
    for _ in range(options["epochs"]):
        matrix = attack(now, old, options["ridge"])
        found = [(rows @ matrix.T, anchor) for rows, anchor in pairs]
        now = {
            name: uce(weight, found, kept, lamb=options["lamb"], scale=options["scale"]) for name, weight in now.items()
        }
    return now


# -- SPEED (arXiv 2503.07392) -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """What SPEED's formula takes besides the weight: columns (d, n) of targets, anchors, retained, invariants; means
    are over the targets. `filter`: whether the retained are filtered too, and not only their copies."""

    targets: Tensor
    anchors: Tensor
    retained: Tensor
    invariants: Tensor
    tau: float
    alpha: float
    lamb: float
    filter: bool

    def to(self, dtype: torch.dtype) -> Speed:
        """The same in another precision."""
        names = ("targets", "anchors", "retained", "invariants")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})


def speed(old: Tensor, given: Speed, noise: Tensor) -> Tensor:
    """W + D P = W + W (C* C1' - C1 C1') P Q M, with the retained set of this matrix filtered and augmented by copies
    of every retained column, `noise` (N, copies) apart along the weight's least direction."""
    eye = torch.eye(old.shape[1], dtype=old.dtype)
    c1, c2, count = given.targets, given.invariants, given.targets.shape[1]
    own = c1 @ c1.T / count
    gap = given.anchors @ c1.T / count - own
    kept = curated(old, given, old @ gap @ torch.linalg.inv(eye + own), noise)
    u, s, _ = torch.linalg.svd(kept @ kept.T / kept.shape[1])
    p = u[:, s < given.tau] @ u[:, s < given.tau].T
    m = torch.linalg.inv(own @ p + given.alpha * eye)
    middle = torch.linalg.inv(c2.T @ p @ m @ c2 + given.lamb * torch.eye(c2.shape[1], dtype=old.dtype))
    q = eye - m @ c2 @ middle @ c2.T @ p
    return old + old @ gap @ p @ q @ m


def curated(old: Tensor, given: Speed, erase: Tensor, noise: Tensor) -> Tensor:
    """The retained columns of a shift above the mean, and those of their copies of a shift above the copies' mean."""
    kept = given.retained
    if given.filter:
        above = strong(erase, kept)
        kept, noise = kept[:, above], noise[above]
    least = torch.linalg.svd(old, full_matrices=False)[2][-1]
    least = least * least[least.abs().argmax()].sign()
    copies = kept.repeat_interleave(noise.shape[1], 1) + torch.outer(least, noise.flatten())
    return torch.cat([kept, copies[:, strong(erase, copies)]], 1)


def strong(erase: Tensor, columns: Tensor) -> Tensor:
    """Which columns the plain erasure shifts more than the mean."""
    shift = (erase @ columns).norm(dim=0)
    return shift > shift.mean()


# -- timing -----------------------------------------------------------------------------------------------------


def one_each(weights: Weights, full: bool) -> dict[str, int]:
    """Which matrices are solved, and for how many each stands: all, or one of every shape."""
    if full:
        return dict.fromkeys(weights, 1)
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, weight in weights.items():
        shapes.setdefault(tuple(weight.shape), []).append(name)
    return {names[0]: len(names) for names in shapes.values()}


def timed(solve: Callable[[str], Tensor], counts: dict[str, int]) -> tuple[float, Weights]:
    """The seconds of all matrices (each that is solved counts for its shape), and the solutions."""
    seconds, solved = 0.0, {}
    for name, count in counts.items():
        started = time.perf_counter()
        solved[name] = solve(name)
        seconds += count * (time.perf_counter() - started)
    return seconds, solved


def difference(edit: Any, weights: Weights, solved: Weights) -> dict[str, float]:
    """The largest relative distance of the edited weights, and of the updates, over the matrices that were solved."""
    worst = {"weight": 0.0, "update": 0.0}
    for op in edit.ops:
        if op.module not in solved:
            continue
        old, plain = weights[op.module].double(), solved[op.module].double()
        apart = (old + op.delta(old) - plain).norm()
        worst["weight"] = max(worst["weight"], float(apart / plain.norm()))
        worst["update"] = max(worst["update"], float(apart / (plain - old).norm()))
    return worst
