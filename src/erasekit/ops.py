# ruff: noqa: D102 - what the kinds override is documented once, in Op and LinearOp.
"""The pieces of an edit that change weights, and what all pieces share: values made of tensors and names.

The linear kinds (`LowRank`, `Dense`, `Projection`) change one module's weight; their deltas add up. The kinds that
need code are in `coded_ops`. Modules are named as in the pipeline's component; a text encoder's
`text_model.` prefix, which only some versions of transformers have, does not matter anywhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasekit.errors import EditError


def plain_module(component: str, module: str) -> str:
    """The module's name without `text_model.`, where `component` is a text encoder."""
    return module.removeprefix("text_model.") if component.startswith("text_encoder") else module


def set_fields(op: Op, **values: object) -> None:
    """Fill a frozen op whose constructor names its arguments otherwise than its fields."""
    for name, value in values.items():
        object.__setattr__(op, name, value)


class Op(ABC):
    """What all kinds share: a `kind` word, named tensors, and a label for messages."""

    kind: ClassVar[str]
    component: str
    module: str

    @property
    def site(self) -> str:
        """`component/module` without `text_model.`: the key of fingerprints, and how messages name the op."""
        return f"{self.component}/{plain_module(self.component, self.module)}"

    @property
    def label(self) -> str:
        return f"the {self.kind} op on {self.site}"

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The op's tensors by name: what a file holds as `ops.<i>.<name>`."""

    def settings(self) -> dict[str, Any]:
        """What a file holds of the op besides its tensors."""
        return {"kind": self.kind, "component": self.component, "module": self.module}

    def describe(self) -> dict[str, Any]:
        """`settings` and the shape of each tensor."""
        return self.settings() | {"shapes": {name: list(tensor.shape) for name, tensor in self.tensors().items()}}

    def _finite(self) -> None:
        for name, tensor in self.tensors().items():
            if not tensor.is_floating_point() or not _is_finite(tensor):
                raise EditError(f"{self.label} has a value in {name!r} that is not a finite number: fit the edit again")


def _is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. A finite sum shows it in one pass; only an overflow needs a second one."""
    return math.isfinite(float(tensor.detach().sum())) or bool(torch.isfinite(tensor).all())


class LinearOp(Op):
    """A change of one module's weight (and perhaps bias) that is added to it."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """An upper bound of the delta's rank."""

    @abstractmethod
    def check(self, weight: Tensor, bias: Tensor | None) -> None:
        """Raise `EditError` if the op does not fit a module of these shapes."""

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """What is added to the original `weight`: its shape, float32 (float64 for a float64 weight)."""

    def bias_delta(self) -> Tensor | None:
        """What is added to the module's bias, or None."""
        return None

    @abstractmethod
    def scaled(self, factor: float) -> LinearOp:
        """The op whose delta is `factor` times this one's."""

    def _expect(self, found: tuple[int, ...], wanted: tuple[int, ...], part: str = "weight") -> None:
        if found != wanted:
            raise EditError(
                f"{self.label} is for a {part} of shape {wanted}, the model's is {found}: "
                "use the base model that the edit was made for"
            )

    def _expect_bias(self, own: Tensor | None, bias: Tensor | None) -> None:
        """Refuse a module without a bias, or with another, where the op changes one (`own`)."""
        if own is not None and bias is None:
            raise EditError(f"{self.label} changes a bias, and the model's module has none: use the edit's own base")
        if own is not None and bias is not None:
            self._expect((*bias.shape,), (*own.shape,), "bias")


