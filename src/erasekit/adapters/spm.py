"""SPM's one-dimensional modules on a pipeline (arXiv 2312.16145), and the gate that opens them by the prompt.

    y = W x + s sum_i gamma_i (alpha / rank) u_i (v_i x)

x is what a layer reads, v_i (rank, in[, k, k]) and u_i (out, rank) the modules of target i, s the scale of applying, and
gamma_i in [0, 1] is found for each row of text that the U-Net reads (`Gate`), so a batch of different prompts is gated
sample by sample. Under the pipeline's classifier-free guidance both halves take the gamma of the conditional one.

An `Adapter` op holds the modules of all targets, stacked in order: `<module>.down` (n * rank, in[, k, k]) and
`<module>.up` (out, n * rank), and `features` (n, length, width), what the cross-attention reads for each target.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erasekit.adapters._gate import FEATURES, Gate
from erasekit.coded_ops import Adapter
from erasekit.errors import EditError
from erasekit.ops import LowRank

GATES = ("transport", "released", "off")
"""transport: the paper's. released: the released code's, where gamma scales both factors and modules mix. off: gamma = 1."""
CONFIG = ("rank", "alpha", "gate", "targets", "tokens")


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
        """Raises `EditError` for a damaged op, and where the U-Net does not have the layers, in these shapes."""
        self.places = _places(unet, op)
        self.rank = int(op.config["rank"])
        self.gates = torch.ones(1, len(op.config["targets"]))
        self.unet: Any = unet
        factor = scale * op.config["alpha"] / self.rank
        self.factors = {
            module: (op.weights[f"{module}.down"].float(), op.weights[f"{module}.up"].float() * factor)
            for module in self.places
        }
        self._cast: dict[str, tuple[Tensor, Tensor]] = {}
        self.mix = mixing(op)

    def hook(self) -> list[Any]:
        """Let the modules act; the handles that end it."""
        return [layer.register_forward_hook(partial(self._add, module)) for module, layer in self.places.items()]

    def _add(self, module: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        down, up = self._cast.get(module, self.factors[module])
        if (down.device, down.dtype) != (x.device, x.dtype):  # once, not at each step of sampling
            with torch.inference_mode(False), torch.no_grad():  # also where a later pass asks for gradients
                down, up = self._cast[module] = tuple(factor.to(x) for factor in self.factors[module])  # pyright: ignore
        gates = self.gates.repeat_interleave(self.rank, 1)
        return output + residual(layer, x, down, up, gates, self.mix).to(output)


def _places(unet: Any, op: Adapter) -> dict[str, nn.Module]:
    """The layers that the op has modules for, by name; all checked, the op too."""
    _check(op)
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
        # A loaded LoRA wraps its layers, and not in their own classes: the plain layer inside is the one to add to.
        found[module] = known.get(f"{module}.base_layer", known[module])
    return found


def _check(op: Adapter) -> None:
    """`EditError` naming what a damaged op lacks."""
    names = sorted({name.rpartition(".")[0] for name in op.weights if name != FEATURES})
    wanted = [FEATURES, *(f"{module}.{part}" for module in names for part in ("down", "up"))]
    lacks = [name for name in CONFIG if name not in op.config] + [name for name in wanted if name not in op.weights]
    if lacks or not names:
        raise EditError(f"{op.label} lacks {', '.join(lacks[:3]) or 'any module'}: its file is damaged, fit it again")


def modules(op: Adapter) -> list[str]:
    """The U-Net's modules that an op of this kind stands beside, sorted."""
    return sorted(name.removesuffix(".down") for name in op.weights if name.endswith(".down"))


def mixing(op: Adapter) -> Tensor | None:
    """Which u meets which v, (n * rank, n * rank), in the released composition: those of all targets; else None."""
    count = len(op.config["targets"])
    return torch.eye(op.config["rank"]).repeat(count, count) if op.config["gate"] == "released" else None


def ungated(op: Adapter) -> tuple[list[LowRank], str]:
    """The modules with gamma = 1 as low-rank differences, exact, and what is lost by that, in a line for a file ("" for
    an op without a gate). Raises `EditError` for a damaged op."""
    _check(op)
    factor, mix, ops = op.config["alpha"] / op.config["rank"], mixing(op), []
    for module in modules(op):
        up = op.weights[f"{module}.up"] * factor
        up = up if mix is None else up @ mix.to(up)
        ops.append(LowRank(op.component, module, up, op.weights[f"{module}.down"]))
    lost = "the gate by the prompt (facilitated transport, arXiv 2312.16145) is not in this file: gamma is 1 for every prompt"
    return ops, "" if op.config["gate"] == "off" else lost
