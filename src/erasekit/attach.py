"""Put ops onto a live pipeline and take them off again, bit for bit.

Everything is checked before anything is written, so a pipeline is edited whole or not at all. Deltas are always
those of the *original* weight, also where another edit is on: edits applied one inside the other add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from erasekit.coded_ops import Adapter, Guidance
from erasekit.errors import BaseMismatchError, EditError, ModelError
from erasekit.fingerprint import Base, matches, strangers
from erasekit.layers import Layer, compiled_inside, layers, original, require_here, uncompiled
from erasekit.ops import LinearOp, Op, plain_module

# attach(pipe, op, scale) puts the op on and returns what takes it off.
# The tables are closed: a file can name an entry, never bring code. An entry is "module:function", read when needed.
Attach = Callable[[Any, Any, float], Callable[[], None]]
ADAPTERS: dict[str, Attach | str] = {
    "spm": "erasekit.adapters.spm:attach",
    "receler": "erasekit.adapters.receler:attach",
}
GUIDANCES: dict[str, Attach | str] = {
    "irece": "erasekit.guidances.irece:attach",
}

PROJECTIONS = (".to_q", ".to_k", ".to_v")


class Handle:
    """An edit that is on a pipeline; `remove()` takes it off and restores the weights bitwise.

    Of two edits on one module the later must go first; `remove()` raises `EditError` otherwise and changes nothing.
    A second `remove()` does nothing.
    """

    def __init__(self) -> None:
        self._on: list[tuple[nn.Module, Layer, str]] = []
        self._detach: list[Callable[[], None]] = []

    def remove(self) -> None:
        """Restore every weight bitwise; `EditError`, and nothing changed, if a later edit is still on one of them."""
        for module, layer, site in self._on:
            if layers[module][-1] is not layer:
                raise EditError(f"another edit was applied on top of this one at {site}: remove that one first")
        for detach in reversed(self._detach):
            detach()
        for module, layer, _ in reversed(self._on):
            _restore(module, layer)
        self.keep()

    def keep(self) -> None:
        """Leave the edit on for good and drop the old weights; `remove()` does nothing then."""
        for module, layer, _ in self._on:
            if layer in layers.get(module, []):
                layers[module].remove(layer)
        self._on, self._detach = [], []


@torch.no_grad()
def attach(pipe: Any, ops: Sequence[Op], base: Base, *, scale: float | int = 1.0, force: bool = False) -> Handle:
    """Put `ops` on the pipeline and return the handle that takes them off.

    W becomes `(W.float() + scale * sum of deltas)` cast back to its dtype, written in place.

    Raises:
        BaseMismatchError: the weights are not those that the edit was made for (skipped with `force`).
        EditError: an op whose component, module, shape or code the pipeline lacks; code for a part that is compiled.
        ModelError: a weight with NaN.
    """
    places = _places(pipe, ops)
    coded = [(op, _code(op)) for op in ops if not isinstance(op, LinearOp)]
    _refuse_compiled(pipe, [op for op, _ in coded])
    for site, module, linear in places:
        _check(site, module, linear)
    if not force:
        _check_base([(site, module) for site, module, _ in places] + _beside(pipe, ops, base), base)
    handle = Handle()
    try:
        for site, module, linear in places:
            _write(handle, site, module, linear, float(scale))
        for op, code in coded:
            handle._detach.append(code(pipe, op, float(scale)))
    except BaseException:  # also Ctrl-C: a pipeline is edited whole or not at all
        handle.remove()
        raise
    return handle


def is_edited(pipe: Any, ops: Sequence[Op]) -> bool:
    """Whether any edit is on now at the modules of `ops`."""
    return any(layers.get(module) for _, module, _ in _places(pipe, ops))


def find_module(pipe: Any, op: Op) -> nn.Module:
    """The op's module in the pipeline, named with or without `text_model.`; `EditError` if there is none."""
    return _find(pipe, op.component, op.module, op.label)


def _find(pipe: Any, name: str, module: str, label: str) -> nn.Module:
    component = uncompiled(getattr(pipe, name, None))
    if not isinstance(component, nn.Module):
        raise EditError(f"the pipeline has no {name!r}, which {label} needs: apply it to its own base model")
    modules = dict(component.named_modules())
    plain = plain_module(name, module)
    path = next((name for name in (module, plain, f"text_model.{plain}") if name in modules), "")
    if not isinstance(getattr(modules[path], "weight", None), Tensor):
        raise EditError(f"the model has no weight for {label}: apply the edit to its own base model")
    # A fused attention reads a copy of its projections: what is done to these would do nothing, and silently.
    owner = modules[path.rpartition(".")[0]]
    if path.endswith(PROJECTIONS) and type(getattr(owner, "processor", None)).__name__.startswith("Fused"):
        raise EditError(f"the projections that {label} changes are fused: call pipe.unfuse_qkv_projections() first")
    return modules[path]


