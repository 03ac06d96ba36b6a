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
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
}
CHUNK = 16  # prompts at a time: bounds the memory of the MLP's hidden layer


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
        inputs = self.attention_input(hidden, layer)
        q, k, v = (self._split(self._project(inputs, layer, role, deltas)) for role in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(hidden.shape)

    @torch.no_grad()
    def layer(self, hidden: Tensor, layer: int, deltas: dict[str, Tensor] | None = None) -> Tensor:
        """The hidden states after `layer` with `deltas` (role -> (out, in)) added to its weights."""
        return torch.cat([self._layer(part, layer, deltas) for part in hidden.split(CHUNK)])

    @torch.no_grad()
    def output(self, hidden: Tensor) -> Tensor:
        """What the cross-attention reads: the final layer norm of the last layer's hidden states."""
        return self._norm(hidden, "final_layer_norm")

    def _layer(self, hidden: Tensor, layer: int, deltas: dict[str, Tensor] | None) -> Tensor:
        name = f"encoder.layers.{layer}"
        hidden = hidden + self._project(self.context(hidden, layer, deltas), layer, "out", deltas)
        inner = self._linear(self._norm(hidden, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        return hidden + self._linear(self.activation(inner), f"{name}.mlp.fc2")

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
