"""MACE's second stage (arXiv 2403.06135): the loss of one concept's LoRA, and its training. `mace` has the symbols."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from erasekit.errors import UsageError
from erasekit.fingerprint import parts_sha256
from erasekit.methods import Progress
from erasekit.methods._mace_concept import Concept, ConceptCheckpoint
from erasekit.methods._templates import listed
from erasekit.methods.mace_refine import Refinement
from erasekit.training.bench import Bench
from erasekit.training.checkpoint import Checkpoint
from erasekit.training.latents import noised
from erasekit.training.loop import Step, generator, train
from erasekit.training.lora import LoRA
from erasekit.training.maps import grid, maps, resized

if TYPE_CHECKING:
    from erasekit.methods.mace import MACEConfig


def loss(bench: Bench[LoRA], config: MACEConfig, concept: Concept, step: Step) -> Tensor:
    """The loss of one batch: its pictures, sentence, timestep and noise are drawn from the step."""
    pictures, draw = concept.pictures(), step.generator("draw")
    picked = torch.randint(len(pictures.latents), (config.batch,), generator=draw).to(bench.denoise.device)
    sentence = int(torch.randint(len(concept.text), (), generator=draw))
    trained = bench.schedule.trained
    timestep = trained[int(torch.multinomial(timesteps(config, trained), 1, generator=draw))]
    noise = bench.noise(step.generator("noise"))
    latents = noised(pictures.latents[picked], noise, bench.schedule.level(timestep))
    with bench.student.active(), maps(bench.denoise.unet) as found:
        bench.denoise(latents, timestep, concept.text[sentence].expand(config.batch, -1, -1))
    return attention(
        found.values(), pictures.masks[picked], concept.tokens[sentence], squared=config.variant == "paper"
    )


def attention(
    probabilities: Iterable[Float[Tensor, "b heads positions tokens"]],
    masks: Bool[Tensor, "b h w"],
    tokens: Sequence[int],
    *,
    squared: bool,
) -> Float[Tensor, ""]:
    """The (squared) Frobenius norms of the maps inside the masks at some tokens, summed over the layers, mean over the
    batch. An empty mask gives zero. Source: arXiv 2403.06135, its second stage; the released code does not square."""
    total = torch.zeros((), device=masks.device)
    for probability in probabilities:
        inside = resized(masks, grid(probability.shape[2], (masks.shape[1], masks.shape[2]))).flatten(1)
        part = (probability[..., list(tokens)] * inside[:, None, :, None]).flatten(1)
        # vector_norm has gradient zero at zero, a square root has none.
        total = total + (part.square().sum(1) if squared else torch.linalg.vector_norm(part, dim=1)).mean()
    return total


def timesteps(config: MACEConfig, trained: Sequence[float]) -> Float[Tensor, " n"]:
    """The probability of each of the n trained timesteps: xi(t) of `mace`'s docstring, or all alike.
    Raises `UsageError` where t1 and t2 leave none of the model's."""
    t = torch.tensor(trained, dtype=torch.float64)
    if not config.focus:
        return torch.full_like(t, 1 / len(t))
    density = torch.sigmoid(config.slope * (t - config.t1)) - torch.sigmoid(config.slope * (t - config.t2))
    if not float(density.sum()) > 0:
        raise UsageError(f"t1={config.t1:g} and t2={config.t2:g} are outside the model's {len(t)} timesteps: set them inside, "
                         "or focus=false")  # fmt: skip
    return density / density.sum()


def trained(
    bench: Bench[LoRA], config: MACEConfig, concept: Concept, number: int, found: Refinement, place: Path | None,
    progress: Progress,
) -> list[float]:  # fmt: skip
    """The second stage for one concept, from a fresh start or from its checkpoint."""
    many = len(bench.request.targets)
    bench.student.restart(generator(concept.seed, "start"))
    kept = ConceptCheckpoint.of(_state_at(place, bench, concept, found), number, concept) if place else None

    def report(done: int, total: int, what: str) -> None:
        progress(number * total + done, many * total, f"{what} for {concept.target!r}, {number + 1} of {many}")

    return train(bench.student.trained, lambda step: loss(bench, config, concept, step), config, seed=concept.seed,
                 active=bench.student.active, checkpoint=kept, progress=report)  # fmt: skip


def _state_at(place: Path, bench: Bench[LoRA], concept: Concept, found: Refinement) -> Checkpoint:
    added = {"retain": bench.request.retain, "captions": found.kept.record["captions_sha256"], "concept": concept.target,
             "images": concept.source.digest, "sentences": listed(concept.config.sentences)["sha256"]}  # fmt: skip
    read = {"autoencoder": parts_sha256({"vae": bench.backbone.autoencoder()})} if concept.source.images else {}
    return bench.state_at(place, "mace", added | read)
