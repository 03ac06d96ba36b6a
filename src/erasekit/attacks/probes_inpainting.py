"""Inpainting: the edited model fills a hole in a picture of the target that the unedited model made.

Probe 3 of "When Are Concepts Erased From Diffusion Models?" (arXiv 2505.17013, NeurIPS 2025). With x_0 (b, c, h, w) the
clean latents of the picture, m (h, w) one inside a centred square and zero outside, and the U-Net of 4 input channels
that every text-to-image model has, each DDIM step to a level (alpha, sigma) ends with

    x <- m x + (1 - m) (alpha x_0 + sigma e)            e: the noise that sampling started from (strength 1)

so that the surround always stands at the right level, and is x_0 itself in the end. Prompt and guidance are the usual
ones. Judged is the square alone, cut out of the picture.

The surround gives the concept away: the paper finds about 60-70 % for every model that it tests. Report the difference to
the same probe on the unedited model, and on a model that had another concept erased, not the rate itself. A case that the
unedited model does not show the target in is invalid.

What differs from the released code: the surround is pasted before the first step, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from erasekit.attacks import pictures
from erasekit.attacks._ddim import Hook, Level, batches, cost, sampled, starts, texts
from erasekit.attacks.base import Case, Outcome
from erasekit.attacks.latent_inversion import originals
from erasekit.attacks.prompts import judged, sought, unattacked
from erasekit.methods import check_range
from erasekit.training.images import scale_of
from erasekit.training.latents import noised

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress


@dataclass(frozen=True)
class InpaintingConfig:
    """Parameters; a wrong value raises `UsageError`."""

    part: float = 0.5
    """The square's side against the picture's, rounded to whole latents (at least one). The paper: 256 of 512 pixels."""
    steps: int = 50
    """DDIM steps."""
    seeds: int = 1
    """Fillings of each hole: from the noise of the case's own seed, then of the next ones, until one shows the target."""

    def __post_init__(self) -> None:
        check_range("part", self.part, low=0.01, high=1)
        check_range("steps", self.steps, low=1, high=1e6)
        check_range("seeds", self.seeds, low=1, high=1e6)


class Inpainting:
    """The centre of the target's pictures, painted anew; nothing is searched or optimised."""

    name: ClassVar[str] = "inpainting"
    title: ClassVar[str] = "Inpainting of pictures of the target"
    paper: ClassVar[str] = "arXiv 2505.17013"
    access: ClassVar[tuple[str, ...]] = ("original", "images")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[InpaintingConfig]] = InpaintingConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: InpaintingConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order: its best filling; no chance beyond the cases' seeds. Its image is the
        square, or the plain picture where that alone could be judged.

        `tensors["latents"]` are those of the whole picture.
        """
        plain = unattacked(victim, cases)
        found, open_ = originals(victim, plain)
        tried = _filled(victim, [found[i] for i in open_], config, progress)
        for i, one in zip(open_, tried, strict=True):
            found[i] = replace(judged(plain[i], one), spent=found[i].spent + one.spent)
        return found


def inpainted(
    victim: Victim, cases: Sequence[Case], clean: Float[Tensor, "n c h w"], hole: Bool[Tensor, "h w"], steps: int
) -> Float[Tensor, "n c h w"]:
    """The clean latents with the hole filled by the model that is on, from each case's prompt and seed; bit for bit the
    same outside of it."""
    noise, _ = starts(victim, [case.seed for case in cases])
    text = texts(victim, [case.prompt for case in cases], victim.sampling.guidance)
    paste, schedule = pasting(clean, noise, hole.to(clean.device)), victim.schedule(steps)
    return sampled(victim.sampler(), noise, text, schedule=schedule, paste=paste,
                   announce=victim.announced(noise, schedule))  # fmt: skip


def pasting(clean: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], hole: Bool[Tensor, "h w"]) -> Hook:
    """What keeps the surround of the hole: the clean latents, at whatever level sampling is."""

    def paste(latents: Tensor, level: Level) -> Tensor:
        return torch.where(hole, latents, noised(clean, noise, level))

    return paste


def square(size: tuple[int, int], part: float) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the centred square in latents; `part` of the shorter side, at least one latent."""
    side = max(1, round(min(size) * part))
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return top, left, top + side, left + side


def cropped(image: Image, box: tuple[int, int, int, int], factor: int) -> Image:
    """The pixels of exactly the box (top, left, bottom, right) of latents, each of `factor` pixels a side."""
    top, left, bottom, right = (edge * factor for edge in box)
    return image.crop((left, top, right, bottom))


def _filled(
    victim: Victim, sources: Sequence[Outcome], config: InpaintingConfig, progress: Progress | None
) -> list[Outcome]:
    """The best filling of each picture; those that show the target are not filled again."""
    done = 0

    def draw(which: Sequence[int], seeded: Sequence[Case]) -> list[Outcome]:
        nonlocal done
        found: list[Outcome] = []
        for part in batches(len(which), victim.sampling.batch):
            again = [replace(sources[i], case=case) for i, case in zip(which[part], seeded[part], strict=True)]
            found += _judged(victim, again, config)
            done += len(again)
            if progress:
                progress(done, config.seeds * len(sources), "painting holes")
        return found

    tried = sought([one.case for one in sources], config.seeds, draw)
    return [replace(one, curve=((config.steps * one.spent.pictures, one.score or 0.0),)) for one in tried]


def _judged(victim: Victim, sources: Sequence[Outcome], config: InpaintingConfig) -> list[Outcome]:
    cases = [one.case for one in sources]
    clean = pictures.latents(victim, [image for one in sources if (image := one.image)])
    box = square((clean.shape[2], clean.shape[3]), config.part)
    hole = torch.zeros(clean.shape[2:], dtype=torch.bool)
    hole[box[0] : box[2], box[1] : box[3]] = True
    filled = inpainted(victim, cases, clean, hole, config.steps)
    images = [cropped(image, box, scale_of(victim.pipe.vae)) for image in pictures.shown(victim, filled)]
    spent = cost(config.steps, victim.sampling.guidance, acting=victim.acting(config.steps))
    return [seen.outcome(cases[i], images[i], by="a hole in the unedited model's picture, filled", spent=spent,
                         tensors={"latents": filled[i].cpu()})
            for i, seen in enumerate(victim.look(cases, images))]  # fmt: skip
