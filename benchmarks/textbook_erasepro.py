"""ErasePro (arXiv 2508.04472) as its formulas read: a loop that begins again with the tokens at every level.

    W = W_o + W_o (Y - X) X^+        the least change with W X = W_o Y

for the q, k, v of text layer 0, 1, ..., then for every K and V of the cross-attention. X (d, n): what the matrix reads of
the target prompts in the model edited so far; Y: what it reads of the anchor prompts in the original; all positions,
column by column. Nothing is carried from level to level and nothing is shared:
the targets are encoded anew, one at a time, from their tokens up to the level, and every matrix has a pseudo-inverse of
its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import textbook
import torch
from torch import Tensor

ROLES = ("q_proj", "k_proj", "v_proj")
Prompts = tuple[str, str]
"""A target prompt and its anchor's."""


def erasepro(old: Tensor, x: Tensor, y: Tensor, tolerance: float) -> Tensor:
    """W_o + W_o (Y - X) X^+ of one matrix (o, d), columns (d, n); singular values below `tolerance` of the largest, or of
    what the precision has, are dropped."""
    floor = max(x.shape) * torch.finfo(x.dtype).eps
    return old + old @ (y - x) @ torch.linalg.pinv(x, rtol=max(tolerance, floor))


class Reached(Exception):
    """The pass is where it was to end."""


class States(textbook.Encoder):
    """What the levels of a text encoder read of one prompt, rows (77, d) each: level i is text layer i, the last one the
    cross-attention. Every call begins with the tokens. The weights can be written."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(folder)
        self.model.to(dtype)
        self.layers: Any = getattr(self.model, "text_model", self.model).encoder.layers
        self.depth, self.dtype = len(self.layers), dtype

    def levels(self, prompt: str, last: int | None = None) -> list[Tensor]:
        """The rows at every level up to `last`, beyond which nothing is computed."""
        seen: list[Tensor] = []

        def listen(module: Any, inputs: Any, output: Tensor) -> None:
            seen.append(output[0])
            if len(seen) - 1 == last:
                raise Reached

        handles = [layer.layer_norm1.register_forward_hook(listen) for layer in self.layers]
        try:
            seen.append(self(prompt))
        except Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def projections(self, layer: int) -> dict[str, Any]:
        """The modules that ErasePro edits in a layer, by the names that an edit has for them."""
        block = self.layers[layer].self_attn
        return {f"encoder.layers.{layer}.self_attn.{role}": getattr(block, role) for role in ROLES}

    def weights(self) -> textbook.Weights:
        """Copies of all the weights that ErasePro edits, by name."""
        found = [pair for layer in range(self.depth) for pair in self.projections(layer).items()]
        return {name: module.weight.detach().clone() for name, module in found}

    def write(self, weights: textbook.Weights) -> None:
        """Puts weights in, those of the text encoder, by the same names."""
        for layer in range(self.depth):
            for name, module in self.projections(layer).items():
                if name in weights:
                    module.weight.data.copy_(weights[name])


@dataclass
class Walked:
    """What a loop took, and its result by name; `encode`: every pass over prompts, of both models."""

    encode: float = 0.0
    solve: float = 0.0
    weights: textbook.Weights = field(default_factory=dict)


def progressive(
    folder: Path, pairs: Sequence[Prompts], cross: textbook.Weights, *, tolerance: float, dtype: torch.dtype
) -> Walked:
    """The loop, from the first text layer to the matrices `cross`, in this precision."""
    original, edited, walked = States(folder, dtype), States(folder, dtype), Walked()
    original(""), edited("")  # the first call is slower
    started = time.perf_counter()
    wanted = {anchor: original.levels(anchor) for anchor in dict.fromkeys(anchor for _, anchor in pairs)}
    walked.encode += time.perf_counter() - started
    for level in range(edited.depth + 1):
        started = time.perf_counter()
        x = torch.cat([edited.levels(target, level)[level] for target, _ in pairs]).T
        y = torch.cat([wanted[anchor][level] for _, anchor in pairs]).T
        walked.encode += time.perf_counter() - started
        started = time.perf_counter()
        found = {name: erasepro(weight, x, y, tolerance) for name, weight in level_of(original, level, cross).items()}
        walked.solve += time.perf_counter() - started
        walked.weights |= found
        edited.write(found)
    return walked


def level_of(states: States, level: int, cross: textbook.Weights) -> textbook.Weights:
    """The original weights that a level's rows are read by, in the precision of the states."""
    if level == states.depth:
        return {name: weight.to(states.dtype) for name, weight in cross.items()}
    return {name: module.weight.detach() for name, module in states.projections(level).items()}
