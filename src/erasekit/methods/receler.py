"""Receler: reliable concept erasing via lightweight erasers (arXiv 2311.17717, ECCV 2024).

The model is frozen. Beside each cross-attention a small eraser is trained to subtract the concept from its output, only
where the picture attends to the concept, and so that learned prompts appended to the concept do not bring it back.

    E_l(h) = U_l gelu(D_l h + b_l) + b'_l                        beside cross-attention l:  h -> h + E_l(h)
    L_E    = mean (eps_E(z_t, e') - y)^2,     y = eps*(z_t, a) - eta [eps*(z_t, c) - eps*(z_t, a)]
    L_R    = mean over l of  sum (1 - M_l) mean_channels(E_l(h)^2) / (sum (1 - M_l) + 1e-9)     sums over positions
    L_A    = mean (eps_E(z_t, e') - eps*(z_t, c))^2               P lowers it, the erasers do not see it
    loss   = L_E + locality L_R                                   the erasers lower it

h (b, positions, d) cross-attention output; D_l (r, d), b_l (r), U_l (d, r), b'_l (d), U_l and b'_l zero at first; z_t
(b, channels, h, w) latents at timestep t; eps* the frozen prediction, eps_E that with erasers on; c, a (1, 77, width)
text features of concept and anchor (the paper's a is the empty prompt); e' is c with its K rows after the concept's last
token replaced by P (K, width), one learned P a concept; M_l (b, positions) in {0, 1} where the concept is attended to.

M: the frozen model's cross-attention probabilities on z_t and the bare concept, mean over heads, the concept's tokens and
the layers at 1/32 of the image's side (a quarter of the latents' side, 16 of 64; where no layer has that many positions
those nearest in ratio, the coarser of two as near), scaled to [0, 1] sample by sample, cut at tau; the nearest pixel's
value at every other resolution. A constant map says nothing of where: everything counts as inside.

One step: draw a concept of the list and k of 0..S-1; from fresh noise k DDIM steps on the concept, guidance 3, erasers
on; y and M from one pass of the frozen model; `attack_steps` times: e' from the present P, forward, one Adam step of P
down L_A (rate 0.1, L2 decay 0.1; P lives on from step to step); the last of these forward passes also gives L_E and L_R.
Only there do gradients reach the erasers: the passes before have them for P alone.

What differs from the released code: there P is never inserted (it is written into a temporary copy), which makes a run
ESD with erasers and L_R at fifty times the cost. `variant="released"` gives just that run's result, without the passes
that change nothing; it is the same as `attack_steps=0`. Here the latent's level and the evaluated timestep agree, the
sampler is DDIM on the model's own noise levels, what is trained is float32, and an anchor may be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from erasekit.adapters.receler import HALVES
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.methods import Preset, Progress, check_choice, check_family, check_range
from erasekit.methods._cross import silent
from erasekit.methods._receler_edit import attacks, measure, settled, warnings
from erasekit.methods._receler_run import Concept, Run, opened_run
from erasekit.training.erasers import attended, locality
from erasekit.training.loop import Step
from erasekit.training.losses import negative_guidance, squared_error
from erasekit.training.maps import maps
from erasekit.training.plan import Plan, estimate
from erasekit.training.result import finish, record
from erasekit.training.settings import TrainingConfig

I2P = "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood"


@dataclass(frozen=True)
class RecelerConfig(TrainingConfig):
    """Parameters of Receler, defaults of the paper; a wrong value raises `UsageError` naming the choices."""

    steps: int = 500
    """Optimiser steps of the erasers."""
    rate: float = 3e-4
    """Learning rate of the erasers."""
    variant: str = "paper"
    """paper: the learned prompts are part of what the erasers are trained on; released: they are not, as in the
    authors' code (the same result as attack_steps=0)."""
    rank: int = 128
    """r: the width inside an eraser."""
    eta: float = 1.0
    """Erasing strength; 0 maps the target to the anchor."""
    locality: float = 0.1
    """The weight of L_R: how much the erasers must leave alone what does not attend to the concept."""
    threshold: float = 0.1
    """tau: from what part of the largest attention on a position counts as the concept's."""
    attack_steps: int = 50
    """Adam steps of the learned prompt in each step, a forward and a backward pass each; 0: no attack, the cheap mode."""
    attack_rows: int = 16
    """K: the length of a learned prompt, in tokens."""
    attack_rate: float = 0.1
    """Learning rate of the learned prompts."""
    attack_decay: float = 0.1
    """L2 weight decay of the learned prompts."""
    halves: str = "both"
    """Where erasers act under classifier-free guidance: both halves of the batch (as released), or conditional."""
    prompt: str = ""
    """What is trained on in place of the one target's own name, such as a list of words; empty: the name."""
    guidance: float = 3.0
    """Classifier-free guidance of the latents' sampling."""
    sampling_steps: int = 50
    """S: the steps of a whole sampling run; each training step makes k of 0..S-1 of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, ("paper", "released"))
        check_choice("halves", self.halves, HALVES)
        for name in ("rank", "attack_rows", "sampling_steps"):
            check_range(name, getattr(self, name), low=1, high=1e6)
        check_range("eta", self.eta, low=-1, high=1e3)
        check_range("threshold", self.threshold, high=1)
        for name in ("locality", "attack_steps", "attack_rate", "attack_decay", "guidance"):
            check_range(name, getattr(self, name), high=1e9)

    def last_resort(self) -> str:
        """As `TrainingConfig.last_resort`: narrower erasers."""
        return f"lower rank (now {self.rank})" if self.rank > 1 else super().last_resort()

    @property
    def attacks(self) -> int:
        """How many attack steps each step really makes."""
        return self.attack_steps if self.variant == "paper" else 0


class Receler:
    """Erasers after every cross-attention, trained against learned prompts. Deterministic for the request's seed.

    What is retained is not a part of the objective: it is measured. The edit is code, not a change of weights: it
    applies and comes off, but cannot be fused or exported as a LoRA.
    """

    name: ClassVar[str] = "receler"
    title: ClassVar[str] = "Reliable Concept Erasing via Lightweight Erasers"
    paper: ClassVar[str] = "arXiv 2311.17717"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        "nudity": Preset("unsafe content: one target, trained on the eleven words of I2P (the released code)",
                         {"prompt": I2P}),
    }  # fmt: skip
    Config: ClassVar[type[RecelerConfig]] = RecelerConfig

    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: RecelerConfig,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> Edit:
        """An edit of one `Adapter` op with all erasers; the model is left bitwise as it was.

        `checkpoint`: a file or folder for the run's state (learned prompts included), from which a run that was ended
        goes on. Raises `UsageError` for a family that Receler does not take and for a concept that leaves no room for
        the learned prompt, `TrainingError` where training cannot go on.
        """
        check_family(Receler, backbone)
        with opened_run(backbone, request, config) as run:
            curve = run.bench.train(lambda step: loss(run, step), method=self.name, checkpoint=checkpoint,
                                    progress=progress or silent, extra=run.attack.tensors)  # fmt: skip
            residual, drift, updates = measure(run, teacher)
            attack = attacks(run, teacher)
            records = [record(run.bench, f"{path}.to_out.0", updates[path], config.rank) for path in sorted(updates)]
            return finish(run.bench, [settled(run)], records, curve, method=self.name, parameters=asdict(config),
                          residual=residual, drift=drift, warnings=warnings(run, attack),
                          numbers={"attack": attack})  # fmt: skip

    def plan(self, backbone: Backbone, request: EraseRequest, config: RecelerConfig) -> Plan:
        """What a run would train and need; nothing is written, the model is left as it was."""
        check_family(Receler, backbone)
        with opened_run(backbone, request, config) as run:
            return estimate(run.bench, method=self.name, what=f"erasers of rank {config.rank}, {config.attacks} attack steps",
                            prompt=run.concepts[0].text, sampled=(config.sampling_steps - 1) / 2, teachers=2,
                            learned=max(1, config.attacks))  # fmt: skip


def loss(run: Run, step: Step) -> Tensor:
    """The loss of one batch for the erasers: its concept, level and noise are drawn from the step. The concept's learned
    prompt has moved by `attack_steps` steps of its own afterwards."""
    bench, config, draw = run.bench, run.config, step.generator("level")
    i = int(torch.randint(len(run.concepts), (), generator=draw))
    k = int(torch.randint(config.sampling_steps, (), generator=draw))
    noise = bench.noise(step.generator("noise"))
    with bench.student.active(learning=False, halved=config.halves == "conditional" and config.guidance != 1):
        latents, timestep = bench.latents(noise, run.concepts[i].text, k, guidance=config.guidance)
    wanted, own, mask = teacher(run, run.concepts[i], latents, timestep)
    for _ in range(config.attacks - 1):
        with bench.student.active(learning=False):
            attacked(run, i, latents, timestep, own)
    with bench.student.active(), bench.student.watched() as seen:
        found = (
            attacked(run, i, latents, timestep, own, keep=True) if config.attacks else run.read(i, latents, timestep)
        )
        added = {path: added for path, (_, added) in seen.items()}
        value = squared_error(found, wanted) + config.locality * locality(added, mask)
    if not bool(value.detach().isfinite()):
        run.require_sound_prompt(i, latents, timestep)
    return value


def teacher(run: Run, concept: Concept, latents: Tensor, timestep: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, the frozen model's prediction under the concept, and the mask (b, h, w), from one pass of the frozen model."""
    with maps(run.bench.denoise.unet) as found:
        anchor, own = run.bench.predictions(latents, timestep, [concept.anchor, concept.text])
    read = [probabilities[len(latents) :] for probabilities in found.values()]
    mask = attended(read, concept.tokens, (latents.shape[2], latents.shape[3]), run.config.threshold)
    return negative_guidance(own, own, anchor, eta=run.config.eta), own, mask


def attacked(run: Run, i: int, latents: Tensor, timestep: float, own: Tensor, *, keep: bool = False) -> Tensor:
    """The prediction under concept i with its learned prompt, which has taken one step towards `own` (the frozen
    prediction) since. `keep`: the prediction is differentiated again."""
    prompt = run.attack.leaf(i)
    found = run.read(i, latents, timestep, prompt)
    (gradient,) = torch.autograd.grad(squared_error(found, own), prompt, retain_graph=keep)
    run.attack.move(i, gradient, rate=run.config.attack_rate, decay=run.config.attack_decay)
    return found
