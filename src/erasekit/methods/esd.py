"""ESD: erasing concepts from diffusion models (arXiv 2303.07345, ICCV 2023).

The denoiser is trained so that, asked for the target c, it predicts what negative guidance away from c would have
predicted with the original weights. The teacher is the frozen model, the latents are the model's own: text only.

    y = eps*(z_t, a) - eta [eps*(z_t, c) - eps*(z_t, a)]        (eq. 6; the paper's a is the empty prompt)
    L = mean (eps_theta(z_t, c) - y)^2

z_t (b, channels, h, w) latents at timestep t; c, a (b, 77, width) text features of target and anchor; eps* the frozen
prediction, eps_theta the student's, both shaped as z_t; eta >= 0 the erasing strength. In density: p_theta(x) is
proportional to p*(x) / p*(c|x)^eta (eq. 4). On models that predict v the same holds with v in place of eps.

With a `host` concept h the target is removed as an attribute of it ("hat" from "cowboy"): latents are drawn for h, the
student reads h, and y = eps*(h) - (eta + 1) [eps*(c) - eps*(a)], which is the above where h = c. The authors' later
code writes eta' = eta + 1.

One step: draw a target of the list; draw k of 0..S-1; from fresh noise run k DDIM steps with guidance 3 on the
target (by the student, as in the paper, or by the frozen model, as in the authors' later code); evaluate all
predictions at the k-th timestep; Adam.

A memorised image (section 5.4) is erased by the same objective with the image's own latents, forward-noised, in place of
what is drawn: `folder` holds the image, the target is the caption that calls it up (see `_esd_images`).

Variants, with the number of parameters in SD v1.4: `x` all of the cross-attention (43,962,560; styles, and whatever is
called by its name), `x-strict` its keys and values (19,169,280), `u` all but cross-attention, time MLP and output head
(813,495,680; objects, nudity), `u-linear` every linear layer and convolution outside cross-attention (815,358,084),
`self` the self-attention, `full` everything.

What differs from the released code: the latent's level and the evaluated timestep agree (the first code's latents are
two steps cleaner than the timestep says, and its t lies between the sampler's); the sampler is DDIM on the model's own
noise levels, at the model's own size; what is trained is float32 also in a half-precision model; an anchor may be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import UsageError
from erasekit.methods import LocalPath, Preset, Progress, check_choice, check_family, check_range, recorded
from erasekit.methods._cross import silent
from erasekit.methods._esd_images import Memorised, memorised
from erasekit.training import losses
from erasekit.training.bench import Bench, opened
from erasekit.training.loop import Step, generator
from erasekit.training.parameters import Student, weights
from erasekit.training.plan import Plan, estimate
from erasekit.training.probes import energy, relative_drift, spread
from erasekit.training.result import changes, finish, settle
from erasekit.training.settings import TrainingConfig

VARIANTS = {
    "x": "cross",
    "x-strict": "cross.kv",
    "u": "outside-cross",
    "u-linear": "outside-cross.linear",
    "self": "self",
    "full": "all",
}


@dataclass(frozen=True)
class ESDConfig(TrainingConfig):
    """Parameters of ESD, defaults of the paper; a wrong value raises `UsageError` naming the choices."""

    variant: str = "x"
    """What is trained: x (cross-attention), x-strict (its keys and values), u (all else), u-linear, self, full."""
    eta: float = 1.0
    """The paper's erasing strength; 0 maps the target to the anchor. The authors' later code calls eta + 1 strength."""
    host: str = ""
    """A concept to remove the target from, as an attribute ("cowboy" for the target "hat"); empty: none."""
    guidance: float = 3.0
    """Classifier-free guidance of the latents' sampling."""
    sampling_steps: int = 50
    """S: the steps of a whole sampling run; each training step makes k of 0..S-1 of them."""
    sampler: str = "student"
    """Who draws the latents: student (the paper) or frozen (the authors' later code)."""
    folder: LocalPath = ""
    """A folder of memorised images, noised in place of latents that are drawn: the target is their caption; empty: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, tuple(VARIANTS))
        check_choice("sampler", self.sampler, ("student", "frozen"))
        check_range("eta", self.eta, low=-1, high=1e3)
        check_range("guidance", self.guidance, high=1e3)
        check_range("sampling_steps", self.sampling_steps, low=1, high=1e6)
        if self.host and self.folder:
            raise UsageError("host and folder exclude each other, as each decides what is looked at: leave one away")

    def last_resort(self) -> str:
        """As `TrainingConfig.last_resort`: the variant that trains the fewest weights."""
        return super().last_resort() if self.variant == "x-strict" else "set variant=x-strict"


class ESD:
    """The denoiser, trained against itself to steer away from the targets. Deterministic for the request's seed.

    What is retained is not a part of the objective: it is measured. The edit holds full differences.
    """

    name: ClassVar[str] = "esd"
    title: ClassVar[str] = "Erased Stable Diffusion"
    paper: ClassVar[str] = "arXiv 2303.07345"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        "object": Preset("objects and nudity as in the paper: all but the cross-attention", {"variant": "u"}),
        "rewrite": Preset("the authors' later code for SD v1.4: few steps, a high rate, latents of the frozen model",
                          {"steps": 200, "rate": 5e-5, "sampler": "frozen"}),
    }  # fmt: skip
    Config: ClassVar[type[ESDConfig]] = ESDConfig

    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: ESDConfig,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> Edit:
        """An edit of the variant's modules; the model is left bitwise as it was.

        `checkpoint`: a file or folder for the run's state, from which a run that was ended goes on. Raises
        `UsageError` for a family that ESD does not take, `TrainingError` where training cannot go on.
        """
        check_family(ESD, backbone)
        with _bench(backbone, request, config) as bench:
            memory = memorised(bench, config.folder, progress or silent)
            curve = bench.train(lambda step: loss(bench, config, step, memory), method=self.name, checkpoint=checkpoint,
                                progress=progress or silent, data=memory.data if memory else "")  # fmt: skip
            ops = settle(bench.student)
            residual, drift = measure(bench, config, memory)
            idle = ["esd does not hold on to what is retained: its drift is measured, nothing keeps it small"]
            return finish(bench, ops, changes(bench, ops), curve, method=self.name, parameters=recorded(config),
                          residual=residual, drift=drift, warnings=idle * bool(request.retain))  # fmt: skip

    def plan(self, backbone: Backbone, request: EraseRequest, config: ESDConfig) -> Plan:
        """What a run would train and need; nothing is written, the model is left as it was."""
        check_family(ESD, backbone)
        with _bench(backbone, request, config) as bench:
            target, anchor = request.targets[0], request.anchors[0]
            sampled = 0 if memorised(bench, config.folder, silent) else (config.sampling_steps - 1) / 2
            return estimate(bench, method=self.name, what=f"variant {config.variant}", prompt=target,
                            sampled=sampled, teachers=len(_asked(target, anchor, config)))  # fmt: skip


def loss(bench: Bench[Student], config: ESDConfig, step: Step, memory: Memorised | None = None) -> Tensor:
    """The loss of one batch: its target, level and noise are drawn from the step."""
    draw, noise = step.generator("level"), bench.noise(step.generator("noise"))
    i = int(torch.randint(len(bench.request.targets), (), generator=draw))
    latents, timestep = memory.drawn(bench, i, noise, draw) if memory else _sampled(bench, config, i, noise, draw)
    wanted, _ = teacher(bench, config, i, latents, timestep)
    with bench.student.active():
        text = bench.text(_host(bench, config, i)).expand(len(latents), -1, -1)
        return losses.squared_error(bench.denoise(latents, timestep, text), wanted)


def _sampled(
    bench: Bench[Student], config: ESDConfig, i: int, noise: Tensor, draw: torch.Generator
) -> tuple[Tensor, float]:
    """Latents of target i (or its host) after a random number of sampling steps, and the timestep of their level."""
    k = int(torch.randint(config.sampling_steps, (), generator=draw))
    with bench.student.active() if config.sampler == "student" else nullcontext():
        return bench.latents(noise, _host(bench, config, i), k, guidance=config.guidance)


def teacher(
    bench: Bench[Student], config: ESDConfig, i: int, latents: Tensor, timestep: float
) -> tuple[Tensor, Tensor]:
    """What the student should predict for target i, and what the frozen model does predict."""
    target, anchor = bench.request.targets[i], bench.request.anchors[i]
    asked = _asked(target, anchor, config)
    found = dict(zip(asked, bench.predictions(latents, timestep, asked), strict=True))
    host = found[asked[0]]
    return losses.negative_guidance(host, found[target], found[anchor], eta=config.eta), host


@torch.no_grad()
def measure(bench: Bench[Student], config: ESDConfig, memory: Memorised | None = None) -> tuple[float, float | None]:
    """(residual, drift) half-way through sampling, on noise that training did not see: how far the student is from
    what was asked, relative to how far the model was; how far it moved on what is retained, relative to its output."""
    far, before, moved, size = 0.0, 0.0, 0.0, 0.0
    for i in spread(len(bench.request.targets)):
        latents, timestep = memory.probe(bench, i) if memory else _probe(bench, config, _host(bench, config, i), i)
        wanted, host = teacher(bench, config, i, latents, timestep)
        far += energy(_student(bench, latents, timestep, _host(bench, config, i)) - wanted)
        before += energy(host - wanted)
    for i in spread(len(bench.request.retain)):
        latents, timestep = _probe(bench, config, bench.request.retain[i], i)
        (own,) = bench.predictions(latents, timestep, [bench.request.retain[i]])
        moved += energy(_student(bench, latents, timestep, bench.request.retain[i]) - own)
        size += energy(own)
    return (far / max(before, 1e-30)) ** 0.5, relative_drift(moved, size)


def _bench(backbone: Backbone, request: EraseRequest, config: ESDConfig):  # noqa: ANN202 - a context manager
    retained = [request.retain[i] for i in spread(len(request.retain))]
    prompts = [*request.targets, *request.anchors, config.host, *retained]
    return opened(backbone, request, config, student=weights(VARIANTS[config.variant]), prompts=prompts,
                  sampling_steps=config.sampling_steps)  # fmt: skip


def _host(bench: Bench[Student], config: ESDConfig, i: int) -> str:
    return config.host or bench.request.targets[i]


def _asked(target: str, anchor: str, config: ESDConfig) -> list[str]:
    """The prompts that the teacher is asked for, the host first."""
    return list(dict.fromkeys([config.host or target, target, anchor]))


def _probe(bench: Bench[Student], config: ESDConfig, prompt: str, i: int) -> tuple[Tensor, float]:
    noise = bench.noise(generator(bench.request.seed, "probe", i), 1)
    return bench.latents(noise, prompt, config.sampling_steps // 2, guidance=config.guidance)


def _student(bench: Bench[Student], latents: Tensor, timestep: float, prompt: str) -> Tensor:
    with bench.student.active():
        return bench.predictions(latents, timestep, [prompt])[0]
