"""What the tests of UCE share: the textbook formula, transformers' own rows, and a fit in one line."""

from __future__ import annotations

import torch
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.methods.uce import UCE, UCEConfig
from erasekit.methods.uce_text import Pairs


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs_of(x: Tensor, y: Tensor, blocks: int = 1) -> Pairs:
    return Pairs(x, (y,), torch.arange(x.shape[1]) * blocks // x.shape[1])


def textbook(w: Tensor, x: Tensor, v: Tensor, r: Tensor, a: float, b: float, lamb: float) -> Tensor:
    """The paper's d x d formula, one column at a time."""
    top, bottom = lamb * w, lamb * torch.eye(w.shape[1], dtype=w.dtype)
    for c, out in zip(x.T, v.T, strict=True):
        top, bottom = top + a * torch.outer(out, c), bottom + a * torch.outer(c, c)
    for c in r.T:
        top, bottom = top + b * torch.outer(w @ c, c), bottom + b * torch.outer(c, c)
    return top @ torch.linalg.inv(bottom)


def fit(pipe: object, targets: object = "cat", *, anchor: object = None, retain: tuple = (), **options: object):
    request = EraseRequest.build(targets, anchor=anchor, retain=retain)
    return UCE().fit(backbone(pipe), request, UCEConfig(**options))


def transformers_rows(pipe, prompt: str) -> tuple[Tensor, int]:
    """Rows of transformers' own encoder and the last subject token, as the 2023 scripts find it."""
    batch = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        rows = pipe.text_encoder(batch["input_ids"])[0][0].double()
    return rows, int(batch["attention_mask"].sum()) - 2
