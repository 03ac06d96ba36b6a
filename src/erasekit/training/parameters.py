"""Which parameters of a U-Net are trained, by name, and how they live beside the frozen model.

Teacher and student are one module: `Student` holds float32 copies of the chosen tensors alone and puts them in while
it is active. Everything else is shared, so no method ever holds two denoisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from erasekit.errors import ModelError

Choice = Callable[[str, nn.Module], bool]
"""(the parameter's full name, the module that owns it) -> whether it is trained."""


def _cross(name: str, owner: nn.Module) -> bool:
    return ".attn2." in name


def _self(name: str, owner: nn.Module) -> bool:
    return ".attn1." in name


def _projection(name: str, owner: nn.Module) -> bool:
    return name.rpartition(".")[0].endswith(("to_q", "to_k", "to_v", "to_out.0"))


def _outside(name: str, owner: nn.Module) -> bool:
    """As ESD's first code: the shared time MLP and the output head stay, norms and resnets' time projections move."""
    return not _cross(name, owner) and not name.startswith(("time_embedding.", "conv_norm_out.", "conv_out."))


def _outside_linear(name: str, owner: nn.Module) -> bool:
    """As ESD's diffusers code: linear layers and convolutions, wherever they stand."""
    return not _cross(name, owner) and isinstance(owner, (nn.Linear, nn.Conv2d))


CHOICES: dict[str, Choice] = {
    "cross": _cross,
    "cross.kv": lambda name, owner: _cross(name, owner) and name.endswith(("to_k.weight", "to_v.weight")),
    "self": _self,
    "attention": lambda name, owner: (_cross(name, owner) or _self(name, owner)) and _projection(name, owner),
    "outside-cross": _outside,
    "outside-cross.linear": _outside_linear,
    "all": lambda name, owner: True,
}


def select(denoiser: nn.Module, choice: str) -> list[str]:
    """The names of the chosen parameters, sorted; `ModelError` where the denoiser has none."""
    wanted = CHOICES[choice]
    owners = ((f"{path}.{leaf}".lstrip("."), owner) for path, owner in denoiser.named_modules()
              for leaf, _ in owner.named_parameters(recurse=False))  # fmt: skip
    names = sorted(name for name, owner in owners if wanted(name, owner))
    if not names:
        raise ModelError(f"the denoiser has no parameters {choice!r}: choose another variant, or another model")
    return names


class Trained(Protocol):
    """What a run trains, whatever its shape: weights in place (`Student`), or tensors that a method puts beside them."""

    trained: dict[str, Tensor]
    """Float32 leaves that require gradients, by name."""

    @property
    def modules(self) -> list[str]:
        """The modules of the U-Net whose output they change, sorted: those whose weight the edit's base records."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """Inside, the U-Net computes with what is trained; outside it is the teacher, bit for bit."""
        ...


def weights(choice: str) -> Callable[[nn.Module], Student]:
    """What makes a `Student` of the chosen parameters of a denoiser."""
    return lambda denoiser: Student(denoiser, select(denoiser, choice))


class Student:
    """Trained float32 copies (`trained`, by name) of some tensors of a module, which is theirs while `active`."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        """Raises `ModelError` naming a tensor that cannot be trained: quantised, on no device, with NaN."""
        self.frozen: dict[str, nn.Parameter] = {name: module.get_parameter(name) for name in names}
        for name, tensor in self.frozen.items():
            require_trainable(name, tensor)
        owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in names}
        self._places = [(owners[name], name.rpartition(".")[2], name) for name in names]
        self.trained: dict[str, Tensor] = {
            name: tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True).requires_grad_()
            for name, tensor in self.frozen.items()
        }

    @property
    def modules(self) -> list[str]:
        """The modules that own what is trained, sorted."""
        return sorted({name.rpartition(".")[0] for name in self.trained})

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the module computes with the trained tensors (as it stores its own); after it, with its own again."""
        try:
            for owner, leaf, name in self._places:
                # Past nn.Module's registration, which takes parameters only: a cast copy is none.
                owner._parameters[leaf] = stored(self.trained[name], self.frozen[name].dtype)  # pyright: ignore
            yield
        finally:
            for owner, leaf, name in self._places:
                owner._parameters[leaf] = self.frozen[name]


def stored(trained: Tensor, dtype: torch.dtype) -> Tensor:
    """The trained tensor with the values that `dtype` can hold, and with its gradient: in that dtype, but for float16,
    in which gradients underflow: there in its own (autocast takes it to bfloat16 where it computes)."""
    if dtype != torch.float16:
        return trained.to(dtype)
    return trained + (trained.detach().to(dtype).to(trained.dtype) - trained.detach())  # exact: neighbours in float32


@contextmanager
def held(module: nn.Module, *, recompute: bool | None = None) -> Iterator[None]:
    """Inside, the module is in eval mode, none of its own tensors gathers gradients, and `recompute` says whether
    activations are computed again in the backward pass (None: as it is set); all three switches are put back afterwards,
    whatever happens."""
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    modes = [(part, part.training) for part in module.modules()]
    was = recompute is not None and bool(getattr(module, "is_gradient_checkpointing", False))
    switch = recompute is not None and recompute != was
    try:
        module.requires_grad_(False)
        module.eval()
        if switch:
            _recomputing(module, not was)
        yield
    finally:
        if switch:
            _recomputing(module, was)
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for part, mode in modes:
            part.training = mode


def _recomputing(module: Any, on: bool) -> None:
    (module.enable_gradient_checkpointing if on else module.disable_gradient_checkpointing)()


def require_trainable(name: str, tensor: Tensor) -> None:
    """Raises `ModelError` naming a tensor that cannot be trained, or trained beside: quantised, on no device, with NaN."""
    if tensor.is_meta or not tensor.is_floating_point():
        raise ModelError(f"unet/{name} is {tensor.dtype} on {tensor.device}: load the model unquantised to train it")
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"unet/{name} contains NaN or infinity: fetch the model's files again")
