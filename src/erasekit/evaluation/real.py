"""The real images that distances are measured to: a folder of the user's, or the emoji world's own reference pictures.

A set is known by what its images hold, not by their names or where they lie: its hash is of their hashes, in whose order
they are read. All are looked at before anything is drawn, so that a damaged one is named then, and what is read later must
still be the same.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation.distances import APART
from erasekit.evaluation.metrics.distribution import LEAST
from erasekit.evaluation.plan_fields import EMOJI
from erasekit.evaluation.shards import digest

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from erasekit.evaluation.suites import Suite

    Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Picture:
    """One real image: how errors call it, the hash of its file (of its pixels, where it was rendered), where it is, and
    the prompt that it is a reference of."""

    name: str
    sha256: str
    source: Path | Image.Image
    prompt: str = ""

    def pixels(self) -> Tensor:
        """What judges see, float32 (1, 3, h, w) in 0..1. `EraseKitError` for a file that is not what it was at first."""
        if not isinstance(self.source, Path):
            return _tensor(self.source)
        data = _bytes(self.source)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise EraseKitError(f"{self.name} was changed after the run began: run the same command again, what is "
                                "finished is kept")  # fmt: skip
        return _decoded(data, self.source)


@dataclass(frozen=True)
class Real:
    """A set of real images in the order of their hashes; `name` is the folder's own, or `emoji`."""

    name: str
    pictures: tuple[Picture, ...]

    @property
    def sha256(self) -> str:
        """Of the images' hashes: the same for the same images, whatever they are called."""
        return digest([picture.sha256 for picture in self.pictures])

    @property
    def parts(self) -> list[int]:
        """For each image the number of its prompt; [] where they have none."""
        prompts = [picture.prompt for picture in self.pictures]
        number = {prompt: i for i, prompt in enumerate(sorted(set(prompts)))}
        return [number[prompt] for prompt in prompts] if any(prompts) else []

    @property
    def facts(self) -> dict[str, Any]:
        """What results say of it."""
        return {"name": self.name, "sha256": self.sha256, "images": len(self.pictures)}


def each(named: str | None, suites: Sequence[Suite], *, progress: Progress | None = None) -> list[Real | None]:
    """The real images of every suite: those that a plan names ("emoji" or a folder), else those that the suite itself does;
    None for none. `UsageError` in one line for what cannot be one: no folder, no or a damaged image, too few of them."""
    given = None if named is None or named == EMOJI else folder(Path(named).expanduser(), progress=progress)
    return [given or (rendered(suite) if EMOJI in (named, suite.real) else None) for suite in suites]


def folder(place: Path, *, progress: Progress | None = None) -> Real:
    """The images that lie in a folder (not below it; other files are left alone), each of them read and found whole."""
    from erasekit.training.images import pictures

    found, paths = [], pictures(place)
    for path in paths:
        found.append(_checked(path))
        if progress is not None:
            progress(len(found), len(paths), "real images")
    return _real(place.resolve().name, found, f"{place} holds")


def rendered(suite: Suite) -> Real:
    """The references of the suite's unrelated prompts, each with every seed of the suite: whatever is erased, the same ones.

    `UsageError` where the suite is not of the emoji world, or asks for what that cannot show.
    """
    from erasekit.evaluation.suites.prompts import expand
    from erasekit.worlds.emoji.reference import picture

    if suite.world != EMOJI:
        raise UsageError(f"the suite {suite.name} is not of the emoji world, which alone has references: give a folder of "
                         "real images")  # fmt: skip
    apart = replace(suite, blocks=tuple(block for block in suite.blocks if block.group in APART))
    texts = [prompt.text for prompt in expand(apart, suite.concepts if suite.whole else ()) if prompt.group in APART]
    shown = [(text, seed, picture(text, seed=seed)) for text in texts for seed in suite.seeds]
    found = [Picture(f"{text!r}, seed {seed}", hashlib.sha256(image.tobytes()).hexdigest(), image, text)
             for text, seed, image in shown]  # fmt: skip
    return _real(EMOJI, found, f"the unrelated prompts of the suite {suite.name} give")


def _real(name: str, found: Sequence[Picture], whose: str) -> Real:
    if len(found) < LEAST:
        raise UsageError(f"{whose} {len(found)} real images, and a distance to them needs {LEAST} at least: give more")
    return Real(name, tuple(sorted(found, key=lambda picture: picture.sha256)))


def _checked(path: Path) -> Picture:
    """The file as a picture that every judge can look at."""
    from erasekit.evaluation.judges.base import SMALLEST, check

    data = _bytes(path)
    pixels = _decoded(data, path)
    small = f"it is smaller than {SMALLEST} pixels" if min(pixels.shape[2:]) < SMALLEST else None
    if reason := small or check(pixels)[0]:
        raise UsageError(f"the real image {path} shows nothing ({reason}): replace or delete it")
    return Picture(str(path), hashlib.sha256(data).hexdigest(), path)


def _decoded(data: bytes, path: Path) -> Tensor:
    from PIL import Image, ImageOps

    try:
        # Upright, as pictures are shown: cameras write how they were held.
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"the real image {path} cannot be read: it is damaged or no image; replace or delete it"
        ) from error
    return _tensor(image)


def _tensor(image: Image.Image) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the real image {path} cannot be read ({error.strerror}): replace or delete it") from error
