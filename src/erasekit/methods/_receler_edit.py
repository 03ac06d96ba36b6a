"""What a fit of Receler (arXiv 2311.17717) leaves: the op, and what the erasers and the attack on them came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from erasekit.edit import Adapter
from erasekit.methods._receler_run import Concept, Run
from erasekit.training.loop import generator
from erasekit.training.losses import squared_error
from erasekit.training.probes import energy, relative_drift, spread

Teacher = Callable[[Run, Concept, Tensor, float | int], tuple[Tensor, Tensor, Tensor]]
"""(run, concept, latents, timestep) -> what is asked, the frozen prediction, and the mask."""


def settled(run: Run) -> Adapter:
    """The trained erasers as one op."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in run.bench.student.trained.items()}
    return Adapter("unet", "", "receler", tensors, {"rank": run.config.rank, "halves": run.config.halves})


@torch.no_grad()
def measure(run: Run, teacher: Teacher) -> tuple[float, float | None, dict[str, float]]:
    """(residual, drift, updates) half-way through sampling, on noise that training did not see: how far the student is
    from what was asked, relative to how far the model was; how far it moved on what is retained, relative to its
    output; for each cross-attention the size of what is added, relative to what it puts out."""
    bench, far, before = run.bench, 0.0, 0.0
    sizes: dict[str, list[float]] = {path: [0.0, 0.0] for path in bench.student.attentions}
    for i in spread(len(run.concepts)):
        latents, timestep = _probe(run, run.concepts[i].text, i)
        wanted, own, _ = teacher(run, run.concepts[i], latents, timestep)
        with bench.student.active(), bench.student.watched() as seen:
            far += energy(run.read(i, latents, timestep) - wanted)
        before += energy(own - wanted)
        for path, pair in seen.items():
            sizes[path] = [sum(two) for two in zip(sizes[path], map(energy, pair), strict=True)]
    updates = {path: _ratio(pair[1], pair[0]) for path, pair in sizes.items()}
    return _ratio(far, before), _drift(run), updates


@torch.no_grad()
def attacks(run: Run, teacher: Teacher) -> list[dict[str, Any]]:
    """What the learned prompt of each measured concept does, there too: `size`, its root mean square; `loss`, L_A with
    it, and `loss_without`; `residual`, that of `measure` under it. Nothing without an attack."""
    found = []
    for i in spread(len(run.concepts)) if run.config.attacks else ():
        concept, prompt = run.concepts[i], run.attack.tensors[f"{i}.prompt"]
        latents, timestep = _probe(run, concept.text, i)
        wanted, own, _ = teacher(run, concept, latents, timestep)
        with run.bench.student.active():
            plain, under = run.read(i, latents, timestep), run.read(i, latents, timestep, prompt)
        found.append({
            "target": run.bench.request.targets[i], "size": float(prompt.square().mean().sqrt()),
            "loss": float(squared_error(under, own)), "loss_without": float(squared_error(plain, own)),
            "residual": _ratio(energy(under - wanted), energy(own - wanted)),
        })  # fmt: skip
    return found


def warnings(run: Run, found: Sequence[dict[str, Any]]) -> list[str]:
    """What does not stop a fit but matters: what is retained is idle, and an attack that brings nothing back."""
    idle = "receler does not train on what is retained: its drift is measured, locality alone keeps it small"
    inert = [line["target"] for line in found if not line["loss"] < line["loss_without"]]
    said = [idle] if run.bench.request.retain else []
    if inert:
        said.append(f"the learned prompt does not bring back {', '.join(inert[:3])}{' and others' * (len(inert) > 3)}: the "
                    "erasers were not trained against an attack there; lower attack_decay, or raise attack_rate")  # fmt: skip
    return said


def _drift(run: Run) -> float | None:
    bench, moved, size = run.bench, 0.0, 0.0
    for i in spread(len(bench.request.retain)):
        prompt = bench.request.retain[i]
        latents, timestep = _probe(run, prompt, i)
        (own,) = bench.predictions(latents, timestep, [prompt])
        with bench.student.active():
            moved += energy(bench.predictions(latents, timestep, [prompt])[0] - own)
        size += energy(own)
    return relative_drift(moved, size)


def _probe(run: Run, prompt: str, i: int) -> tuple[Tensor, float]:
    noise = run.bench.noise(generator(run.bench.request.seed, "probe", i), 1)
    return run.bench.latents(noise, prompt, run.config.sampling_steps // 2, guidance=run.config.guidance)


def _ratio(part: float, whole: float) -> float:
    return (part / max(whole, 1e-30)) ** 0.5
