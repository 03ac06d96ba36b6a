"""A CLIP text encoder walked layer by layer, straight from its weights.

Equal to transformers' `CLIPTextModel` without an attention mask (what SD pipelines call), but open between the
layers: hidden states are carried from layer to layer while the edit of each layer is being solved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erasekit.backbones._weights import Weights
from erasekit.backbones.base import Tokens
from erasekit.errors import ModelError

ROLES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda x: (1.702 * x).sigmoid_().mul_(x),
    "gelu": F.gelu,
}
LAYER = {  # module of a layer -> the shape of its weight: the encoder's width (w) and its MLP's (m)
    "layer_norm1": "w", "layer_norm2": "w", "mlp.fc1": "mw", "mlp.fc2": "wm",
    **{f"self_attn.{name}": "ww" for name in ROLES.values()},
}  # fmt: skip
ROWS = 3080  # positions at a time: bounds the memory of the MLP's hidden layer, and is enough for fast products
WORTH = 0.9  # fewer different positions than this fraction are computed apart: copying them out costs something too


class Shared:
    """Which positions of n prompts stand for others: (n, length, width) <-> the different rows (m, width).

    A position that equals the same position of the prompt before, and so do all before it, has the same keys and
    values to attend to (causal): what a layer makes of it is the same, and is computed once. Prompts with a common
    beginning, side by side, share it; all share BOS.
    """

    def __init__(self, hidden: Tensor) -> None:
        self.shape = hidden.shape[:2]
        same = torch.zeros(self.shape, dtype=torch.long, device=hidden.device)
        same[1:] = (hidden[1:] == hidden[:-1]).all(2).long().cumprod(1)
        first = (same == 0).flatten()
        self.rows: Tensor | None = None  # numbers of the different ones
        if int(first.sum()) < WORTH * len(first):
            self.rows = first.nonzero()[:, 0]
            prompts = torch.arange(len(hidden), device=hidden.device)[:, None]
            owner = (prompts * (1 - same)).cummax(0).values
            self.numbers = (first.cumsum(0) - 1).view(self.shape).gather(0, owner).flatten()

    def once(self, x: Tensor) -> Tensor:
        """The different rows."""
        flat = x.flatten(0, 1)
        return flat if self.rows is None else flat[self.rows]

    def everywhere(self, rows: Tensor) -> Tensor:
        """The rows at every position that they stand for."""
        return (rows if self.rows is None else rows[self.numbers]).unflatten(0, self.shape)


class ClipTower:
    """The walk over one encoder; computes in the weights' dtype, at float32 at least. Changes nothing."""

    def __init__(self, weights: Weights, config: dict[str, Any]) -> None:
        """`config`: the encoder's config.json; values it leaves out are CLIPTextConfig's defaults."""
        self.weights = weights
        self.depth = int(config.get("num_hidden_layers", 12))
        self.heads = int(config.get("num_attention_heads", 8))
        self.eps = float(config.get("layer_norm_eps", 1e-5))
        name = config.get("hidden_act", "quick_gelu")
        if name not in ACTIVATIONS:
            raise ModelError(f"the text encoder's activation {name} is not supported: use {' or '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[name]
        self.width = _check_shapes(weights, self.depth, self.heads)
        stored = weights.get("final_layer_norm.weight").dtype
        self.dtype = torch.promote_types(stored, torch.float32)

    @torch.no_grad()
    def embed(self, tokens: Tokens) -> Tensor:
        """The hidden states that enter layer 0."""
        table = self.weights.get("embeddings.token_embedding.weight")
        positions = self._get("embeddings.position_embedding.weight")
        ids = tokens.ids.to(table.device)
        return table[ids].to(self.dtype) + positions[: ids.shape[1]]

    @torch.no_grad()
    def attention_input(self, hidden: Tensor, layer: int) -> Tensor:
        """What q, k and v of `layer` read."""
        return self._norm(hidden, f"encoder.layers.{layer}.layer_norm1")

    @torch.no_grad()
    def context(self, hidden: Tensor, layer: int, deltas: dict[str, Tensor] | None = None) -> Tensor:
        """What the attention's output projection of `layer` reads."""
        shared = Shared(hidden)
        return self._context(shared.once(hidden), shared, layer, deltas)

    @torch.no_grad()
    def layer(self, hidden: Tensor, layer: int, deltas: dict[str, Tensor] | None = None) -> Tensor:
        """The hidden states after `layer` with `deltas` (role -> (out, in)) added to its weights."""
        after = hidden.clone()
        self.advance(after, layer, deltas)
        return after

    @torch.no_grad()
    def advance(self, hidden: Tensor, layer: int, deltas: dict[str, Tensor] | None = None) -> None:
        """The same in place: `hidden` becomes the states after `layer`, a few prompts at a time, with no second copy of all."""
        for part in hidden.split(max(1, ROWS // hidden.shape[1])):
            part.copy_(self._layer(part, layer, deltas))

    @torch.no_grad()
    def output(self, hidden: Tensor) -> Tensor:
        """What the cross-attention reads: the final layer norm of the last layer's hidden states."""
        return self._norm(hidden, "final_layer_norm")

    @torch.no_grad()
    def features(self, tokens: Tokens) -> Tensor:
        """`output` after all layers as they are. Between the layers only the different rows are carried."""
        parts = tokens.ids.split(max(1, ROWS // tokens.ids.shape[1]))
        return torch.cat([self._features(Tokens(part, ())) for part in parts])

    def _features(self, tokens: Tokens) -> Tensor:
        hidden = self.embed(tokens)
        shared = Shared(hidden)
        rows = shared.once(hidden)
        for layer in range(self.depth):
            rows = self._rows(rows, shared, layer, None)
        return shared.everywhere(self.output(rows))

    def _layer(self, hidden: Tensor, layer: int, deltas: dict[str, Tensor] | None) -> Tensor:
        shared = Shared(hidden)
        return shared.everywhere(self._rows(shared.once(hidden), shared, layer, deltas))

    def _rows(self, rows: Tensor, shared: Shared, layer: int, deltas: dict[str, Tensor] | None) -> Tensor:
        name = f"encoder.layers.{layer}"
        mixed = shared.once(self._context(rows, shared, layer, deltas))
        rows = rows + self._project(mixed, layer, "out", deltas)
        inner = self._linear(self._norm(rows, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        return rows + self._linear(self.activation(inner), f"{name}.mlp.fc2")

    def _context(self, rows: Tensor, shared: Shared, layer: int, deltas: dict[str, Tensor] | None) -> Tensor:
        inputs = self.attention_input(rows, layer)
        q, k, v = (self._split(shared.everywhere(self._project(inputs, layer, role, deltas))) for role in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)

    def _project(self, inputs: Tensor, layer: int, role: str, deltas: dict[str, Tensor] | None) -> Tensor:
        delta = (deltas or {}).get(role)
        return self._linear(inputs, f"encoder.layers.{layer}.self_attn.{ROLES[role]}", delta)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def _linear(self, inputs: Tensor, module: str, delta: Tensor | None = None) -> Tensor:
        weight = self._get(f"{module}.weight")
        if delta is not None:
            weight = weight + delta.to(weight.device, weight.dtype)
        return F.linear(inputs, weight, self._get(f"{module}.bias"))

    def _norm(self, hidden: Tensor, module: str) -> Tensor:
        weight, bias = self._get(f"{module}.weight"), self._get(f"{module}.bias")
        return F.layer_norm(hidden, hidden.shape[-1:], weight, bias, self.eps)

    def _get(self, name: str) -> Tensor:
        return self.weights.get(name).to(self.dtype)


def _check_shapes(weights: Weights, depth: int, heads: int) -> int:
    """The encoder's width, which all its weights must fit; else `ModelError` names the one that does not."""
    (width,) = weights.require("final_layer_norm.weight", (None,))
    for table in ("token_embedding", "position_embedding"):
        weights.require(f"embeddings.{table}.weight", (None, width))
    if width % heads:
        raise ModelError(f"the text encoder's config.json has {heads} attention heads, which do not divide its width of "
                         f"{width}: fetch the model's files again")  # fmt: skip
    for layer in range(depth):
        name = f"encoder.layers.{layer}"
        sides = {"w": width, "m": weights.require(f"{name}.mlp.fc1.weight", (None, width))[0]}
        for module, shape in LAYER.items():
            weights.require(f"{name}.{module}.weight", tuple(sides[side] for side in shape))
            weights.require(f"{name}.{module}.bias", (sides[shape[0]],))
    return width
