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

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasekit.adapters.receler import HALVES
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Adapter, Edit
from erasekit.errors import UsageError
from erasekit.methods import Preset, Progress, check_choice, check_family, check_range
from erasekit.methods._cross import silent
from erasekit.training.bench import Bench, opened
from erasekit.training.erasers import Erasers, SoftPrompts, attended, inserted, locality
from erasekit.training.loop import Step, generator
from erasekit.training.losses import negative_guidance, squared_error
from erasekit.training.maps import maps
from erasekit.training.plan import Plan, estimate
from erasekit.training.result import finish, record
from erasekit.training.settings import TrainingConfig

I2P = "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood"
PROBES = 8  # at most so many targets, and so many of what is retained, are measured after training


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
            residual, drift, updates = measure(run)
            records = [record(run.bench, f"{path}.to_out.0", updates[path], config.rank) for path in sorted(updates)]
            idle = ["receler does not train on what is retained: its drift is measured, locality alone keeps it small"]
            return finish(run.bench, [settled(run)], records, curve, method=self.name, parameters=asdict(config),
                          residual=residual, drift=drift, warnings=idle * bool(request.retain))  # fmt: skip

    def plan(self, backbone: Backbone, request: EraseRequest, config: RecelerConfig) -> Plan:
        """What a run would train and need; nothing is written, the model is left as it was."""
        check_family(Receler, backbone)
        with opened_run(backbone, request, config) as run:
            return estimate(run.bench, method=self.name, what=f"erasers of rank {config.rank}, {config.attacks} attack steps",
                            prompt=run.concepts[0].text, sampled=(config.sampling_steps - 1) / 2, teachers=2,
                            learned=max(1, config.attacks))  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """What is trained on for one target: a text, its anchor, and the positions of its own tokens (BOS is 0)."""

    text: str
    anchor: str
    tokens: range


@dataclass(frozen=True, eq=False)
class Run:
    """One fit: the bench with the erasers, the concepts, and the learned prompts that attack them."""

    bench: Bench[Erasers]
    config: RecelerConfig
    concepts: list[Concept]
    attack: SoftPrompts


@contextmanager
def opened_run(backbone: Backbone, request: EraseRequest, config: RecelerConfig) -> Iterator[Run]:
    """Everything that `loss` works with. The model is bitwise as it was afterwards."""
    found = concepts(backbone, request, config)
    retained = [request.retain[i] for i in _spread(len(request.retain))]
    prompts = [text for concept in found for text in (concept.text, concept.anchor)] + retained

    def student(unet: Any) -> Erasers:
        return Erasers(unet, rank=config.rank, seed=request.seed)

    with opened(backbone, request, config, student=student, prompts=prompts,
                sampling_steps=config.sampling_steps) as bench:  # fmt: skip
        attack = SoftPrompts(len(found) if config.attacks else 0, config.attack_rows, bench.text("").shape[2],
                             seed=request.seed, device=bench.denoise.device)  # fmt: skip
        yield Run(bench, config, found, attack)


def concepts(backbone: Backbone, request: EraseRequest, config: RecelerConfig) -> list[Concept]:
    """One concept a target. Raises `UsageError`: `prompt` with several targets; no token, or no room for the attack."""
    if config.prompt and len(request.targets) > 1:
        raise UsageError(f"prompt stands for one target, here are {len(request.targets)}: erase them one by one")
    texts = [config.prompt or target for target in request.targets]
    tokens = backbone.tokenize(texts)
    length = tokens.ids.shape[1]
    for text, end in zip(texts, tokens.ends, strict=True):
        if end < 2:
            raise UsageError(
                f"the target {text!r} is nothing to the model's tokenizer: give a word that the model knows"
            )
        if config.attacks and end + config.attack_rows > length:  # end is one more than the number of tokens
            raise UsageError(
                f"the target {text[:60]!r} has {end - 1} tokens, which with the {config.attack_rows} of the attack and the "
                f"first make more than the {length} that the model reads: set attack_rows={length - end} or attack_steps=0"
            )
    spans = [range(1, end) for end in tokens.ends]
    return [Concept(*found) for found in zip(texts, request.anchors, spans, strict=True)]


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
            attacked(run, i, latents, timestep, own, keep=True) if config.attacks else _read(run, i, latents, timestep)
        )
        erase = squared_error(found, wanted)
        return erase + config.locality * locality({path: added for path, (_, added) in seen.items()}, mask)


