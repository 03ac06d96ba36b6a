"""Controls: weights perturbed at random with an edit's norm, and models that never knew a concept.

A metric that rewards damage shows itself on the random control: the
perturbation is as large as the edit, at the same weights, and means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError
from erasekit.evaluation.suites.names import key

if TYPE_CHECKING:
    from torch import Tensor

    from erasekit.edit import Edit
    from erasekit.evaluation.suites import Prompt, Suite

RANDOM = "random control"
WITHOUT = "without.json"
"""The file in a model's folder that says what it was trained without: {"concepts": [...], "styles": [...]}."""


def random_like(edit: Edit, pipe: Any, *, seed: int) -> Edit:
    """An edit that adds to each weight of `edit` Gaussian noise of exactly the edit's Frobenius norm there.

    Ops on one module count as their sum; biases likewise. SPM's modules and Receler's erasers become noise of their norm
    in the same code (`noise.ADAPTERS`); other code has no norm and is left out. The noise depends on `seed` and on the
    weights' names and shapes only. `pipe` is read for the original weights (a `Projection` has no delta without).
    Raises `UsageError` for an edit of which nothing is left.
    """
    import torch

    from erasekit.attach import find_module, original
    from erasekit.edit import Adapter, Dense, Edit, LinearOp, Op
    from erasekit.evaluation import noise

    if not has_noise(edit):
        raise UsageError("noise of the norm of this edit is not defined, as it acts through code: use --control none")
    places: dict[str, list[LinearOp]] = {}
    for op in edit.ops:
        if isinstance(op, LinearOp):
            places.setdefault(op.site, []).append(op)
    generator = torch.Generator("cpu").manual_seed(seed)
    ops: list[Op] = []
    for _, linear in sorted(places.items()):
        first, weight = linear[0], original(find_module(pipe, linear[0]))
        change = _total([op.delta(weight) for op in linear])
        delta = noise.gaussian(change, generator)
        biases = [found for op in linear if (found := op.bias_delta()) is not None]
        bias = noise.gaussian(_total(biases), generator) if biases else None
        ops.append(Dense(first.component, first.module, delta, bias))
    coded = [op for op in edit.ops if isinstance(op, Adapter) and noise.defined(op)]
    ops += [noise.ADAPTERS[op.adapter](op, generator) for op in coded]
    return Edit(tuple(ops), edit.base, RANDOM, {"seed": seed}, targets=edit.targets, anchors=edit.anchors, seed=seed)


def has_noise(edit: Edit) -> bool:
    """Whether `random_like` has noise for some of the edit."""
    from erasekit.evaluation import noise
    from erasekit.ops import LinearOp

    return any(isinstance(op, LinearOp) or noise.defined(op) for op in edit.ops)


def _total(changes: Sequence[Tensor]) -> Tensor:
    total = changes[0]
    for change in changes[1:]:
        total = total + change
    return total


@dataclass(frozen=True)
class Never:
    """A model of the same recipe that was trained without `concept`."""

    concept: str
    folder: Path


def never(spec: str, targets: Sequence[str]) -> Never:
    """`CONCEPT=FOLDER`, or a FOLDER named after its concept ("emoji-never-cat"); where one target is erased, any folder.

    An embedded model's name stands for its folder ("cat=emoji-never"). Raises `UsageError` where the folder is no model or
    the concept is none of `targets`.
    """
    from erasekit import models

    name, sign, path = spec.partition("=")
    given = path if sign else spec
    folder = models.resolve(given) if given in models.EMBEDDED else Path(given).expanduser()
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"--never {spec}: {folder} is no diffusers folder; give CONCEPT=FOLDER of a model that was "
                         "trained without the concept")  # fmt: skip
    concept = name if sign else _named(Path(given).name, targets)
    if concept not in targets:
        raise UsageError(f"--never {spec}: no edit here erases {concept!r} (targets: {', '.join(targets)}); "
                         "give CONCEPT=FOLDER with one of them")  # fmt: skip
    return Never(concept, folder)


def _named(name: str, targets: Sequence[str]) -> str:
    words = name.replace("_", "-").split("never-")[-1].replace("-", " ")
    return targets[0] if words not in targets and len(targets) == 1 else words


def withheld(folder: Path) -> frozenset[str]:
    """What the model in `folder` was trained without, as `bare` words; empty where no `without.json` says so. Raises
    `UsageError` for one that cannot be read."""
    path = folder / WITHOUT
    if not path.is_file():
        return frozenset()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return frozenset(bare(str(word)) for kind in ("concepts", "styles") for word in found[kind])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} does not say what the model was trained without: write it anew (the training's stage "
                         "assemble does)") from error  # fmt: skip


def bare(word: str) -> str:
    """A concept's or style's name as names compare: "Ink style", a style's name in sentences, is "ink" of `without.json`."""
    return key(word).removesuffix(" style")


def without(folder: Path, target: str, *labels: str, option: str) -> frozenset[str]:
    """What `withheld` says of the model in `folder`. Raises `UsageError`, which begins with the `option` that gave the model,
    where it says something and neither the target is in it nor all `labels` that a judge takes for the target: a model
    that draws one of them knows what is looked for."""
    never = withheld(folder)
    known = [name for name in labels or (target,) if bare(name) not in never]
    if never and bare(target) not in never and known:
        raise UsageError(f"{option}: the model there was trained with {known[0]!r}, and without {', '.join(sorted(never))}: "
                         "ask for one of these, or give a model that was trained without it")  # fmt: skip
    return never


def fair(prompts: Sequence[Prompt], suite: Suite, model: Never) -> tuple[Prompt, ...]:
    """The prompts that ask for nothing else that the model was trained without: of those it shows no more than of its own
    concept, and to erase one concept is not to lose them. Raises `UsageError` where it knows the concept."""
    own = suite.label(model.concept)
    rest = without(model.folder, own, option=f"--never {model.concept}={model.folder}") - {bare(own)}
    return tuple(prompt for prompt in prompts if rest.isdisjoint(map(bare, _asked(prompt, suite))))


def _asked(prompt: Prompt, suite: Suite) -> list[str]:
    """What the prompt asks for: things, a style, the target however it is called."""
    return [*prompt.wanted, *filter(None, [prompt.style]), *([suite.label(prompt.target)] if prompt.target else [])]
