"""The edited and the unedited model as one pipeline that shares every tensor but those that the edit changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from erasekit.attach import Handle, attach, find_module
from erasekit.edit import Edit
from erasekit.layers import lay
from erasekit.ops import LinearOp


@dataclass(frozen=True, eq=False)
class _Place:
    """A module's parameter as it is, and as the edit writes it."""

    owner: nn.Module
    leaf: str
    own: nn.Parameter
    edited: nn.Parameter


class Sides:
    """Switches a pipeline between an edit and none without copying a weight; `edit` None: both sides are one.

    Making one leaves the pipeline as it was. `scale` and what is raised: as of `Edit.apply`.
    """

    def __init__(self, pipe: Any, edit: Edit | None, *, force: bool = False, scale: float = 1.0) -> None:
        self._pipe, self._edit, self._scale = pipe, edit, scale
        self._places = [] if edit is None else _places(pipe, edit, force, scale)
        self._coded = [] if edit is None else [op for op in edit.ops if not isinstance(op, LinearOp)]
        self._handle: Handle | None = None
        self._lifts: list[Callable[[], None]] = []
        self._depth = 0  # of `original()` inside itself

    @property
    def away(self) -> bool:
        """Whether the pipeline is the unedited model now, inside `original()`."""
        return self._depth > 0

    @contextmanager
    def edited(self) -> Iterator[None]:
        """Inside, the pipeline is the edited model."""
        self._on()
        try:
            yield
        finally:
            self._off()

    @contextmanager
    def original(self) -> Iterator[None]:
        """Inside, within `edited()`, the pipeline is the unedited model, bit for bit."""
        if not self._depth:
            self._off()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._on()

    def _on(self) -> None:
        try:
            for place in self._places:
                place.owner._parameters[place.leaf] = place.edited
                self._lifts.append(lay(place.owner, place.leaf, place.own))  # what code asks the unedited weights of
            if self._edit is not None and self._coded:
                # The base was checked when this was made.
                self._handle = attach(self._pipe, self._coded, self._edit.base, scale=self._scale, force=True)
        except BaseException:  # the pipeline may have changed since (another sampler): edited whole or not at all
            self._off()
            raise

    def _off(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        while self._lifts:
            self._lifts.pop()()
        for place in self._places:
            place.owner._parameters[place.leaf] = place.own


class Exchange(Sides):
    """Two models of one architecture as the sides of one: of each pair of modules the first is the unedited one's own, the
    second what the edited side computes with. Shares every tensor."""

    def __init__(self, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__(None, None)
        self._places = [
            _Place(owner, leaf, own, nn.Parameter(value.detach(), requires_grad=False))
            for first, second in pairs
            for owner, other in zip(first.modules(), second.modules(), strict=True)
            for leaf, own in owner._parameters.items()
            if own is not None and (value := other._parameters[leaf]) is not None and not torch.equal(own, value)
        ]

    def _on(self) -> None:
        for place in self._places:
            place.owner._parameters[place.leaf] = place.edited


def _places(pipe: Any, edit: Edit, force: bool, scale: float) -> list[_Place]:
    """What the edit writes, read from the pipeline with the edit on it for a moment."""
    modules = {id(m): m for op in edit.ops if isinstance(op, LinearOp) for m in [find_module(pipe, op)]}
    with edit.applied(pipe, scale=scale, force=force):
        written = [(module, leaf, own, nn.Parameter(own.detach().clone(), requires_grad=False))
                   for module in modules.values() for leaf, own in module._parameters.items() if own is not None]  # fmt: skip
    return [_Place(*found) for found in written if not torch.equal(found[2], found[3])]
