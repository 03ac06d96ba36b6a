"""A second device without one: tensors that compute on the CPU, say that they are on `cuda`, and refuse to meet the CPU's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda")
DEVICE_OF = torch.Tensor.device.__get__  # pyright: ignore[reportFunctionMemberAccess]


class Far(Tensor):
    """A tensor of the other device; outside `Apart` an ordinary one."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def far(tensor: Tensor) -> Far:
    """The same numbers on the other device."""
    return tensor.as_subclass(Far)


def near(tensor: Tensor) -> Tensor:
    """The same numbers on the CPU."""
    return tensor.as_subclass(Tensor)


class Apart(TorchFunctionMode):
    """Inside, an operation that mixes the devices raises, as it does between a GPU and the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        if func == DEVICE_OF:
            return DEVICE if isinstance(args[0], Far) else func(*args)
        if func in (Tensor.cpu, Tensor.to):
            return _moved(args[0], list(args[1:]), kwargs)
        if func == Tensor.numpy and isinstance(args[0], Far):
            raise TypeError("can't convert a cuda tensor to numpy: use .cpu() first")
        asked = kwargs.pop("device", None)
        there = _meet(func, args, kwargs) if asked is None else torch.device(asked).type == DEVICE.type
        plain_args, plain = tree_map_only(Far, near, (args, kwargs))
        found = func(*plain_args, **plain)
        return tree_map_only(Tensor, far, found) if there else found


def _meet(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the operation runs on the other device; raises where its tensors are not all in one place."""
    if func == Tensor.__getitem__:
        args, kwargs = (args[:1] if isinstance(args[0], Far) else args), {}  # numbers of rows may stay on the CPU
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, Far) for tensor in tensors)
    here = any(not isinstance(tensor, Far) and tensor.ndim for tensor in tensors)
    if there and here and func != Tensor.copy_:
        raise RuntimeError(f"expected all tensors to be on the same device: {func} got some on cuda and some on the cpu")
    return there


def _moved(tensor: Tensor, rest: list[Any], kwargs: dict[str, Any]) -> Tensor:
    """`tensor.to(...)` in any of its forms, and `tensor.cpu()`, which asks for nothing."""
    asked = [*rest, kwargs.pop("device", None)] if rest or kwargs else ["cpu"]
    there, plain = isinstance(tensor, Far), []
    for wish in asked:
        if isinstance(wish, Tensor):
            there, wish = isinstance(wish, Far), near(wish).dtype
        if isinstance(wish, (str, torch.device)):
            there = torch.device(wish).type == DEVICE.type
        elif wish is not None:
            plain.append(wish)
    found = near(tensor).to(*plain, **kwargs) if plain or kwargs else near(tensor)
    return far(found) if there else found
