"""Remove concepts from generative models, ship the edit as one small file, and prove what it did.

    pipe = erasekit.load("emoji")
    edit = erasekit.erase(pipe, "cat", anchor="dog")
    edit.save("cat.safetensors")

Importing `erasekit` loads none of torch, diffusers or transformers: each public name is fetched on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from erasekit.errors import (
    BaseMismatchError,
    DivergenceError,
    EditError,
    EraseKitError,
    InfeasibleError,
    ModelError,
    TrainingError,
    UsageError,
)

if TYPE_CHECKING:
    from erasekit.api import erase, plan
    from erasekit.concept import EraseRequest
    from erasekit.edit import Edit
    from erasekit.io import load as load_edit
    from erasekit.models import load

__version__ = "0.1.0"

_LAZY = {
    "erase": ("erasekit.api", "erase"),
    "plan": ("erasekit.api", "plan"),
    "load": ("erasekit.models", "load"),
    "load_edit": ("erasekit.io", "load"),
    "Edit": ("erasekit.edit", "Edit"),
    "EraseRequest": ("erasekit.concept", "EraseRequest"),
}

__all__ = [
    "BaseMismatchError",
    "DivergenceError",
    "Edit",
    "EditError",
    "EraseKitError",
    "EraseRequest",
    "InfeasibleError",
    "ModelError",
    "TrainingError",
    "UsageError",
    "erase",
    "load",
    "load_edit",
    "plan",
]


def __getattr__(name: str) -> object:
    """The public name, imported now and kept (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'erasekit' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What `dir(erasekit)` lists: the public names, loaded or not."""
    return sorted({*globals(), *__all__})
