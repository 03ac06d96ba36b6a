"""Controls: weights perturbed at random with an edit's norm, and models that never knew a concept.

A metric that rewards damage shows itself on the random control: the
perturbation is as large as the edit, at the same weights, and means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from erasekit.edit import Edit

RANDOM = "random control"


def random_like(edit: Edit, pipe: Any, *, seed: int) -> Edit:
    """An edit that adds to each weight of `edit` Gaussian noise of exactly the edit's Frobenius norm there.

    Ops on one module count as their sum; biases likewise. The noise depends on `seed` and on the weights' names and
    shapes only. `pipe` is read for the original weights (a `Projection` has no delta without). Raises `UsageError`
    for an edit without linear ops: code has no norm.
    """
    import torch

    from erasekit.attach import find_module, original
    from erasekit.edit import Dense, Edit, LinearOp

    places: dict[str, list[LinearOp]] = {}
    for op in edit.ops:
        if isinstance(op, LinearOp):
            places.setdefault(op.site, []).append(op)
    if not places:
        raise UsageError("this edit changes no weight, so noise of its norm is not defined: use --control none")
    generator = torch.Generator("cpu").manual_seed(seed)
    ops = []
    for _, linear in sorted(places.items()):
        first, weight = linear[0], original(find_module(pipe, linear[0]))
        change = _total([op.delta(weight) for op in linear])
        noise = _noise(change, generator)
        biases = [found for op in linear if (found := op.bias_delta()) is not None]
        bias = _noise(_total(biases), generator) if biases else None
        ops.append(Dense(first.component, first.module, noise, bias))
    return Edit(tuple(ops), edit.base, RANDOM, {"seed": seed}, targets=edit.targets, anchors=edit.anchors, seed=seed)


def _total(changes: Sequence[Tensor]) -> Tensor:
    total = changes[0]
    for change in changes[1:]:
        total = total + change
    return total


def _noise(change: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of the shape and the Frobenius norm of `change`, in its dtype, on the CPU."""
    import torch

    noise = torch.randn(change.shape, generator=generator, dtype=torch.float64)
    wide = change.detach().to(device="cpu", dtype=torch.float64)
    return (noise * (wide.norm() / noise.norm())).to(change.dtype)


@dataclass(frozen=True)
class Never:
    """A model of the same recipe that was trained without `concept`."""

    concept: str
    folder: Path


def never(spec: str, targets: Sequence[str]) -> Never:
    """`CONCEPT=FOLDER`, or a FOLDER named after its concept ("emoji-never-cat"); where one target is erased, any folder.

    Raises `UsageError` where the folder is no model or the concept is none of `targets`.
    """
    name, sign, path = spec.partition("=")
    folder = Path(path if sign else spec).expanduser()
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"--never {spec}: {folder} is no diffusers folder; give CONCEPT=FOLDER of a model that was "
                         "trained without the concept")  # fmt: skip
    concept = name if sign else _named(folder.name, targets)
    if concept not in targets:
        raise UsageError(f"--never {spec}: no edit here erases {concept!r} (targets: {', '.join(targets)}); "
                         "give CONCEPT=FOLDER with one of them")  # fmt: skip
    return Never(concept, folder)


def _named(name: str, targets: Sequence[str]) -> str:
    words = name.replace("_", "-").split("never-")[-1].replace("-", " ")
    return targets[0] if words not in targets and len(targets) == 1 else words
