"""The code behind `Adapter` ops, one file a kind: `attach(pipe, op, scale)` puts it on and returns what takes it off."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def beside(model: nn.Module) -> bool:
    """Whether the code of an adapter stands beside any module of the model now."""
    parts = ([*part._forward_hooks.values(), *part._forward_pre_hooks.values()] for part in model.modules())
    return any(_ours(hook) for found in parts for hook in found)


@contextmanager
def silenced(model: nn.Module) -> Iterator[None]:
    """Inside, no adapter beside any module of the model acts; other hooks do. Afterwards all stand as before, in order."""
    kept: list[tuple[nn.Module, str, Any]] = []
    try:
        for part in model.modules():
            for name in HOOKS:
                hooks = getattr(part, name)
                if any(map(_ours, hooks.values())):
                    kept.append((part, name, hooks))
                    setattr(part, name, OrderedDict((key, hook) for key, hook in hooks.items() if not _ours(hook)))
        yield
    finally:
        for part, name, hooks in kept:  # the same dict again: the hooks' handles hold on to it
            setattr(part, name, hooks)


def _ours(hook: Any) -> bool:
    own = getattr(hook, "func", hook)  # a partial's own function
    return (getattr(own, "__module__", None) or "").startswith(f"{__name__}.")
