"""The code behind `Adapter` ops, one file a kind: `attach(pipe, op, scale)` puts it on and returns what takes it off."""

from __future__ import annotations

from torch import nn


def beside(model: nn.Module) -> bool:
    """Whether the code of an adapter stands beside any module of the model now."""
    parts = ([*part._forward_hooks.values(), *part._forward_pre_hooks.values()] for part in model.modules())
    hooks = (getattr(hook, "func", hook) for found in parts for hook in found)  # a partial's own function
    return any((getattr(hook, "__module__", None) or "").startswith(f"{__name__}.") for hook in hooks)
