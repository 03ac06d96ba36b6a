"""What a method's loss works with: one denoiser that is teacher and student, its schedule, and the encoded prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from erasekit.adapters import beside
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import fingerprint
from erasekit.errors import EditError, ModelError
from erasekit.fingerprint import bytes_sha256, stored_sha256
from erasekit.layers import compiled_inside, unedited
from erasekit.methods import Progress
from erasekit.training.checkpoint import Checkpoint
from erasekit.training.latents import Schedule, partly_denoised
from erasekit.training.loop import Loss, memory_line, train
from erasekit.training.parameters import Trained, held
from erasekit.training.settings import TrainingConfig

T = TypeVar("T", bound=Trained)


class Denoiser:
    """The U-Net as a function: any dtype in, float32 (at least) out, under autocast where asked."""

    def __init__(self, unet: Any, precision: str) -> None:
        """`precision`: that of `TrainingConfig`, or "stored": as a pipeline computes, in the model's own dtype without
        autocast, for samples and not for gradients. Raises `ModelError` for a U-Net that reads more than latents, such as
        one for inpainting."""
        reads, gives = unet.config.in_channels, unet.config.out_channels
        if reads != gives:
            raise ModelError(f"methods that train need a text-to-image denoiser: this one reads {reads} channels and gives "
                             f"{gives}")  # fmt: skip
        self.unet = unet
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype
        self.autocast = precision == "bfloat16" or (precision == "model" and self.dtype == torch.float16)
        self.shape = (reads, *_sides(unet.config.sample_size))

    def __call__(self, latents: Tensor, timestep: float | Tensor, text: Tensor) -> Tensor:
        """The prediction for latents (b, c, h, w), one timestep or (b,) of them, and text (b, length, width)."""
        # Where gradients are asked for never float16: that of a learned text, or of what reads the text, underflows.
        text = text.to(torch.bfloat16 if self.autocast else self.dtype)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            found = self.unet(latents.to(self.dtype), timestep, encoder_hidden_states=text, return_dict=False)[0]
        return found.to(torch.promote_types(self.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Bench(Generic[T]):
    """One fit's tools. Outside `student.active()` the denoiser is the teacher."""

    backbone: Backbone
    request: EraseRequest
    config: TrainingConfig
    denoise: Denoiser
    student: T
    schedule: Schedule
    texts: dict[str, Tensor]
    prints: dict[str, dict[str, str]]

    def text(self, prompt: str) -> Tensor:
        """What the cross-attention reads for a prompt that was named on opening: (1, length, width)."""
        return self.texts[prompt]

    def noise(self, generator: torch.Generator, count: int | None = None) -> Tensor:
        """`count` (default: a batch) latents of pure noise, the same on every device."""
        size = (self.config.batch if count is None else count, *self.denoise.shape)
        return torch.randn(size, generator=generator).to(self.denoise.device)

    def latents(self, noise: Tensor, prompt: str, k: int, *, guidance: float) -> tuple[Tensor, float]:
        """The latents after k guided steps on the prompt, and the timestep of exactly their level."""
        found = partly_denoised(self.denoise, noise, self.text(prompt), self.text(""), schedule=self.schedule, k=k,
                                guidance=guidance)  # fmt: skip
        return found, self.schedule.timesteps[k]

    @torch.no_grad()
    def predictions(self, latents: Tensor, timestep: float, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """The predictions for the same latents under each prompt, without gradient, in one forward pass."""
        text = torch.cat([self.text(prompt).expand(len(latents), -1, -1) for prompt in prompts])
        return self.denoise(latents.repeat(len(prompts), 1, 1, 1), timestep, text).chunk(len(prompts))

    def train(
        self, loss: Loss, *, method: str, checkpoint: Path | None, progress: Progress,
        schedule: Callable[[int], float] = lambda step: 1.0, extra: Mapping[str, Tensor] = MappingProxyType({}),
        data: str = "",
    ) -> list[float]:  # fmt: skip
        """Train the student, from the checkpoint where there is one; the loss of every step. `schedule(step)`
        multiplies the learning rate; `extra` are tensors that the loss moves in place besides; `data` is a digest
        of what else decides the result: files, and the autoencoder that reads them."""
        added = {"data": data} if data else {}
        kept = self.state_at(checkpoint, method, added) if checkpoint else None
        return train(self.student.trained, loss, self.config, seed=self.request.seed, active=self.student.active,
                     schedule=schedule, checkpoint=kept, progress=progress, extra=extra)  # fmt: skip

    def state_at(self, place: Path, method: str, added: Mapping[str, Any]) -> Checkpoint:
        """Where the method keeps its state: the file of a run that differs in what `about` or `added` says is refused."""
        return Checkpoint.at(place, self.about(method) | dict(added), free=self.config.FREE)

    def about(self, method: str) -> dict[str, Any]:
        """All that decides the result of a run, for its checkpoint."""
        return {"method": method, "parameters": self.config.decisive(), "targets": self.request.targets,
                "anchors": self.request.anchors, "seed": self.request.seed, "base": self.base}  # fmt: skip

    @cached_property
    def base(self) -> str:
        """The sha256 of every tensor of the U-Net and the text encoder as stored, and of the noise levels. It reads all
        of them (4 GB for SD v1.4 in float32: seconds), once a bench."""
        parts = {"unet": self.denoise.unet, "text_encoder": self.backbone.text_encoder()}
        with unedited(parts["text_encoder"]):  # the U-Net is for as long as the bench is open
            found = stored_sha256(parts) | {"levels": bytes_sha256(self.schedule.alphas)}
        document = json.dumps([found, self.schedule.timesteps, self.schedule.prediction])
        return hashlib.sha256(document.encode()).hexdigest()


def at_hand(backbone: Backbone, then: str) -> Any:
    """The denoiser, which runs what is put on its modules; `ModelError`, telling how to `then` go on, for one that is
    offloaded or compiled in place."""
    unet = backbone.denoiser()
    if hasattr(unet, "_hf_hook"):
        raise ModelError(f"the pipeline is offloaded: call pipe.remove_all_hooks() and pipe.to(device), then {then}")
    if compiled_inside(unet):
        raise ModelError(f"the unet is compiled in place: load the pipeline again, {then}, and only then compile it")
    return unet


def ready(backbone: Backbone) -> Any:
    """The denoiser, to be trained on as it is. Raises as `at_hand` does, and `EditError` where the code of an edit stands
    beside it: that is no part of the weights that a new edit would record."""
    unet = at_hand(backbone, "train")
    if beside(unet):
        raise EditError("an edit that acts by code is applied to this pipeline: remove it, then train")
    return unet


@contextmanager
def opened(
    backbone: Backbone,
    request: EraseRequest,
    config: TrainingConfig,
    *,
    student: Callable[[nn.Module], T],
    prompts: Sequence[str],
    sampling_steps: int,
) -> Iterator[Bench[T]]:
    """The bench for training what `student(unet)` returns, with these prompts (the empty one is always there).

    Inside, the U-Net is without the changes of weights that are on it: they have no say in a new edit. The model is bitwise as
    it was afterwards, switches included, also after an exception. Raises as `ready` does,
    `ModelError` for a model that is not made for pictures from text, and, whatever is done inside, `TrainingError` naming
    what to lower where the GPU is full.
    """
    with memory_line(config.lighter()), _opened(backbone, request, config, student, prompts, sampling_steps) as bench:
        yield bench


@contextmanager
def _opened(
    backbone: Backbone, request: EraseRequest, config: TrainingConfig, student: Callable[[nn.Module], T],
    prompts: Sequence[str], sampling_steps: int,
) -> Iterator[Bench[T]]:  # fmt: skip
    unet = ready(backbone)
    denoise = Denoiser(unet, config.precision)
    schedule = Schedule.of(backbone.noise_schedule(), sampling_steps, flow=True)
    names = list(dict.fromkeys(["", *prompts]))
    encoded = backbone.encode(names)
    texts = {name: row[None].to(denoise.device, denoise.dtype) for name, row in zip(names, encoded, strict=True)}
    with unedited(unet), held(unet, recompute=config.recompute):
        trained = student(unet)
        prints = {f"unet/{module}": fingerprint(unet.get_parameter(f"{module}.weight")) for module in trained.modules}
        yield Bench(backbone, request, config, denoise, trained, schedule, texts, prints)


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
