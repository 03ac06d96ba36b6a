"""Text features as the cross-attention reads them, a batch at a time and no longer than they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone, Tokens
from erasekit.methods import Progress

BATCH = 16
"""Prompts encoded at once."""
PROBES = 128
"""Columns that a self-check looks at, evenly spaced."""


def encoded(backbone: Backbone, prompts: Sequence[str], *, whole: bool) -> Iterator[tuple[Tensor, int]]:
    """For each prompt its text features (length, d) float32 and the position of its last subject token, the one before
    the first EOS (BOS in an empty prompt). Unless `whole`, rows behind the longest prompt's EOS are left out."""
    tokens = backbone.tokenize(prompts)
    lasts = [end - 1 for end in tokens.ends]
    if whole:
        return zip(backbone.encode(prompts), lasts, strict=True)
    return zip(_walk(backbone, tokens, max(tokens.ends) + 1), lasts, strict=True)


def last_subject(backbone: Backbone, prompts: Sequence[str], *, progress: Progress, what: str) -> Tensor:
    """The feature of every prompt's last subject token, as columns (d, n) in float64.

    Prompts are encoded up to that token only (causal: what follows changes nothing), those of equal length together.
    """
    tokens = backbone.tokenize(prompts)
    ends = torch.tensor(tokens.ends)
    found = torch.zeros(0)
    done = 0
    for length in ends.unique().tolist():
        for rows in (ends == length).nonzero()[:, 0].split(max(BATCH, 1024 // length)):
            progress(done, len(prompts), what)
            last = _walk(backbone, Tokens(tokens.ids[rows], tuple(ends[rows].tolist())), length)[:, -1].double()
            found = found if found.numel() else last.new_zeros(len(prompts), last.shape[1])
            found[rows], done = last, done + len(rows)
    return found.T


def spread(count: int) -> Tensor:
    """At most PROBES column numbers, evenly spaced."""
    return torch.linspace(0, max(0, count - 1), min(count, PROBES)).round().long()


def _walk(backbone: Backbone, tokens: Tokens, length: int) -> Tensor:
    """The first `length` rows of every prompt's features (n, length, d) float32, on the CPU."""
    tower = backbone.tower
    hidden = tower.embed(Tokens(tokens.ids[:, :length], tokens.ends))
    for layer in range(tower.depth):
        hidden = tower.layer(hidden, layer)
    return tower.output(hidden).float().cpu()
