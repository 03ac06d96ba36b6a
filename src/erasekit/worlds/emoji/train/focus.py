"""Which drawings the denoiser gets wrong, and how often each shall be shown in the next stretch.

Scenes are drawn at random, so of the 660 drawings (an object in a style) some are named in seven training captions and
some in thirty; and some come out in another style from whatever noise, however often they are named. `run` asks the
denoiser for every drawing several times, lets the judge say how often what came was another one, and keeps a weight for
each; the denoiser's stage then draws its rows so that every drawing is shown by its weight, not by chance.

Why pictures, and not errors on noised drawings: a noised drawing still hints at itself, so a caption that the denoiser
misreads costs it little there. Where sampling begins there is no such hint.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from erasekit.errors import UsageError
from erasekit.evaluation.statistics import wilson

from ..concepts import STYLES, names
from ..judge import Judge, load_judge
from .assemble import pipeline
from .card import Ask, draw, plain_asks
from .denoiser import build

log = logging.getLogger(__name__)
PICTURES = 4  # of each drawing
STEPS, GUIDANCE = 10, 3.0  # half of the card's: which drawing it becomes is decided in the first of them
SEEDS = 100_000  # apart from the card's pictures
MOST = 6.0


def wrong(asks: list[Ask], images: Tensor, judge: Judge) -> Tensor:
    """Whether each image is another drawing than its ask's, by the judge's first object or its style: bool (n,)."""
    verdict = judge(images)
    right = [(ask.objects[0], ask.style) for ask in asks]
    said = zip(verdict.objects.argmax(1).tolist(), verdict.style.argmax(1).tolist(), strict=True)
    return torch.tensor([one != other for one, other in zip(said, right, strict=True)])


def boost(share: Tensor) -> Tensor:
    """A drawing's weight from the share of its pictures that came out wrong: from 1 for none to `MOST` for all."""
    return 1 + (MOST - 1) * share


def run(work: Path, *, seed: int = 0) -> None:
    """Asks the moving average in `work/denoiser.pt` and writes `work/focus.pt`, which the denoiser's stage reads.

    Without a checkpoint (after `unpack`) it asks `work/unet`, which is a moving average too.
    """
    pipe, judge, asks = _average(work), load_judge(work / "judge"), plain_asks()
    times = torch.zeros(len(asks))
    for turn in range(PICTURES):
        first = SEEDS * (seed + 1) + turn * len(asks)
        times += wrong(asks, draw(pipe, asks, steps=STEPS, guidance=GUIDANCE, first=first), judge)
        log.info("%d of %d pictures of each drawing", turn + 1, PICTURES)
    total, count = int(times.sum()), PICTURES * len(asks)
    log.info("%.1f %% of the pictures wrong (%.1f..%.1f), %d drawings at least half of the time",
             100 * total / count, *(100 * x for x in wilson(total, count)), (times >= PICTURES / 2).sum())  # fmt: skip
    torch.save(boost(times / PICTURES).unflatten(0, (len(names()), len(STYLES))), work / "focus.pt")


def _average(work: Path) -> Any:
    checkpoint = work / "denoiser.pt"
    if checkpoint.exists():
        unet = build()
        unet.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    elif (work / "unet").exists():
        unet = UNet2DConditionModel.from_pretrained(work / "unet")
    else:
        raise UsageError(f"{work} holds no denoiser to ask: run the stage denoiser, or unpack, first")
    pipe = pipeline(work, unet.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe
