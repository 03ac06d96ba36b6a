"""MACE's closed-form refinement (arXiv 2403.06135) as its formulas read: sums over the prompts, one inverse a matrix.

Features are rows (n, d), weights (o, d).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from textbook import Pair, Weighted
from torch import Tensor


def mace(old: Tensor, pairs: Iterable[Pair], kept: Iterable[Weighted], *, lamb: float, eps: float) -> Tensor:
    """W' = (lamb W + sum W e_g e_f' + sum l W e_p e_p') (lamb I + sum e_f e_f' + sum l e_p e_p')^-1, for one matrix.

    `pairs`: (e_f, e_g) of a prompt each; `kept`: what a prompt weighs and its rows e_p. To lamb is added `eps` times the mean
    diagonal of the kept part: few captions stand for half a million.
    """
    top, bottom = torch.zeros_like(old), torch.zeros(old.shape[1], old.shape[1], dtype=old.dtype)
    for weight, rows in kept:
        top = top + weight * (old @ rows.T) @ rows
        bottom = bottom + weight * rows.T @ rows
    near = lamb + eps * float(bottom.diagonal().mean())
    top, bottom = top + near * old, bottom + near * torch.eye(old.shape[1], dtype=old.dtype)
    for f, g in pairs:
        top = top + (old @ g.T) @ f
        bottom = bottom + f.T @ f
    return top @ torch.linalg.inv(bottom)


def shared(f: Sequence[int], g: Sequence[int], phrase: Sequence[int], length: int = 77) -> tuple[list[int], list[int]]:
    """The rows of two prompts that face each other: what both begin with, what both end with, and the padding behind it;
    never those of the target's own tokens `phrase` in `f`. Ids from BOS to the first EOS."""
    begin = 0
    while begin < min(len(f), len(g)) and f[begin] == g[begin]:
        begin += 1
    end = 0
    while end < min(len(f), len(g)) - begin and f[-1 - end] == g[-1 - end]:
        end += 1
    mine, its = list(range(begin)), list(range(begin))
    mine += range(len(f) - end, len(f) + length - max(len(f), len(g)))
    its += range(len(g) - end, len(g) + length - max(len(f), len(g)))
    starts = [i for i in range(len(f)) if list(f[i : i + len(phrase)]) == list(phrase)]
    own = {start + k for start in starts for k in range(len(phrase))}
    faced = [(i, k) for i, k in zip(mine, its, strict=True) if i not in own]
    return [i for i, _ in faced], [k for _, k in faced]
