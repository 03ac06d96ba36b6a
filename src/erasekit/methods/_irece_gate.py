"""IRECE's gate (arXiv 2512.22877): what the unedited model attends to on neutral latents, and what the edit then does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Guidance, fingerprint
from erasekit.errors import UsageError
from erasekit.guidances.irece import Defence
from erasekit.guidances.sampler import Moment
from erasekit.layers import original, unedited
from erasekit.methods import Progress
from erasekit.training.bench import Denoiser, at_hand
from erasekit.training.latents import Schedule, partly_denoised
from erasekit.training.loop import generator
from erasekit.training.maps import cross_attentions
from erasekit.training.parameters import held, require_trainable
from erasekit.training.probes import energy, spread

if TYPE_CHECKING:
    from erasekit.methods.irece import IRECEConfig

BATCH = 8
"""Latents that are denoised together."""
READ = ("to_q", "to_k")


@dataclass(frozen=True, eq=False)
class Bench:
    """One fit's tools: the unedited denoiser, its schedule, the encoded prompts, the fingerprints of what is read."""

    backbone: Backbone
    request: EraseRequest
    config: IRECEConfig
    denoise: Denoiser
    schedule: Schedule
    texts: dict[str, Tensor]
    prints: dict[str, dict[str, str]]

    @property
    def kept(self) -> list[str]:
        """Some of what is retained: what is measured on, and part of the neutral."""
        return kept(self.request)

    def sentence(self, target: str) -> str:
        """What the unedited model is given for a target."""
        return self.config.template.replace("{}", target)

    def latents(self, prompts: Sequence[str], use: str) -> Iterator[tuple[Tensor, Moment]]:
        """Latents of these prompts, one each, at every point of `at` in turn, with where they are."""
        draws = [generator(self.request.seed, "irece", use, j) for j in range(len(prompts))]
        found = torch.stack([torch.randn(self.denoise.shape, generator=draw) for draw in draws]).to(self.denoise.device)
        times, reached = self.schedule.timesteps, 0
        for share in self.config.at:
            index = min(round(share * len(times)), len(times) - 1)
            found = self._onward(found, prompts, reached, index)
            reached = index
            yield found, Moment(index, len(times), times[index], self.schedule.level(times[index]), 1.0,
                                self.schedule.prediction, tuple(f"{use} {j}" for j in range(len(prompts))))  # fmt: skip

    def _onward(self, latents: Tensor, prompts: Sequence[str], start: int, end: int) -> Tensor:
        """The latents, which are before step `start`, before step `end`."""
        rest = replace(self.schedule, timesteps=self.schedule.timesteps[start:])
        text = torch.cat([self.texts[prompt] for prompt in prompts])
        parts = [partly_denoised(self.denoise, *part, self.texts[""], schedule=rest, k=end - start,
                                 guidance=self.config.guidance)
                 for part in zip(latents.split(BATCH), text.split(BATCH), strict=True)]  # fmt: skip
        return torch.cat(parts)


@contextmanager
def opened(backbone: Backbone, request: EraseRequest, config: IRECEConfig) -> Iterator[Bench]:
    """The bench; the model is unedited inside and as it was afterwards. Raises as `at_hand` does, and
    `ModelError` for NaN in a cross-attention."""
    names = list(dict.fromkeys(["", *request.targets, *(config.template.replace("{}", t) for t in request.targets),
                                *kept(request)]))  # fmt: skip
    encoded = backbone.encode(names)
    unet = at_hand(backbone, "fit")
    denoise = Denoiser(unet, "model")
    texts = {name: row[None].to(denoise.device, denoise.dtype) for name, row in zip(names, encoded, strict=True)}
    with held(unet), unedited(unet):
        prints: dict[str, dict[str, str]] = {}
        for path, attention in cross_attentions(unet).items():
            for name, tensor in attention.named_parameters():
                require_trainable(f"{path}.{name}", tensor)
            prints |= {f"unet/{path}.{name}": fingerprint(original(getattr(attention, name))) for name in READ}
        schedule = Schedule.of(backbone.noise_schedule(), config.sampling_steps)
        yield Bench(backbone, request, config, denoise, schedule, texts, prints)


def tokens(backbone: Backbone, sentence: str, target: str) -> list[int]:
    """The positions of the target's own tokens in its sentence. Raises `UsageError` for a sentence without the target."""
    if sentence == target:
        return list(range(1, backbone.tokenize([sentence]).ends[0]))
    found = [position for span in backbone.concept_spans(sentence, target) for position in span]
    if not found:
        raise UsageError(f"the template does not name the target in {sentence!r}: put {{}} where it stands")
    return found


