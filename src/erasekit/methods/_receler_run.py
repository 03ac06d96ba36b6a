"""What one fit of Receler (arXiv 2311.17717) works with: the concepts, the bench with the erasers, the learned prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.errors import TrainingError, UsageError
from erasekit.training.bench import Bench, opened
from erasekit.training.erasers import Erasers, SoftPrompts, inserted
from erasekit.training.probes import spread

if TYPE_CHECKING:
    from erasekit.methods.receler import RecelerConfig


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

    def read(self, i: int, latents: Tensor, timestep: float, prompt: Tensor | None = None) -> Tensor:
        """The prediction under concept i, with a learned prompt inserted after its last token where one is given."""
        concept = self.concepts[i]
        text = self.bench.text(concept.text)
        if prompt is not None:
            text = inserted(text, prompt, concept.tokens.stop)
        return self.bench.denoise(latents, timestep, text.expand(len(latents), -1, -1))

    @torch.no_grad()
    def require_sound_prompt(self, i: int, latents: Tensor, timestep: float) -> None:
        """After a loss that is no number. Raises `TrainingError` naming attack_rate where concept i's learned prompt made
        it so: where the erasers give numbers without it. All else is the loop's to say."""
        with self.bench.student.active():
            plain = self.read(i, latents, timestep)
        if self.config.attacks and bool(plain.isfinite().all()):
            raise TrainingError(f"the learned prompt of {self.concepts[i].text[:60]!r} breaks the model: lower attack_rate "
                                f"(now {self.config.attack_rate:g}), or raise attack_decay")  # fmt: skip


@contextmanager
def opened_run(backbone: Backbone, request: EraseRequest, config: RecelerConfig) -> Iterator[Run]:
    """Everything that a loss works with. The model is bitwise as it was afterwards."""
    found = concepts(backbone, request, config)
    retained = [request.retain[i] for i in spread(len(request.retain))]
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
    for text, end in zip(texts, tokens.ends, strict=True):
        _require_room(text, end, tokens.ids.shape[1], config)
    spans = [range(1, end) for end in tokens.ends]
    return [Concept(*found) for found in zip(texts, request.anchors, spans, strict=True)]


def _require_room(text: str, end: int, length: int, config: RecelerConfig) -> None:
    if end < 2:
        raise UsageError(f"the target {text!r} is nothing to the model's tokenizer: give a word that the model knows")
    if config.attacks and end + config.attack_rows > length:  # end is one more than the number of tokens
        raise UsageError(
            f"the target {text[:60]!r} has {end - 1} tokens, which with the {config.attack_rows} of the attack and the "
            f"first make more than the {length} that the model reads: set attack_rows={length - end} or attack_steps=0"
        )
