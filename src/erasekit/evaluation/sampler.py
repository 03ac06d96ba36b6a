"""Images by prompt and seed: the same pair gives the same picture, whatever it is batched with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erasekit.errors import ModelError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Shot:
    """One image to draw."""

    prompt: str
    seed: int


def shots(prompts: Sequence[str], seeds: Sequence[int]) -> list[Shot]:
    """Every prompt with every seed, prompt by prompt."""
    return [Shot(prompt, seed) for prompt in prompts for seed in seeds]


def sample(
    pipe: Any, work: Sequence[Shot], *, steps: int, guidance: float, batch: int = 16
) -> Iterator[tuple[Shot, Image.Image]]:
    """Each shot with its PIL image, in order, as batches of `batch` finish.

    Every image has a `torch.Generator` of its own, seeded on the CPU, so it depends on prompt, seed, steps, guidance
    and the model only (up to the float rounding of another batch size). Raises `ModelError` where images are not finite.
    """
    import torch

    for start in range(0, len(work), batch):
        part = work[start : start + batch]
        generators = [torch.Generator("cpu").manual_seed(shot.seed) for shot in part]
        with torch.no_grad():
            images = pipe(
                [shot.prompt for shot in part], generator=generators, num_inference_steps=steps,
                guidance_scale=guidance, output_type="pt",
            ).images  # fmt: skip
        if not torch.isfinite(images).all():
            raise ModelError("the model drew images that are not finite numbers: load it in float32 (--dtype float32)")
        yield from zip(part, pipe.image_processor.numpy_to_pil(images.permute(0, 2, 3, 1).float().cpu().numpy()),
                       strict=True)  # fmt: skip