@torch.no_grad()
def calibrated(bench: Bench, op: Guidance, progress: Progress) -> Float[Tensor, "targets points"]:
    """The mass above which the gate of each target opens at each point."""
    neutral = ["", *bench.kept]
    prompts = [neutral[j % len(neutral)] for j in range(bench.config.samples)]
    defence, count = Defence(lambda: bench.denoise.unet, op), len(bench.request.targets)
    points: list[list[float]] = []
    for latents, moment in bench.latents(prompts, "neutral"):
        found = [masses(defence, latents, moment, i) for i in range(count)]
        points.append([threshold(mass, bench.config.margin) for mass in found])
        progress(len(points), len(bench.config.at), "calibrating the gate")
    return torch.tensor(points).T.contiguous()


def kept(request: EraseRequest) -> list[str]:
    """At most `PROBES` of what is retained."""
    return [request.retain[i] for i in spread(len(request.retain))]


def masses(defence: Defence, latents: Tensor, moment: Moment, i: int) -> Float[Tensor, " b"]:
    """How much of the attention goes to target i, the mean over positions."""
    parts = [defence.look(part, moment.timestep, i)[0].mean((1, 2)) for part in latents.split(BATCH)]
    return torch.cat(parts).cpu()


def threshold(neutral: Float[Tensor, " b"], margin: float) -> float:
    """mean + margin * standard deviation (of the sample, n - 1)."""
    return float(neutral.double().mean() + margin * neutral.double().std())


@torch.no_grad()
def measured(bench: Bench, op: Guidance) -> dict[str, Any]:
    """The self-check, on latents that the gate was not calibrated on.

    `residual`: the share of the targets' own latents at which nothing happens at any point; `relative_update` and
    `retained_drift`: how far the targets' and the retained latents move at a point, relative to their size.
    """
    defence, request, samples = Defence(lambda: bench.denoise.unet, op), bench.request, bench.config.samples
    closed, moved, lines = 0, [0.0, 0.0], []
    for target in request.targets:
        shut, far, size = _acted(bench, defence, [target] * samples, f"target {target}")
        lines.append({"target": target, "opened": 1 - shut / samples, "moved": _ratio(far, size)})
        closed, moved = closed + shut, [moved[0] + far, moved[1] + size]
    stay = [bench.kept[j % len(bench.kept)] for j in range(samples * bool(bench.kept))]
    shut, far, size = _acted(bench, defence, stay, "retained") if stay else (0, 0.0, 0.0)
    residual = closed / (samples * len(request.targets))
    return {
        "modules": 0, "residual": residual, "residual_before_cast": residual, "relative_update": _ratio(*moved),
        "retained_drift": _ratio(far, size) if stay else None, "sites": [], "warnings": warnings(bench, lines), "gate": lines,
        "retained_opened": 1 - shut / samples if stay else None,
    }  # fmt: skip


def warnings(bench: Bench, lines: Sequence[dict[str, Any]]) -> list[str]:
    """What does not stop a fit but matters."""
    closed = [line["target"] for line in lines if not line["opened"]]
    said = ["irece acts while sampling and defends a service: whoever holds the unedited weights can leave it out"]
    if any(bench.request.anchors):
        said.append("irece puts nothing in the target's place: the anchor has no part in it")
    if closed:
        said.append(f"the gate stays closed on the latents of {', '.join(closed[:3])}{' and others' * (len(closed) > 3)}: "
                    "lower margin, or set gate=off")  # fmt: skip
    return said


def _acted(bench: Bench, defence: Defence, prompts: Sequence[str], use: str) -> tuple[int, float, float]:
    """(how many of the prompts' latents nothing happened to, how far they all moved, their size), both squared."""
    far, size, moved = 0.0, 0.0, torch.zeros(len(prompts), dtype=torch.bool)
    for latents, moment in bench.latents(prompts, use):
        parts = [defence(latents[i : i + BATCH], replace(moment, rows=moment.rows[i : i + BATCH]))
                 for i in range(0, len(prompts), BATCH)]  # fmt: skip
        change = torch.cat(parts) - latents
        moved |= change.flatten(1).any(1).cpu()
        far, size = far + energy(change), size + energy(latents)
    return int((~moved).sum()), far, size


def _ratio(part: float, whole: float) -> float:
    return (part / max(whole, 1e-30)) ** 0.5
