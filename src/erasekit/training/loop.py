"""The one training loop. Plain torch: accelerate keeps its state in process-wide singletons and patches what it
prepares, and one device needs nothing of it.

All that is drawn comes from generators made from (seed, step), and a checkpoint holds the rest. So on a CPU with one number
of threads a run is the same to the bit, and a resumed run is the uninterrupted one (on a GPU, attention's backward pass
adds in any order).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from erasekit.errors import DivergenceError, TrainingError
from erasekit.methods import Progress
from erasekit.training.checkpoint import Checkpoint
from erasekit.training.settings import TrainingConfig


@dataclass(frozen=True)
class Step:
    """One batch of one step: the only source of chance for a loss."""

    seed: int
    index: int
    part: int = 0

    def generator(self, use: str) -> torch.Generator:
        """A generator on the CPU that depends on the seed, the step, the part of it and the use alone."""
        return generator(self.seed, self.index, self.part, use)


def generator(*names: object) -> torch.Generator:
    """A generator on the CPU, seeded by what it is for."""
    digest = hashlib.sha256(repr(names).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


Loss = Callable[[Step], Tensor]


class State:
    """All that a run carries from step to step: the trained tensors, Adam's moments, the average, the losses, and
    `extra`, tensors that the loss itself moves in place."""

    def __init__(
        self, trained: Mapping[str, Tensor], config: TrainingConfig, extra: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        self.trained, self.extra = dict(sorted(trained.items())), dict(extra)
        self.optimiser = torch.optim.AdamW(list(self.trained.values()), lr=config.rate, weight_decay=config.decay)
        self.average = {name: t.detach().clone() for name, t in self.trained.items()} if config.ema else {}
        self.losses: list[float] = []

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors."""
        moments = {
            f"adam.{name}.{key}": value
            for name, tensor in self.trained.items()
            for key, value in self.optimiser.state[tensor].items()
        }
        average = {f"average.{name}": tensor for name, tensor in self.average.items()}
        extra = {f"extra.{name}": tensor for name, tensor in self.extra.items()}
        return {f"trained.{name}": tensor for name, tensor in self.trained.items()} | moments | average | extra

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], losses: list[float]) -> None:
        """Take over a saved state, bit for bit."""
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, _, kind = key.rpartition(".")
            moments.setdefault(owner, {})[kind] = value
        for name, tensor in self.trained.items():
            tensor.copy_(tensors[f"trained.{name}"])
            self.optimiser.state[tensor] = {
                # Adam counts its steps on the CPU, whatever the device.
                kind: value.clone() if kind == "step" else value.to(tensor.device, copy=True)
                for kind, value in moments.get(f"adam.{name}", {}).items()
            }
        for name, tensor in self.average.items():
            tensor.copy_(tensors[f"average.{name}"])
        for name, tensor in self.extra.items():
            tensor.copy_(tensors[f"extra.{name}"])
        self.losses = list(losses)


def train(
    trained: Mapping[str, Tensor],
    loss: Loss,
    config: TrainingConfig,
    *,
    seed: int,
    active: Callable[[], AbstractContextManager[None]] = nullcontext,
    schedule: Callable[[int], float] = lambda step: 1.0,
    checkpoint: Checkpoint | None = None,
    progress: Progress,
    extra: Mapping[str, Tensor] = MappingProxyType({}),
) -> list[float]:
    """Train the float32 leaves `trained` in place with Adam and return the loss of every step.

    `loss(step)` is a scalar that draws from its step alone; with `config.recompute` `active()` is entered for the backward
    pass (recomputed activations need the trained tensors in place; else it would only copy them again); `schedule(step)`
    multiplies the learning rate; `extra` are tensors that the loss moves in place besides, which the checkpoint holds with
    the rest. A step moves, and averages, the tensors alone that have a gradient in it.

    Raises with the last good checkpoint kept: `DivergenceError` for a loss or gradient that is no number, `TrainingError`
    for a full GPU or a checkpoint of another run.
    """
    state, began = State(trained, config, extra), time.perf_counter()
    if checkpoint and (saved := checkpoint.load()):
        state.load(*saved)
    first, again = len(state.losses), active if config.recompute else nullcontext
    for index in range(first, config.steps):
        for group in state.optimiser.param_groups:
            group["lr"] = config.rate * schedule(index)
        with memory_line(config.lighter()):
            value = _gradients(loss, [Step(seed, index, part) for part in range(config.accumulate)], again)
            norm = torch.nn.utils.clip_grad_norm_(state.trained.values(), config.clip or math.inf)
            _require_finite(value, float(norm), index, config, checkpoint)
            state.optimiser.step()
            _average(state, config.ema)
            state.optimiser.zero_grad(set_to_none=True)
        state.losses.append(value)
        if checkpoint and ((index + 1) % config.save_every == 0 or index + 1 == config.steps):
            checkpoint.save(state.tensors(), state.losses)
        left = (time.perf_counter() - began) / (index + 1 - first) * (config.steps - index - 1)
        progress(index + 1, config.steps, f"training: loss {value:.3g}, {left:.0f} s left")
    _finish(state)
    return state.losses


def _gradients(loss: Loss, parts: list[Step], again: Callable[[], AbstractContextManager[None]]) -> float:
    """Add up the gradients of the mean loss over the parts, and return that mean."""
    total = 0.0
    for part in parts:
        value = loss(part) / len(parts)
        if value.requires_grad:  # else nothing that is trained takes part: the gradient is zero
            with again():
                value.backward()
        total += float(value.detach())
    return total


@torch.no_grad()
def _average(state: State, decay: float) -> None:
    """Of what the step moved: tensors that take turns are averaged as if each were trained alone."""
    for name, tensor in state.average.items():
        if state.trained[name].grad is not None:
            tensor.lerp_(state.trained[name], 1 - decay)


@torch.no_grad()
def _finish(state: State) -> None:
    """Where an average is kept, it is the result."""
    for name, tensor in state.average.items():
        state.trained[name].copy_(tensor)


def _require_finite(
    value: float, norm: float, index: int, config: TrainingConfig, checkpoint: Checkpoint | None
) -> None:
    if math.isfinite(value) and math.isfinite(norm):
        return
    kept = f"; {checkpoint.path} holds the last good state" if checkpoint and checkpoint.path.exists() else ""
    raise DivergenceError(f"the loss is not a number at step {index + 1} of {config.steps}: lower the rate (now "
                          f"{config.rate:g}), or clip the gradient (clip=1){kept}")  # fmt: skip


@contextmanager
def memory_line(lower: str) -> Iterator[None]:
    """Inside, a GPU that is full ends in a `TrainingError` of one line that says what asks for less there: `lower`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is full: {lower}, or free memory of other programs") from error