def teacher(run: Run, concept: Concept, latents: Tensor, timestep: int) -> tuple[Tensor, Tensor, Tensor]:
    """y, the frozen model's prediction under the concept, and the mask (b, h, w), from one pass of the frozen model."""
    with maps(run.bench.denoise.unet) as found:
        anchor, own = run.bench.predictions(latents, timestep, [concept.anchor, concept.text])
    read = [probabilities[len(latents) :] for probabilities in found.values()]
    mask = attended(read, concept.tokens, (latents.shape[2], latents.shape[3]), run.config.threshold)
    return negative_guidance(own, own, anchor, eta=run.config.eta), own, mask


def attacked(run: Run, i: int, latents: Tensor, timestep: int, own: Tensor, *, keep: bool = False) -> Tensor:
    """The prediction under concept i with its learned prompt, which has taken one step towards `own` (the frozen
    prediction) since. `keep`: the prediction is differentiated again."""
    prompt = run.attack.leaf(i)
    found = _read(run, i, latents, timestep, prompt)
    (gradient,) = torch.autograd.grad(squared_error(found, own), prompt, retain_graph=keep)
    run.attack.move(i, gradient, rate=run.config.attack_rate, decay=run.config.attack_decay)
    return found


@torch.no_grad()
def measure(run: Run) -> tuple[float, float, dict[str, float]]:
    """(residual, drift, updates) half-way through sampling, on noise that training did not see: how far the student is
    from what was asked, relative to how far the model was; how far it moved on what is retained, relative to its
    output; for each cross-attention the size of what is added, relative to what it puts out."""
    bench, far, before, moved, size = run.bench, 0.0, 0.0, 0.0, 0.0
    sizes: dict[str, list[float]] = {path: [0.0, 0.0] for path in bench.student.attentions}
    for i in _spread(len(run.concepts)):
        latents, timestep = _probe(run, run.concepts[i].text, i)
        wanted, own, _ = teacher(run, run.concepts[i], latents, timestep)
        with bench.student.active(), bench.student.watched() as seen:
            far += _energy(_read(run, i, latents, timestep) - wanted)
        before += _energy(own - wanted)
        for path, pair in seen.items():
            sizes[path] = [sum(two) for two in zip(sizes[path], map(_energy, pair), strict=True)]
    for i in _spread(len(bench.request.retain)):
        latents, timestep = _probe(run, bench.request.retain[i], i)
        (own,) = bench.predictions(latents, timestep, [bench.request.retain[i]])
        with bench.student.active():
            moved += _energy(bench.predictions(latents, timestep, [bench.request.retain[i]])[0] - own)
        size += _energy(own)
    return _ratio(far, before), _ratio(moved, size), {path: _ratio(pair[1], pair[0]) for path, pair in sizes.items()}


def settled(run: Run) -> Adapter:
    """The trained erasers as one op."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in run.bench.student.trained.items()}
    return Adapter("unet", "", "receler", tensors, {"rank": run.config.rank, "halves": run.config.halves})


def _read(run: Run, i: int, latents: Tensor, timestep: int, prompt: Tensor | None = None) -> Tensor:
    """The prediction under concept i, with a learned prompt inserted after its last token where one is given."""
    concept = run.concepts[i]
    text = run.bench.text(concept.text)
    if prompt is not None:
        text = inserted(text, prompt, concept.tokens.stop)
    return run.bench.denoise(latents, timestep, text.expand(len(latents), -1, -1))


def _probe(run: Run, prompt: str, i: int) -> tuple[Tensor, int]:
    noise = run.bench.noise(generator(run.bench.request.seed, "probe", i), 1)
    return run.bench.latents(noise, prompt, run.config.sampling_steps // 2, guidance=run.config.guidance)


def _energy(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _ratio(part: float, whole: float) -> float:
    return (part / max(whole, 1e-30)) ** 0.5


def _spread(count: int) -> range:
    """At most `PROBES` indices, evenly spread."""
    return range(0, count, max(1, -(-count // PROBES)))
