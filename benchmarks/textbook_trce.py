"""TRCE's first stage (arXiv 2503.07389) as its formula reads: sums over the prompts, one inverse a matrix.

Features are rows (n, d), weights (o, d).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from textbook import Pair, Weighted
from torch import Tensor


def trce(old: Tensor, pairs: Iterable[Pair], kept: Iterable[Weighted], *, eps: float) -> Tensor:
    """W' = (mean W e_s e_m' + eta sum W e_k e_k') (mean e_m e_m' + eta sum e_k e_k')^-1, for one matrix.

    `pairs`: (e_m, e_s), the first end-of-text feature (1, d) of a prompt and of its safe counterpart; `kept`: what a prompt
    weighs (eta is in it) and its rows e_k. `eps` times the mean diagonal of the kept part keeps W where no caption is.
    """
    top, bottom = torch.zeros_like(old), torch.zeros(old.shape[1], old.shape[1], dtype=old.dtype)
    for weight, rows in kept:
        top = top + weight * (old @ rows.T) @ rows
        bottom = bottom + weight * rows.T @ rows
    near = eps * float(bottom.diagonal().mean())
    top, bottom = top + near * old, bottom + near * torch.eye(old.shape[1], dtype=old.dtype)
    wanted, asked, count = torch.zeros_like(old), torch.zeros_like(bottom), 0
    for m, s in pairs:
        wanted = wanted + (old @ s.T) @ m
        asked = asked + m.T @ m
        count += 1
    return (top + wanted / count) @ torch.linalg.inv(bottom + asked / count)
