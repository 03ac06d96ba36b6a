"""What modules were before the edits that are on them now, and a way to compute with that for a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from erasekit.adapters import silenced
from erasekit.errors import ModelError


@dataclass(frozen=True, eq=False)
class Layer:
    """The values that a module had before one edit was put on; `bias` None: the edit leaves it alone."""

    weight: Tensor
    bias: Tensor | None


# The edits that are on a module now, oldest first. Weak: a pipeline that is dropped takes its entries along.
layers: WeakKeyDictionary[nn.Module, list[Layer]] = WeakKeyDictionary()


def uncompiled(component: Any) -> Any:
    """What `torch.compile` wrapped, whose modules have the names of every model like it; anything else as it is."""
    return getattr(component, "_orig_mod", component)


def compiled_inside(component: Any) -> bool:
    """Whether it, or a module in it, was compiled in place (`component.compile()`): hooks that are put on it later may never
    be run."""
    # The wrapper that `uncompiled` takes off counts for nothing here: what it wraps runs as it is.
    found = uncompiled(component)
    return isinstance(found, nn.Module) and any(module._compiled_call_impl is not None for module in found.modules())


def require_here(place: str, weight: Tensor) -> None:
    """`ModelError` for a weight whose numbers offloading holds somewhere else."""
    if weight.is_meta:
        raise ModelError(f"the weight at {place} is offloaded: call pipe.remove_all_hooks() and pipe.to(device) first")


def original(module: nn.Module) -> Tensor:
    """The module's weight without the edits that are on now."""
    found = layers.get(module)
    return found[0].weight if found else module.weight  # pyright: ignore[reportReturnType]


def originals(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters without the edits that are on now, by name; empty for a module without edits."""
    found = layers.get(module, [])
    biases = [layer.bias for layer in found if layer.bias is not None]
    return ({"weight": found[0].weight} if found else {}) | ({"bias": biases[0]} if biases else {})


def lay(module: nn.Module, leaf: str, value: Tensor) -> Callable[[], None]:
    """Record that an edit stands on the module in place of this "weight" or "bias", until the returned function is called.

    For those who exchange parameters instead of writing into them.
    """
    layer = Layer(value, None) if leaf == "weight" else Layer(original(module), value)
    layers.setdefault(module, []).append(layer)
    return lambda: layers[module].remove(layer)


@contextmanager
def unedited(component: nn.Module) -> Iterator[None]:
    """Inside, the component computes as it did before every edit that is on now, weights and adapters alike, bit for bit.

    Parameters are exchanged and nothing is written, so it costs next to nothing; afterwards everything is as before.
    """
    kept: list[tuple[nn.Module, str, nn.Parameter | None]] = []
    with ExitStack() as stack:
        stack.enter_context(silenced(component))
        try:
            for module in component.modules():
                for leaf, value in originals(module).items():
                    now = module._parameters[leaf]
                    kept.append((module, leaf, now))
                    # `.to`: a pipeline that was moved or cast since takes its kept values along no further than here.
                    module._parameters[leaf] = nn.Parameter(value.to(now), requires_grad=False)  # pyright: ignore
            yield
        finally:
            for module, leaf, now in kept:
                module._parameters[leaf] = now
