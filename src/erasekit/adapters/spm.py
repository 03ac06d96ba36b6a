"""SPM's one-dimensional modules on a pipeline (arXiv 2312.16145), and the gate that opens them by the prompt.

    y = W x + s sum_i gamma_i (alpha / rank) u_i (v_i x)

x is what a layer reads, v_i (rank, in[, k, k]) and u_i (out, rank) the modules of target i, s the scale of applying, and
gamma_i in [0, 1] is found for each row of text that the U-Net reads (`Gate`), so a batch of different prompts is gated
sample by sample. Under the pipeline's classifier-free guidance both halves take the gamma of the conditional one.

An `Adapter` op holds the modules of all targets, stacked in order: `<module>.down` (n * rank, in[, k, k]) and
`<module>.up` (out, n * rank), and `features` (n, length, width), what the cross-attention reads for each target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from erasekit.coded_ops import Adapter
from erasekit.errors import EditError
from erasekit.fingerprint import digest
from erasekit.ops import LowRank

GATES = ("transport", "released", "off")
"""transport: the paper's. released: the released code's, where gamma scales both factors and modules mix. off: gamma = 1."""
FEATURES = "features"
REMEMBERED = 4096  # rows of text whose tokens are known, the latest ones


def attach(pipe: Any, op: Adapter, scale: float) -> Callable[[], None]:
    """Put the modules and their gate on the pipeline; what is returned takes all of it off, in any order with others.

    Raises `EditError` for a model without the modules, or with others of their names, and for an unknown gate.
    """
    _, handles = put(pipe, op, scale)

    def detach() -> None:
        for handle in handles:
            handle.remove()

    return detach


def put(pipe: Any, op: Adapter, scale: float = 1.0) -> tuple[Stack, list[Any]]:
    """The modules as they stand on the pipeline, and the handles that take them and their gate off."""
    stack = Stack(getattr(pipe, op.component, None), op, scale=scale)
    gate = None if op.config["gate"] == "off" else Gate(pipe, op, stack)
    handles = stack.hook()
    if gate is not None:
        handles.append(stack.unet.register_forward_pre_hook(gate.before, with_kwargs=True))
        if isinstance(encoder := getattr(pipe, "text_encoder", None), nn.Module):
            handles.append(encoder.register_forward_hook(gate.remember, with_kwargs=True))
    return stack, handles


# -- the modules ----------------------------------------------------------------------------------------------------


def residual(
    layer: nn.Module, x: Tensor, down: Tensor, up: Tensor, gates: Tensor | None = None, mix: Tensor | None = None
) -> Tensor:
    """sum_i gamma_i u_i (v_i x) in the dtype of x: what the modules add to the output of a linear layer or convolution.

    x: (b, ..., in) or (b, in, h, w); down (r, in[, k, k]); up (out, r); gates (b or 1, r), None for ones. With `mix`
    (r, r) it is the released composition, sum_ij gamma_i gamma_j mix_ij u_i (v_j x).
    """
    down, up = down.to(x), up.to(x)
    if isinstance(layer, nn.Conv2d):
        hidden = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)  # pyright: ignore
        shape = (-1, down.shape[0], 1, 1)
    else:
        hidden, shape = F.linear(x, down), (-1, *[1] * (x.ndim - 2), down.shape[0])
    if gates is not None:
        gates = gates.to(x).reshape(shape)
        hidden = hidden * gates
        if mix is not None:
            hidden = _across(layer, hidden, mix.to(x)) * gates
    return _across(layer, hidden, up)


def _across(layer: nn.Module, hidden: Tensor, matrix: Tensor) -> Tensor:
    """The matrix on the channels, at every position alike."""
    return F.conv2d(hidden, matrix[:, :, None, None]) if isinstance(layer, nn.Conv2d) else F.linear(hidden, matrix)


class Stack:
    """The modules of an op beside one U-Net. `gates` (b or 1, n) are the gammas that they act with: ones at first."""

    def __init__(self, unet: Any, op: Adapter, *, scale: float = 1.0) -> None:
        """Raises `EditError` where the U-Net does not have the layers, in these shapes."""
        self.rank = int(op.config["rank"])
        self.gates = torch.ones(1, len(op.config["targets"]))
        self.unet: Any = unet
        self.places = _places(unet, op)
        factor = scale * op.config["alpha"] / self.rank
        self.factors = {
            module: (op.weights[f"{module}.down"].float(), op.weights[f"{module}.up"].float() * factor)
            for module in self.places
        }
        self._cast: dict[str, tuple[Tensor, Tensor]] = {}
        self.mix: Tensor | None = None
        if op.config["gate"] == "released":
            self.mix = torch.eye(self.rank).repeat(self.gates.shape[1], self.gates.shape[1])

    def hook(self) -> list[Any]:
        """Let the modules act; the handles that end it."""
        return [layer.register_forward_hook(partial(self._add, module)) for module, layer in self.places.items()]

    def _add(self, module: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        down, up = self._cast.get(module, self.factors[module])
        if (down.device, down.dtype) != (x.device, x.dtype):  # once, not at each step of sampling
            down, up = self._cast[module] = tuple(factor.to(x) for factor in self.factors[module])  # pyright: ignore
        gates = self.gates.repeat_interleave(self.rank, 1)
        return output + residual(layer, x, down, up, gates, self.mix).to(output)


def _places(unet: Any, op: Adapter) -> dict[str, nn.Module]:
    """The layers that the op has modules for, by name; all checked."""
    if op.config["gate"] not in GATES:
        raise EditError(f"{op.label} has the gate {op.config['gate']!r}, unknown here (known: {', '.join(GATES)}): "
                        "update erasekit")  # fmt: skip
    known = dict(unet.named_modules()) if isinstance(unet, nn.Module) else {}
    found: dict[str, nn.Module] = {}
    for module in modules(op):
        weight = getattr(known.get(module), "weight", None)
        down, up = op.weights[f"{module}.down"], op.weights[f"{module}.up"]
        if not isinstance(weight, Tensor) or tuple(weight.shape) != (up.shape[0], *down.shape[1:]):
            raise EditError(f"the model has no {op.component}/{module} of shape {(up.shape[0], *down.shape[1:])}, which "
                            f"{op.label} stands beside: use a model of the edit's own shapes")  # fmt: skip
        found[module] = known[module]
    return found


def modules(op: Adapter) -> list[str]:
    """The U-Net's modules that an op of this kind stands beside, sorted."""
    return sorted(name.removesuffix(".down") for name in op.weights if name.endswith(".down"))


