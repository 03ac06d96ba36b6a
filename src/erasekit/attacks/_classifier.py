"""A small classifier of noisy latents: whether the picture that they become shows the target. For steered sampling.

    f: flat x_t -> 1024, plus (alpha, sigma) -> 1024; SiLU, dropout 0.3; -> 512; SiLU, dropout 0.3; -> 1

As in arXiv 2505.17013 (`probes_steering` has what it is for). Plain tensors and generators: torch's own layers and
dropout draw from the process's one source of chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from erasekit.attacks._ddim import Level
from erasekit.errors import TrainingError, UsageError
from erasekit.methods import check_range
from erasekit.training.latents import Schedule
from erasekit.training.loop import generator

if TYPE_CHECKING:
    from erasekit.methods import Progress

WIDTHS = (1024, 512)
DROPOUT = 0.3
Loss = Callable[[Tensor, torch.Generator, torch.Generator | None], Tensor]
"""(which pictures, what draws their views, what draws the dropout or None) -> the loss."""


@dataclass(frozen=True)
class ClassifierConfig:
    """How the classifier is trained, defaults of the released code; a wrong value raises `UsageError`."""

    epochs: int = 70
    """Of training the classifier."""
    views: int = 7
    """Noisy views of each picture in an epoch."""
    batch: int = 8
    """Views in a step."""
    rate: float = 1e-4
    """AdamW's."""
    decay: float = 1e-3
    """AdamW's weight decay."""

    def __post_init__(self) -> None:
        for name in ("epochs", "views", "batch"):
            check_range(name, getattr(self, name), low=1, high=1e6)
        check_range("rate", self.rate, high=1)
        check_range("decay", self.decay, high=1)


