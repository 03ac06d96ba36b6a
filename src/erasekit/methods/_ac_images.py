"""The anchor images that a run of Ablating Concepts (arXiv 2303.13516) learns from: drawn by the frozen model or read from
a folder, and kept beside the checkpoint.

Drawing is the longest part of a run with the defaults, longer than training. So what it will take is said before it
begins, and what was drawn by a run that was ended is not drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from erasekit.methods import Progress
from erasekit.training import images as pictures
from erasekit.training.kept import Keep, kept, nowhere
from erasekit.training.loop import memory_line
from erasekit.training.settings import anew

if TYPE_CHECKING:
    from erasekit.methods._ac_run import Run

DECISIVE = ("steps", "batch", "accumulate", "guidance", "sampling_steps", "precision")
"""The parameters that decide an image's numbers (the batch by rounding alone), or which images there are."""


def latents(run: Run, used: Sequence[int], checkpoint: Path | None, progress: Progress) -> Tensor:
    """The latents (n, c, h, w) of the images of these numbers, on the CPU; from beside the checkpoint as far as they are
    there, and put there as they are made."""
    if checkpoint is None:
        return _made(run, used, progress, None, nowhere)
    whole = run.bench.state_at(checkpoint, "ac", {"data": run.data})
    about = {name: getattr(run.config, name) for name in DECISIVE}
    about |= {name: whole.about[name] for name in ("seed", "base")} | {"data": run.images_data}

    def make(known: Tensor | None, keep: Keep) -> Tensor:
        whole.load()  # another run's is refused before the long work, not after it
        return _made(run, used, progress, known, keep)

    return kept(make, checkpoint, about, count=len(used))


def _made(run: Run, used: Sequence[int], progress: Progress, known: Tensor | None, keep: Keep) -> Tensor:
    if run.files:
        _, height, width = run.bench.denoise.shape
        return pictures.read_folder(run.vae, run.files, (height, width), progress)
    progress(0 if known is None else len(known), len(used), expected(run))
    wanted = {number: run.gallery.drawn[number] for number in used}
    with memory_line(lighter(run.config.batch)):
        return pictures.drawn(run.bench, run.read, wanted, guidance=run.config.guidance, progress=progress, known=known,
                              keep=keep)  # fmt: skip


def lighter(batch: int) -> str:
    """What asks for less memory while images are drawn, so many at once and nothing trained, in words."""
    return anew(f"lower batch (now {batch}) and raise accumulate" if batch > 1 else "give a folder of images")


def expected(run: Run) -> str:
    """What drawing will take, and what would make it less."""
    config = run.config
    return (f"{pictures.DRAWING}: {config.sampling_steps} sampling steps each before training begins; lower images (now "
            f"{config.images}) or sampling_steps, or give a folder of images")  # fmt: skip