def ungated(op: Adapter) -> tuple[list[LowRank], str]:
    """The modules with gamma = 1 as low-rank differences, exact, and what is lost by that, in a line for a file ("" for
    an op without a gate)."""
    factor = op.config["alpha"] / op.config["rank"]
    ops = [
        LowRank(op.component, module, op.weights[f"{module}.up"] * factor, op.weights[f"{module}.down"])
        for module in modules(op)
    ]
    lost = "the gate by the prompt (facilitated transport, arXiv 2312.16145) is not in this file: gamma is 1 for every prompt"
    return ops, "" if op.config["gate"] == "off" else lost


# -- the gate -------------------------------------------------------------------------------------------------------


def similarity(text: Float[Tensor, "b length width"], features: Float[Tensor, "n span width"]) -> Float[Tensor, "b n"]:
    """The cosine of the flattened features of each row with each target's, float32; of a text of several spans (long
    prompts) the largest."""
    rows = text.detach().float().unflatten(1, (-1, features.shape[1])).flatten(2)
    own = F.normalize(features.to(rows).flatten(1), dim=-1)
    return (F.normalize(rows, dim=-1) @ own.T).amax(1)


def overlap(found: Sequence[frozenset[int]], targets: Sequence[frozenset[int]]) -> Float[Tensor, "b n"]:
    """The share of each target's tokens that each prompt has, whatever their order; 0 for a target without tokens."""
    return torch.tensor([[len(row & own) / max(len(own), 1) for own in targets] for row in found])


def permeability(
    text: Tensor, features: Tensor, found: Sequence[frozenset[int]], tokens: Sequence[Sequence[int]]
) -> Tensor:
    """gamma (b, n): the larger of similarity and overlap, in [0, 1]. `found`: the tokens of each row, empty if unknown."""
    shared = overlap(found, [frozenset(own) for own in tokens]).to(text.device)
    return torch.maximum(similarity(text, features), shared).clamp(0, 1)


@dataclass(frozen=True)
class _Seen:
    """The text that the gates were last found for."""

    text: ref[Tensor]
    version: int
    guided: bool


class Gate:
    """Sets the gammas of a stack before each pass of the U-Net, from the text that it is given.

    A row that the pipeline's text encoder has put out while the gate is on is known by its tokens too; any other (given
    as `prompt_embeds` from elsewhere, or taken with `clip_skip`) by the cosine alone. No gradient flows through gamma.
    """

    def __init__(self, pipe: Any, op: Adapter, stack: Stack) -> None:
        self.pipe, self.stack, self.label = ref(pipe), stack, op.label
        self.features = op.weights[FEATURES].float()
        self.tokens: list[list[int]] = op.config["tokens"]
        self._rows: dict[str, frozenset[int]] = {}
        self._seen: _Seen | None = None

    @torch.no_grad()
    def remember(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the text encoder: which tokens gave which rows."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            return
        for tokens, row in zip(ids.tolist(), output[0], strict=True):
            key = self._key(row)
            self._rows.pop(key, None)  # the latest are last
            self._rows[key] = frozenset(tokens)
        for key in list(self._rows)[:-REMEMBERED]:
            del self._rows[key]
        self._seen = None

    @torch.no_grad()
    def before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the U-Net: the gammas of its rows, found anew for another text only."""
        text = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        if not isinstance(text, Tensor):
            return
        guided = bool(getattr(self.pipe(), "do_classifier_free_guidance", False))
        version = -1 if text.is_inference() else text._version
        seen = self._seen
        if seen and seen.text() is text and seen.version == version >= 0 and seen.guided == guided:
            return
        gates = self.gammas(text)
        if guided and _halves(kwargs.get("sample", args[0] if args else None)):
            gates = gates.chunk(2)[1].repeat(2, 1)
        self.stack.gates, self._seen = gates, _Seen(ref(text), version, guided)

    def gammas(self, text: Tensor) -> Tensor:
        """gamma (b, n) of each row of text (b, length, width)."""
        if text.shape[1] % self.features.shape[1] or text.shape[2] != self.features.shape[2]:
            raise EditError(f"{self.label} is gated by text of shape {(*self.features.shape[1:],)}, the model is given "
                            f"{(*text.shape[1:],)}: pad the prompt's features, or fit the edit with gate=off")  # fmt: skip
        if self.features.device != text.device:
            self.features = self.features.to(text.device)
        found = (
            [self._rows.get(self._key(row), frozenset()) for row in text] if self._rows else [frozenset()] * len(text)
        )
        return permeability(text, self.features, found, self.tokens)

    def _key(self, row: Tensor) -> str:
        """One word for a row of text, as the U-Net is given it."""
        return digest(row.to(self.stack.unet.dtype))


def _halves(latents: Any) -> bool:
    """Whether the batch is the same latents twice, as a guided pipeline gives them."""
    return isinstance(latents, Tensor) and len(latents) % 2 == 0 and torch.equal(*latents.chunk(2))
