"""The loop that every stage shares: seeded steps, a learning-rate curve, checkpoints, an optional moving average."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from erasekit.errors import DivergenceError, UsageError

from .muon import Both

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """Warm-up, plateau, cosine decay over the last `decay` share of `steps`."""

    steps: int
    rate: float
    warmup: int = 50
    decay: float = 1.0

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        start = self.steps * (1 - self.decay)
        progress = max(0.0, (step - start) / max(1.0, self.steps - start))
        return self.rate * min(1.0, (step + 1) / self.warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))


def step_rng(seed: int, stage: str, step: int) -> np.random.Generator:
    """The generator of one step's data: the same whether or not the run was interrupted before it."""
    return np.random.default_rng([seed, *stage.encode(), step])


def refuse_finished(checkpoint: Path, steps: int) -> None:
    """Raises `UsageError` where `checkpoint` is of a run that has made these steps.

    For who begins with other weights: `train` would resume there, make no step, and give back the checkpoint's weights.
    """
    if checkpoint.exists() and (done := torch.load(checkpoint, weights_only=True, mmap=True)["step"]) >= steps:
        raise UsageError(f"{checkpoint} is the checkpoint of a finished run ({done} of {steps} steps), whose weights "
                         "would be taken: move it away to begin onward, or give more --steps to continue it")  # fmt: skip


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    checkpoint: Path,
    *,
    weight_decay: float = 0.01,
    ema: float | None = None,
    every: int = 200,
) -> nn.Module:
    """Trains `model` in place and returns it (or its moving average), resuming from `checkpoint` if it is there.

    Raises `DivergenceError` at a loss that is not finite; the checkpoint stays as it was before.
    """
    optimizer = Both(model, schedule.rate, weight_decay)
    average = copy.deepcopy(model).requires_grad_(False) if ema else None
    first = _resume(checkpoint, model, optimizer, average)
    running, began = 0.0, time.monotonic()
    for step in range(first, schedule.steps):
        optimizer.set_rate(schedule.at(step))
        loss = loss_of(step)
        value = _finite(loss.item(), step, checkpoint)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if average is not None and ema is not None:
            _update(average, model, min(ema, (step + 1) / (step + 10)))
        running = 0.95 * running + 0.05 * value if step > first else value
        if (step + 1) % 50 == 0:
            pace = (time.monotonic() - began) / (step + 1 - first)
            log.info("step %d/%d loss %.5f %.2f s/step", step + 1, schedule.steps, running, pace)
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            _save(checkpoint, step + 1, model, optimizer, average)
    return model if average is None else average


def _finite(loss: float, step: int, checkpoint: Path) -> float:
    if not math.isfinite(loss):
        kept = f"{checkpoint} has an earlier step" if checkpoint.exists() else "no checkpoint was written yet"
        raise DivergenceError(f"the loss of step {step} is {loss}: {kept}; give the schedule a smaller rate")
    return loss


@torch.no_grad()
def _update(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _save(path: Path, step: int, model: nn.Module, optimizer: Both, average: nn.Module | None) -> None:
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if average is not None:
        state["average"] = average.state_dict()
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, model: nn.Module, optimizer: Both, average: nn.Module | None) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    log.info("resuming at step %d", state["step"])
    return int(state["step"])