@dataclass(frozen=True, eq=False)
class Classifier:
    """f(x_t, t): four linear layers (weight, bias) by name, float32."""

    layers: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def fresh(cls, size: int, draw: torch.Generator, device: torch.device | str = "cpu") -> Classifier:
        """Untrained, for latents of `size` numbers; uniform in 1 / sqrt(inputs), as torch's own layers begin."""
        shapes = {"latents": (size, WIDTHS[0]), "level": (2, WIDTHS[0]), "hidden": WIDTHS, "last": (WIDTHS[1], 1)}

        def uniform(inputs: int, *shape: int) -> Tensor:
            return ((torch.rand(shape, generator=draw) * 2 - 1) * inputs**-0.5).to(device)

        return cls({name: (uniform(i, o, i), uniform(i, o)) for name, (i, o) in shapes.items()})

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that is trained."""
        return [tensor for layer in self.layers.values() for tensor in layer]

    def logits(
        self, latents: Float[Tensor, "b c h w"], levels: Float[Tensor, "b 2"], drop: torch.Generator | None = None
    ) -> Float[Tensor, " b"]:
        """log-odds of the target; with `drop` under dropout."""
        found = F.linear(latents.flatten(1), *self.layers["latents"]) + F.linear(levels, *self.layers["level"])
        found = F.linear(_dropped(F.silu(found), drop), *self.layers["hidden"])
        return F.linear(_dropped(F.silu(found), drop), *self.layers["last"])[:, 0]

    def upward(self, latents: Float[Tensor, "b c h w"], level: Level) -> Float[Tensor, "b c h w"]:
        """The gradient of log p(y = 1 | x_t) in x_t."""
        levels = torch.tensor([level], device=latents.device, dtype=latents.dtype).expand(len(latents), -1)
        with torch.enable_grad():
            asked = latents.detach().requires_grad_()
            return torch.autograd.grad(F.logsigmoid(self.logits(asked, levels)).sum(), asked)[0]


def trained(
    present: Float[Tensor, "n c h w"], absent: Float[Tensor, "m c h w"], schedule: Schedule, config: ClassifierConfig, *,
    seed: int, progress: Progress | None = None,
) -> tuple[Classifier, float, int]:  # fmt: skip
    """The classifier in the epoch with the lowest held-out loss, that loss, and the steps of training; deterministic
    for `seed`. Raises `UsageError` for fewer than two pictures of a kind, `TrainingError` for a loss that is none."""
    if min(len(present), len(absent)) < 2:
        raise UsageError("the classifier needs at least two pictures with the target and two without: give more")
    clean = torch.cat([present, absent])
    is_target = torch.arange(len(clean)) < len(present)
    learn, hold = split(is_target, generator(seed, "steering", "split"))
    weight = (~is_target[learn]).sum() / is_target[learn].sum()
    classifier = Classifier.fresh(clean[0].numel(), generator(seed, "steering", "start"), clean.device)
    for tensor in classifier.tensors:
        tensor.requires_grad_()
    optimiser = torch.optim.AdamW(classifier.tensors, lr=config.rate, weight_decay=config.decay)

    def loss(chosen: Tensor, draw: torch.Generator, drop: torch.Generator | None) -> Tensor:
        latents, levels = views(clean[chosen.to(clean.device)], schedule, draw)
        wanted = is_target[chosen].to(latents)
        return F.binary_cross_entropy_with_logits(classifier.logits(latents, levels, drop), wanted,
                                                  pos_weight=weight.to(latents))  # fmt: skip

    kept, lowest, steps = classifier, float("inf"), 0
    for epoch in range(config.epochs):
        steps += _epoch(loss, learn, optimiser, config, generator(seed, "steering", epoch))
        with torch.no_grad():
            held = float(loss(hold.repeat(config.views), generator(seed, "steering", "held out"), None))
        if held < lowest:
            copies = {name: (w.detach().clone(), b.detach().clone()) for name, (w, b) in classifier.layers.items()}
            kept, lowest = Classifier(copies), held
        if progress:
            progress(epoch + 1, config.epochs, f"training the classifier: held-out loss {held:.3g}")
    if lowest == float("inf"):
        raise TrainingError("the classifier's loss is not a number: lower rate, or give other pictures")
    return kept, lowest, steps


def split(
    is_target: Bool[Tensor, " n"], draw: torch.Generator, *, part: float = 0.1
) -> tuple[Int[Tensor, " k"], Int[Tensor, " m"]]:
    """Numbers to learn from and to hold out: `part` of either kind, at least one, is held out."""
    learn, hold = [], []
    for kind in (True, False):
        own = (is_target == kind).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=draw)]
        count = max(1, round(part * len(own)))
        hold.append(own[:count])
        learn.append(own[count:])
    return torch.cat(learn), torch.cat(hold)


def views(
    clean: Float[Tensor, "b c h w"], schedule: Schedule, draw: torch.Generator
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 2"]]:
    """The latents at levels drawn towards the noisy end, and these levels (alpha, sigma)."""
    u = torch.rand(len(clean), generator=draw, dtype=torch.float64)
    t = (u ** (1 / 3) * (len(schedule.alphas) - 1)).long()
    levels = torch.stack([schedule.alphas[t], schedule.sigmas[t]], 1).to(clean)
    noise = torch.randn(clean.shape, generator=draw).to(clean)
    alpha, sigma = levels[:, :, None, None, None].unbind(1)
    return alpha * clean + sigma * noise, levels


def _epoch(
    loss: Loss, learn: Tensor, optimiser: torch.optim.Optimizer, config: ClassifierConfig, draw: torch.Generator
) -> int:
    """One pass over all views of all pictures, in random order; how many steps that was."""
    order = learn.repeat(config.views)
    batches = order[torch.randperm(len(order), generator=draw)].split(config.batch)
    for chosen in batches:
        optimiser.zero_grad()
        loss(chosen, draw, draw).backward()
        torch.nn.utils.clip_grad_norm_([tensor for group in optimiser.param_groups for tensor in group["params"]], 1.0)
        optimiser.step()
    return len(batches)


def _dropped(values: Tensor, draw: torch.Generator | None) -> Tensor:
    if draw is None:
        return values
    kept = torch.rand(values.shape, generator=draw) >= DROPOUT
    return values * kept.to(values) / (1 - DROPOUT)