def _beside(pipe: Any, ops: Sequence[Op], base: Base) -> list[tuple[str, nn.Module]]:
    """The recorded modules that code acts at, or reads: it says what it needs only to itself."""
    code = next((op for op in ops if isinstance(op, (Adapter, Guidance))), None)
    if code is None:
        return []
    written = {op.site for op in ops if isinstance(op, LinearOp)}
    sites = [(site, *site.partition("/")) for site in base.fingerprint if site not in written]
    return [(site, _find(pipe, component, module, code.label)) for site, component, _, module in sites]


def _places(pipe: Any, ops: Sequence[Op]) -> list[tuple[str, nn.Module, list[LinearOp]]]:
    """The linear ops, module by module."""
    grouped: dict[str, list[LinearOp]] = {}
    for op in ops:
        if isinstance(op, LinearOp):
            grouped.setdefault(op.site, []).append(op)
    return [(site, find_module(pipe, linear[0]), linear) for site, linear in grouped.items()]


def _code(op: Op) -> Attach:
    """The code for an adapter or guidance op, from the closed tables."""
    table, name = (ADAPTERS, op.adapter) if isinstance(op, Adapter) else (GUIDANCES, getattr(op, "guidance", ""))
    if name not in table:
        known = ", ".join(sorted(table)) or "none"
        what = "adapter" if isinstance(op, Adapter) else "guidance"
        raise EditError(f"{op.label} needs the {what} {name!r}, unknown here (known: {known}): update erasekit")
    entry = table[name]
    if not isinstance(entry, str):
        return entry
    module, _, function = entry.partition(":")
    return getattr(import_module(module), function)


def _refuse_compiled(pipe: Any, ops: Sequence[Op]) -> None:
    """Hooks that are put on after compilation are never run: the edit would do nothing, and silently."""
    for name in ("unet", "transformer", "text_encoder") if ops else ():
        part = getattr(pipe, name, None)
        said = f"{ops[0].label} is code that a compiled {name} does not run"
        if hasattr(part, "_orig_mod"):
            raise EditError(f"{said}: set pipe.{name} = pipe.{name}._orig_mod first")
        if compiled_inside(part):
            raise EditError(f"{said}: load the pipeline again, without compiling it")


def _check(site: str, module: nn.Module, ops: list[LinearOp]) -> None:
    weight, bias = original(module), getattr(module, "bias", None)
    _require_there(site, weight)
    for op in ops:
        op.check(weight, bias)
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(f"the weight at {site} holds NaN or infinite values: download the model again")


def _require_there(site: str, weight: Tensor) -> None:
    require_here(site, weight)
    if not weight.is_floating_point():
        raise ModelError(f"the weight at {site} is {weight.dtype} on {weight.device}: load the model unquantised")


def _check_base(places: list[tuple[str, nn.Module]], base: Base) -> None:
    for site, module in places:
        _require_there(site, original(module))
    other = {site: module for site, module in places if not matches(original(module), base.recorded(site) or {})}
    if other:
        site, module = next(iter(other.items()))
        shown = ", ".join([*other][:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        raise BaseMismatchError(
            f"the edit was made for other weights than these (for {base.id}): {len(other)} of {len(places)} modules differ, "
            f"{shown}; give that model{strangers(original(module), base.recorded(site) or {})}, or pass force=True "
            "(`erasekit generate --force`)"
        )


def _write(handle: Handle, site: str, module: nn.Module, ops: list[LinearOp], scale: float) -> None:
    """Write one module's new weight, having kept the old one in `handle`."""
    weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
    source = original(module)
    change = _total([op.delta(source) for op in ops])
    biases = [found for op in ops if (found := op.bias_delta()) is not None]
    bias: Tensor | None = module.bias if biases else None  # pyright: ignore[reportAssignmentType]
    layer = Layer(weight.detach().clone(), None if bias is None else bias.detach().clone())
    changed = [(site, weight, _added(weight, scale * change, site))]
    if bias is not None:
        changed.append((f"{site}.bias", bias, _added(bias, scale * _total(biases), site)))
    handle._on.append((module, layer, site))
    layers.setdefault(module, []).append(layer)
    for _, old, new in changed:
        old.copy_(new)


def _total(changes: list[Tensor]) -> Tensor:
    total = changes[0]
    for change in changes[1:]:
        total = total + change.to(total.device)
    return total


def _added(old: Tensor, change: Tensor, site: str) -> Tensor:
    """`old + change`, summed in float32 at least, in the dtype of `old`."""
    wide = torch.promote_types(old.dtype, torch.float32)
    new = (old.to(wide) + change.to(device=old.device, dtype=wide)).to(old.dtype)
    if not bool(torch.isfinite(new).all()):
        raise EditError(f"the edited weight at {site} does not fit into {old.dtype}: load the model in float32")
    return new


@torch.no_grad()
def _restore(module: nn.Module, layer: Layer) -> None:
    module.weight.copy_(layer.weight)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if layer.bias is not None:
        module.bias.copy_(layer.bias)  # pyright: ignore[reportCallIssue, reportArgumentType]
