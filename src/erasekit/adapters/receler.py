"""Receler's erasers on a pipeline (arXiv 2311.17717): a small module beside each cross-attention of the U-Net.

    h  ->  h + s (U gelu(D h + b) + b')          D (r, d), b (r), U (d, r), b' (d), s the scale of applying

h (b, positions, d) is the cross-attention's output, before it is added to the block's stream. Several sets of erasers on
one model add up: each reads the plain h, whatever stands beside it, so their order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from erasekit.errors import EditError

PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")
"""D, b, U, b': the tensors of one eraser, in an edit each under `<path of the cross-attention>.<part>`."""
HALVES = ("both", "conditional")
Residual = Callable[[Tensor], Tensor]


def eraser(
    hidden: Float[Tensor, "b n d"],
    down: Float[Tensor, "r d"],
    bias: Float[Tensor, " r"],
    up: Float[Tensor, "d r"],
    shift: Float[Tensor, " d"],
) -> Float[Tensor, "b n d"]:
    """U gelu(D h + b) + b', computed in the dtype and on the device of h."""
    return linear(gelu(linear(hidden, down.to(hidden), bias.to(hidden))), up.to(hidden), shift.to(hidden))


def conditional(residual: Residual, guided: Callable[[], bool] = lambda: True) -> Residual:
    """The residual on the second half of a batch that `guided()` says holds both branches, the unconditional first."""

    def found(hidden: Tensor) -> Tensor:
        half = len(hidden) // 2
        if len(hidden) % 2 or not guided():
            return residual(hidden)
        return torch.cat([torch.zeros_like(hidden[:half]), residual(hidden[half:])])

    return found


class _Sum:
    """The one hook on a module's output: the plain output plus the residuals that stand there, each of the plain one."""

    def __init__(self, module: nn.Module) -> None:
        self.residuals: list[Residual] = []
        self._handle = module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        found = [residual(output) for residual in self.residuals]
        return sum(found, start=output)

    def drop(self, residual: Residual) -> bool:
        """Take one off; whether none is left, and the hook is gone with it."""
        self.residuals.remove(residual)
        if not self.residuals:
            self._handle.remove()
        return not self.residuals


_sums: WeakKeyDictionary[nn.Module, _Sum] = WeakKeyDictionary()


def put(module: nn.Module, residual: Residual) -> Callable[[], None]:
    """Add `residual(h)` to what the module puts out until the returned function is called, in any order with others."""
    if module not in _sums:
        _sums[module] = _Sum(module)
    _sums[module].residuals.append(residual)

    def remove() -> None:
        if _sums[module].drop(residual):
            del _sums[module]

    return remove


def attach(pipe: Any, op: Any, scale: float) -> Callable[[], None]:
    """Put the erasers of an `Adapter` op on the pipeline's U-Net; what is returned takes them off.

    With `halves` "conditional" they act on the second half of the batch wherever the pipeline's last call is (or was)
    one with classifier-free guidance. Raises `EditError` for a model without the blocks, or of other widths.
    """
    modules = _modules(pipe, op)
    halves = op.config.get("halves", "both")
    if halves not in HALVES:
        raise EditError(
            f"{op.label} acts on halves {halves!r}, unknown here (known: {', '.join(HALVES)}): update erasekit"
        )
    live = ref(pipe)  # a strong reference would keep the pipeline alive through its own hooks
    residuals = [_scaled([op.weights[f"{path}.{part}"] for part in PARTS], modules[path], scale) for path in modules]
    if halves == "conditional":
        guided = lambda: bool(getattr(live(), "do_classifier_free_guidance", False))  # noqa: E731
        residuals = [conditional(residual, guided) for residual in residuals]
    removers: list[Callable[[], None]] = []

    def detach() -> None:
        for remove in removers:
            remove()

    try:
        for module, residual in zip(modules.values(), residuals, strict=True):
            removers.append(put(module, residual))
    except BaseException:  # also Ctrl-C: they are put on whole or not at all
        detach()
        raise
    return detach


def _scaled(tensors: list[Tensor], module: nn.Module, scale: float) -> Residual:
    weight = next(module.parameters())
    own = [tensor.to(weight.device, weight.dtype) for tensor in tensors]  # once, not at each step of sampling
    return lambda hidden: scale * eraser(hidden, *own)


def _modules(pipe: Any, op: Any) -> dict[str, nn.Module]:
    """The cross-attentions that the op has erasers for, each checked to be as wide as its eraser."""
    unet = getattr(pipe, op.component, None)
    known = dict(unet.named_modules()) if isinstance(unet, nn.Module) else {}
    found: dict[str, nn.Module] = {}
    for path in sorted({name.rsplit(".", 2)[0] for name in op.weights}):
        if path not in known:
            raise EditError(
                f"the model has no {op.component}/{path}, where {op.label} puts an eraser: use its own base model"
            )
        _check(op, path, known[path])
        found[path] = known[path]
    if not found:
        raise EditError(f"{op.label} holds no eraser: fit the edit again")
    return found


def _check(op: Any, path: str, module: Any) -> None:
    tensors = [op.weights.get(f"{path}.{part}") for part in PARTS]
    if any(tensor is None for tensor in tensors):
        raise EditError(f"{op.label} has no whole eraser for {path}: it takes {', '.join(PARTS)}; fit the edit again")
    width, rank = module.to_out[0].weight.shape[0], len(tensors[1])
    if [tuple(tensor.shape) for tensor in tensors] != [(rank, width), (rank,), (width, rank), (width,)]:
        raise EditError(f"{op.label} has an eraser for {path} of another width than the model's {width}: "
                        "use the base model that the edit was made for")  # fmt: skip
