"""SPM: one-dimensional adapter to rule them all (SemiPermeable Membrane; arXiv 2312.16145, CVPR 2024).

Nothing of the model changes. Beside every linear layer and convolution of the U-Net's transformers (192 in SD v1.4) stands
the smallest module there is, an in-vector and an out-vector (423,936 numbers in all), trained with ESD's objective while
a second loss pins the model on random conditions. At inference a gate opens each target's modules by the prompt.

    y     = W x + gamma (alpha / rank) u (v x)
    erase = mean ( eps_S(z_t, c) - [ eps(z_t, a) - eta (eps(z_t, c) - eps(z_t, a)) ] )^2
    pin   = mean over random r of ( eps_S(z_t, r) - eps(z_t, r) )^2
    loss  = erase + anchoring pin

x what a layer reads; v (rank, in[, k, k]) "down", u (out, rank) "up", zero at first; z_t (b, channels, h, w) latents at
timestep t; c, a, r (b, 77, width) text features of target, anchor (the paper's surrogate: the empty prompt) and random
conditions; eps the frozen prediction, eps_S that with the modules in full (gamma = 1). On models that predict v the same
with v.

A random condition is r = s ||c|| n / ||n||, n ~ N(0, I) of c's shape, accepted with probability 1 - cos(n, c),
s ~ U[0.8, 1.2] (latent anchoring). The gate (facilitated transport) of target e for prompt p is

    gamma = max( cos(flat E(p), flat E(e)), |T(p) n T(e)| / |T(e)| )

with E all text features and T the set of tokens without start, end, padding and unknown.

One step: draw k of 1..29; from fresh noise, with the modules on, run k of 30 DDIM steps with guidance 3 on the target;
evaluate all predictions at the k-th timestep; AdamW at a cosine rate with three hard restarts. Several targets are several
SPMs, each trained for `steps` steps, each with its own gate: those of a list are bit for bit those of runs alone. What they
add is summed.

What differs from the released code: the latent's level and the evaluated timestep agree; AdamW has 32-bit moments;
composition is the sum of the targets' own residuals, each times its gamma, where the released inference scales both
factors and adds them across targets (gamma^2, and products of one target's u with another's v: `gate="released"`); all
random conditions are pinned, where the released code's order of a batch pins half of them and else the empty prompt
(`variant="released"`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from erasekit.adapters.spm import GATES
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.methods import Preset, Progress, check_choice, check_family, check_range
from erasekit.methods._cross import silent
from erasekit.methods._spm_edit import adapter, gates, measure, records
from erasekit.methods._spm_run import each, opened_run, pinned_conditions, rate, sized
from erasekit.training import losses
from erasekit.training.bench import Bench
from erasekit.training.loop import Step
from erasekit.training.membranes import Membranes
from erasekit.training.plan import Learned, Plan, estimate
from erasekit.training.result import finish
from erasekit.training.settings import TrainingConfig


@dataclass(frozen=True)
class SPMConfig(TrainingConfig):
    """Parameters of SPM, defaults of the paper's configurations; a wrong value raises `UsageError` naming the choices."""

    steps: int = 3000
    """Optimiser steps for each target."""
    rate: float = 1e-4
    """Learning rate, before its schedule."""
    decay: float = 0.01
    """Decoupled weight decay (AdamW's usual one); 0: Adam."""
    rank: int = 1
    """Vectors on each side of a module; 1 is the paper's."""
    alpha: float = 1.0
    """The modules act with alpha / rank."""
    eta: float = 1.0
    """Erasing strength; 0 maps the target to the anchor."""
    anchoring: float = 1000.0
    """Weight of the loss on random conditions (the paper's lambda, tuned for SD v1.4); 0: ESD restricted to the modules."""
    conditions: int = 4
    """Random conditions in each step."""
    variant: str = "paper"
    """What is pinned: paper (every random condition) or released (half of them, the empty prompt for the others)."""
    gate: str = "transport"
    """transport: gamma by the prompt (the paper); off: gamma = 1; released: the released code's composition (gamma^2)."""
    guidance: float = 3.0
    """Classifier-free guidance of the latents' sampling."""
    sampling_steps: int = 30
    """S: the steps of a whole sampling run; each training step makes k of 1..S-1 of them."""
    warmup: int = 500
    """Steps over which the rate rises, but at most the paper's share, a sixth of all."""
    cycles: int = 3
    """Cosine descents of the rate, each from the full rate to zero."""
    resolution: str = "auto"
    """dynamic: height and width of each step's latents are drawn between half and all of the model's; full; auto: dynamic
    where latents have at least 32 positions a side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, ("paper", "released"))
        check_choice("gate", self.gate, GATES)
        check_choice("resolution", self.resolution, ("auto", "dynamic", "full"))
        for name in ("rank", "conditions", "cycles"):
            check_range(name, getattr(self, name), low=1, high=1e6)
        check_range("alpha", self.alpha, low=1e-6, high=1e6)
        check_range("eta", self.eta, low=-1, high=1e3)
        check_range("guidance", self.guidance, high=1e3)
        for name in ("anchoring", "warmup"):
            check_range(name, getattr(self, name), high=1e9)
        check_range("sampling_steps", self.sampling_steps, low=2, high=1e6)

    @property
    def pinned(self) -> int:
        """How many conditions each step pins the model on."""
        return self.conditions * bool(self.anchoring)

    def last_resort(self) -> str:
        """As `TrainingConfig.last_resort`: each condition is one more sample in the pass with gradients."""
        if self.pinned > 1:
            return f"lower conditions (now {self.conditions})"
        return f"lower rank (now {self.rank})" if self.rank > 1 else super().last_resort()


class SPM:
    """One-dimensional modules that erase the targets, each behind a gate that its prompt opens. Deterministic for the
    request's seed. The edit is one `Adapter` op; the model's weights stay as they are also where it is applied.

    What is retained is not a part of the objective: it is measured.
    """

    name: ClassVar[str] = "spm"
    title: ClassVar[str] = "SemiPermeable Membrane"
    paper: ClassVar[str] = "arXiv 2312.16145"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        "released": Preset("the released code where it differs from the paper: what is pinned, and how SPMs are composed",
                           {"variant": "released", "gate": "released"}),
    }  # fmt: skip
    Config: ClassVar[type[SPMConfig]] = SPMConfig

    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: SPMConfig,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> Edit:
        """An edit of one SPM for each target; the model is left bitwise as it was.

        `checkpoint`: a file or folder for the run's state, from which a run that was ended goes on. Raises
        `UsageError` for a family that SPM does not take, `TrainingError` where training cannot go on.
        """
        check_family(SPM, backbone)
        with opened_run(backbone, request, config) as bench:
            curve = bench.train(lambda step: loss(bench, config, step), method=self.name, checkpoint=checkpoint,
                                progress=progress or silent,
                                schedule=lambda index: rate(index // len(request.targets), config))  # fmt: skip
            op = adapter(bench, config)
            residual, drift = measure(bench, config, op, lambda i, z, t: teacher(bench, config, i, (), z, t)[0])
            idle = ["spm holds on to random conditions, not to what is retained: its drift is measured"]
            return finish(bench, [op], records(bench, op), curve, method=self.name, parameters=asdict(config),
                          residual=residual, drift=drift, warnings=idle * bool(request.retain),
                          numbers={"gate": gates(bench, op)})  # fmt: skip

    def plan(self, backbone: Backbone, request: EraseRequest, config: SPMConfig) -> Plan:
        """What a run would train and need; nothing is written, the model is left as it was."""
        check_family(SPM, backbone)
        with opened_run(backbone, request, config) as bench:
            target = request.targets[0]
            text = torch.cat([bench.text(target)] * (1 + config.pinned))

            def learn(latents: Tensor, timestep: float) -> Learned:  # one graph over target and conditions
                return each(bench, latents, timestep, text).square().mean(), ()

            return estimate(bench, method=self.name, what=f"{len(request.targets)} of rank {config.rank}", prompt=target,
                            sampled=config.sampling_steps / 2, teachers=2 + config.pinned, learn=learn)  # fmt: skip


def loss(bench: Bench[Membranes], config: SPMConfig, step: Step) -> Tensor:
    """The loss of one batch. Targets take turns; all that is drawn depends on the seed, the target and its own count of
    steps alone, so that an SPM is the same whatever it is trained together with."""
    count = len(bench.request.targets)
    bench.student.chosen, own = step.index % count, Step(step.seed, step.index // count, step.part)
    target = bench.request.targets[bench.student.chosen]
    k = int(torch.randint(1, config.sampling_steps, (), generator=own.generator(f"level {target}")))
    noise = sized(bench.noise(own.generator(f"noise {target}")), config, own.generator(f"size {target}"))
    with bench.student.active():
        latents, timestep = bench.latents(noise, target, k, guidance=config.guidance)
    pinned = pinned_conditions(bench, config, target, own)
    wanted, kept = teacher(bench, config, bench.student.chosen, pinned, latents, timestep)
    with bench.student.active():
        found = each(bench, latents, timestep, torch.cat([bench.text(target), pinned]))
    erase = losses.squared_error(found[: len(latents)], wanted)
    if not len(pinned):
        return erase
    return erase + losses.preservation(found[len(latents) :], kept, weight=config.anchoring)


@torch.no_grad()
def teacher(
    bench: Bench[Membranes], config: SPMConfig, i: int, pinned: Tensor | Sequence[Tensor], latents: Tensor, timestep: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the student should predict for target i (b, c, h, w), and under the pinned conditions (m * b, c, h, w): the
    frozen model's own predictions, all in one forward pass."""
    known = bench.text(bench.request.targets[i]), bench.text(bench.request.anchors[i])
    found = each(bench, latents, timestep, torch.cat([*known, *(row[None] for row in pinned)]))
    target, anchor, kept = found.split([len(latents)] * 2 + [len(pinned) * len(latents)])
    return losses.negative_guidance(target, target, anchor, eta=config.eta), kept