def _like(tensor: Tensor, weight: Tensor) -> Tensor:
    """On the weight's device, in the dtype that deltas are computed in."""
    return tensor.to(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class LowRank(LinearOp):
    """Adds `up @ down`: up (out, r), down (r, in), or (r, in, k, k) for a convolution."""

    component: str
    module: str
    up: Tensor
    down: Tensor
    kind: ClassVar[str] = "low_rank"

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim < 2 or self.up.shape[1] != self.down.shape[0]:
            raise EditError(
                f"{self.label} needs up (out, r) and down (r, in): got {(*self.up.shape,)} and {(*self.down.shape,)}"
            )
        self._finite()

    @property
    def rank(self) -> int:
        return min(self.up.shape[1], self.up.shape[0], math.prod(self.down.shape[1:]))

    def tensors(self) -> dict[str, Tensor]:
        return {"up": self.up, "down": self.down}

    def check(self, weight: Tensor, bias: Tensor | None) -> None:
        self._expect((*weight.shape,), (self.up.shape[0], *self.down.shape[1:]))

    def delta(self, weight: Tensor) -> Tensor:
        self.check(weight, None)
        return (_like(self.up, weight) @ _like(self.down, weight).flatten(1)).reshape(weight.shape)

    def scaled(self, factor: float) -> LowRank:
        return LowRank(self.component, self.module, self.up * factor, self.down)


@dataclass(frozen=True, eq=False, init=False)
class Dense(LinearOp):
    """Adds a tensor of the weight's own shape (the argument `delta`, kept as `difference`), and `bias` to the bias."""

    component: str
    module: str
    difference: Tensor
    bias: Tensor | None
    kind: ClassVar[str] = "dense"

    def __init__(self, component: str, module: str, delta: Tensor, bias: Tensor | None = None) -> None:
        set_fields(self, component=component, module=module, difference=delta, bias=bias)
        self._finite()

    @property
    def rank(self) -> int:
        shape = self.difference.shape
        return min(shape[0], math.prod(shape[1:])) if shape else 1

    def tensors(self) -> dict[str, Tensor]:
        return {"delta": self.difference} | ({} if self.bias is None else {"bias": self.bias})

    def check(self, weight: Tensor, bias: Tensor | None) -> None:
        self._expect((*weight.shape,), (*self.difference.shape,))
        self._expect_bias(self.bias, bias)

    def delta(self, weight: Tensor) -> Tensor:
        self._expect((*weight.shape,), (*self.difference.shape,))
        return _like(self.difference, weight)

    def bias_delta(self) -> Tensor | None:
        return self.bias

    def scaled(self, factor: float) -> Dense:
        bias = None if self.bias is None else self.bias * factor
        return Dense(self.component, self.module, self.difference * factor, bias)


@dataclass(frozen=True, eq=False)
class Projection(LinearOp):
    """Turns the weight W (out, in) into `left @ W @ right` and adds `bias`: left (out, out), right (in, in),
    bias (out,); None is the identity, or no bias."""

    component: str
    module: str
    left: Tensor | None = None
    right: Tensor | None = None
    bias: Tensor | None = None
    kind: ClassVar[str] = "projection"

    def __post_init__(self) -> None:
        if self.left is None and self.right is None and self.bias is None:
            raise EditError(f"{self.label} is empty: give left, right or bias")
        for side in (self.left, self.right):
            if side is not None and (side.ndim != 2 or side.shape[0] != side.shape[1]):
                raise EditError(f"{self.label} needs square matrices: got {(*side.shape,)}")
        self._finite()

    @property
    def rank(self) -> int:
        return min((side.shape[0] for side in (self.left, self.right) if side is not None), default=0)

    def tensors(self) -> dict[str, Tensor]:
        named = {"left": self.left, "right": self.right, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def check(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.ndim != 2:
            raise EditError(f"{self.label} is for a matrix, the model's weight has shape {(*weight.shape,)}: "
                            "use the base model that the edit was made for")  # fmt: skip
        out, width = weight.shape
        self._expect((out, width), (self._size(self.left, out), self._size(self.right, width)))
        self._expect_bias(self.bias, bias)

    def delta(self, weight: Tensor) -> Tensor:
        original = _like(weight, weight)
        changed = original if self.left is None else _like(self.left, weight) @ original
        return (changed if self.right is None else changed @ _like(self.right, weight)) - original

    def bias_delta(self) -> Tensor | None:
        return self.bias

    def scaled(self, factor: float) -> Projection:
        if self.left is not None and self.right is not None:
            raise EditError(f"{self.label} has two sides and cannot be scaled as a value: apply it with scale={factor}")
        left, right = (self._toward_identity(side, factor) for side in (self.left, self.right))
        return Projection(self.component, self.module, left, right, None if self.bias is None else self.bias * factor)

    @staticmethod
    def _size(side: Tensor | None, own: int) -> int:
        return own if side is None else side.shape[0]

    @staticmethod
    def _toward_identity(side: Tensor | None, factor: float) -> Tensor | None:
        """W + f (L W - W) = ((1 - f) I + f L) W."""
        if side is None:
            return None
        return (1 - factor) * torch.eye(side.shape[0], dtype=side.dtype, device=side.device) + factor * side
