"""Text features as the cross-attention reads them, a batch at a time and no longer than they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone, Tokens
from erasekit.methods import Progress

BATCH = 16
"""Prompts encoded at once."""
ROWS = 3072
"""Positions encoded at once where prompts are cut short."""
PROBES = 128
"""Columns that a self-check looks at, evenly spaced."""


def encoded(backbone: Backbone, prompts: Sequence[str], *, whole: bool) -> Iterator[tuple[Tensor, int]]:
    """For each prompt its text features (length, d) float32 and the position of its last subject token, the one before
    the first EOS (BOS in an empty prompt). Unless `whole`, rows behind the longest prompt's EOS are left out."""
    tokens = backbone.tokenize(prompts)
    lasts = [end - 1 for end in tokens.ends]
    if whole:
        return zip(backbone.encode(prompts).cpu(), lasts, strict=True)
    return zip(_walk(backbone, tokens, max(tokens.ends) + 1), lasts, strict=True)


def last_subject(backbone: Backbone, prompts: Sequence[str], *, progress: Progress, what: str) -> Tensor:
    """The feature of every prompt's last subject token, as columns (d, n) in float64.

    Prompts are encoded up to that token only (causal: what follows changes nothing), those of equal length together,
    in the order of their tokens: an encoder computes a beginning that neighbours share only once.
    """
    tokens = backbone.tokenize(prompts)
    ids, ends = tokens.ids[:, : max(tokens.ends)].tolist(), tokens.ends
    order = sorted(range(len(prompts)), key=lambda i: (ends[i], ids[i]))
    found = torch.zeros(0)
    done = 0
    for length, group in groupby(order, key=ends.__getitem__):
        for rows in torch.tensor(list(group)).split(max(BATCH, ROWS // length)):
            progress(done, len(prompts), what)
            last = _walk(backbone, Tokens(tokens.ids[rows], (length,) * len(rows)), length)[:, -1].double()
            found = found if found.numel() else last.new_zeros(len(prompts), last.shape[1])
            found[rows], done = last, done + len(rows)
    return found.T


def spread(count: int) -> Tensor:
    """At most PROBES column numbers, evenly spaced."""
    return torch.linspace(0, max(0, count - 1), min(count, PROBES)).round().long()


def _walk(backbone: Backbone, tokens: Tokens, length: int) -> Tensor:
    """The first `length` rows of every prompt's features (n, length, d) float32, on the CPU."""
    return backbone.tower.features(Tokens(tokens.ids[:, :length], tokens.ends)).float().cpu()
