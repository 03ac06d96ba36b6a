"""What M-ErasureBench's scenarios are made of: pictures to begin with, a word taught, a latent found, and a store.

Every function works on the side of the victim that is on when it is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from erasekit.attacks import pictures
from erasekit.attacks._bench_scenarios import place_of
from erasekit.attacks._ddim import batches
from erasekit.attacks._inversion import BLIND, asked
from erasekit.attacks._inversion_learn import Learner, Lesson, Variant, posterior
from erasekit.attacks._inversion_word import Word
from erasekit.attacks.base import Case, Outcome, Spent, shares
from erasekit.attacks.ladder import STATE, keep, kept, require_same
from erasekit.attacks.latent_inversion import LatentInversionConfig, again
from erasekit.attacks.prompts import drawn
from erasekit.errors import UsageError
from erasekit.files import write_whole
from erasekit.training.loop import generator

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.attacks._inversion import InversionConfig
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

CONCEPT_SEEDS, CONTROL_SEEDS = 1_000_000, 2_000_000  # away from the evaluated ones: no picture shares another's noise


class Store:
    """A folder in which every part of a run is kept whole as it is done, and read from then on.

    Raises `UsageError` for a folder that holds the parts of another run, saying in what they differ.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """`about`: all that decides the parts."""
        self.folder, self._state = folder, json.loads(json.dumps(about))
        require_same(folder / STATE, self._state)

    def outcomes(self, name: str, make: Callable[[], Sequence[Outcome]]) -> list[Outcome]:
        """A part with its pictures, made only where it is not there yet; tensors are not kept."""
        place = place_of(self.folder, name)
        if not place.exists():
            found = make()
            self._begin()
            keep(place, found)
        return kept(place)

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A learned word, made only where it is not there yet."""
        from safetensors.torch import load, save

        place = self.folder / "words" / f"{name}.safetensors"
        if not place.exists():
            found = save(make())
            self._begin()
            write_whole(place, found)
        return load(place.read_bytes())

    def _begin(self) -> None:
        """Only now: a request that fails leaves no state that would refuse the corrected one."""
        write_whole(self.folder / STATE, (json.dumps(self._state, indent=1) + "\n").encode())


# -- pictures ---------------------------------------------------------------------------------------------------------


def collected(victim: Victim, prompts: Sequence[str], count: int, *, tries: int) -> list[Outcome]:
    """`count` pictures by the unedited model, of the prompts in turn, in each of which the judge finds the target.

    Every picture without it is replaced by the next seed's, up to `tries` times `count` pictures in all; where these do
    not suffice, `UsageError`. An outcome's case has the prompt and the seed; what those that were replaced cost is shared.
    """
    found: list[Outcome] = []
    done, most = 0, tries * count
    with victim.original():
        each = victim.cost()
        while len(found) < count and done < most:
            after = min(done + count - len(found), most)
            cases = [Case(prompts[i % len(prompts)], CONCEPT_SEEDS + i) for i in range(done, after)]
            found, done = found + [one for one in drawn(victim, cases) if one.shown], after
    if len(found) < count:
        raise UsageError(f"the unedited model shows {victim.sight.target!r} in only {len(found)} of {done} pictures, "
                         f"{count} are needed: name prompts that it draws, or ask for fewer images")  # fmt: skip
    costs = shares(each * done, count)
    return [replace(one, spent=cost) for one, cost in zip(found, costs, strict=True)]


def without(victim: Victim, prompts: Sequence[str], count: int) -> list[Outcome]:
    """`count` pictures by the unedited model of prompts for other things: a "success" is a false positive of the judge,
    or a picture that does hold the target."""
    cases = [Case(prompts[i % len(prompts)], CONTROL_SEEDS + i) for i in range(count)]
    with victim.original():
        return drawn(victim, cases)


def pictured(outcomes: Sequence[Outcome]) -> list[Image]:
    """The outcomes' pictures; `UsageError` where one is gone."""
    if any(one.image is None for one in outcomes):
        raise UsageError("a picture of an earlier part is gone: delete the folder to begin anew, or name another")
    return [one.image for one in outcomes if one.image is not None]


def rearranged(image: Image, order: np.ndarray) -> Image:
    """The picture with its square of tiles in another order; `argsort(order)` undoes it."""
    from PIL import Image as images

    side = round(len(order) ** 0.5)
    pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    tiles = pixels.reshape(side, height, side, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)[order]
    return images.fromarray(tiles.reshape(side, side, height, width, 3).swapaxes(1, 2).reshape(pixels.shape))


def orders(count: int, tiles: int, seed: int) -> list[np.ndarray]:
    """An order of tiles * tiles for each picture; none moves at one tile."""
    return [torch.randperm(tiles * tiles, generator=generator(seed, "scramble", i)).numpy() for i in range(count)]


# -- a latent -----------------------------------------------------------------------------------------------------------


def by_latent(
    victim: Victim, sources: Sequence[Outcome], config: LatentInversionConfig, *, tiles: int = 1, seed: int = 0,
    progress: Progress | None = None,
) -> list[Outcome]:  # fmt: skip
    """The sources' pictures inverted, made again, and judged; at the cost of making them, too.

    With `tiles` > 1 each is scrambled before and put right after, so that the judge looks for the same thing in what came
    through the model as a picture of nothing it ever saw.
    """
    ways = orders(len(sources), tiles, seed)
    clean = pictures.latents(victim, list(map(rearranged, pictured(sources), ways)))
    cases = [one.case for one in sources]
    found: list[Outcome] = []
    for part in batches(len(cases), victim.sampling.batch):
        found += again(victim, cases[part], clean[part], config)
        if progress:
            progress(part.stop, len(cases), "inverting pictures")
    found = [replace(one, spent=source.spent + one.spent) for source, one in zip(sources, found, strict=True)]
    return found if tiles == 1 else _judged(victim, found, ways)


def through(victim: Victim, sources: Sequence[Outcome], *, tiles: int = 1, seed: int = 0) -> list[Outcome]:
    """The sources' pictures through the autoencoder alone, scrambled and put right with `tiles` > 1: no inversion can
    show the target more often than about this."""
    ways = orders(len(sources), tiles, seed)
    clean = pictures.latents(victim, list(map(rearranged, pictured(sources), ways)))
    found = [replace(one, image=image, by="the autoencoder", note="")
             for one, image in zip(sources, pictures.shown(victim, clean), strict=True)]  # fmt: skip
    return _judged(victim, found, ways)


def _judged(victim: Victim, outcomes: Sequence[Outcome], ways: Sequence[np.ndarray]) -> list[Outcome]:
    """The outcomes with their pictures put right, judged as these."""
    images = [rearranged(image, np.argsort(way)) for image, way in zip(pictured(outcomes), ways, strict=True)]
    seen, found = victim.look([one.case for one in outcomes], images), []
    for one, image, word in zip(outcomes, images, seen, strict=True):
        judged = word.outcome(one.case, image, by=one.by, spent=one.spent + Spent(pictures=1))
        found.append(replace(judged, note="; ".join(filter(None, (judged.note, one.note)))))
    return found


# -- a word -------------------------------------------------------------------------------------------------------------


def taught(
    victim: Victim, sources: Sequence[Outcome], config: InversionConfig, *,
    side: Callable[[], AbstractContextManager[object]], seed: int, progress: Progress | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """A word learned from the sources' pictures on the model inside `side()`: "rows" (k, width), "encodings", how many
    sentences were encoded for it, and "felt", whether a gradient reached it."""
    word = Word(victim, config)
    text = word.laid([word.in_template(template) for template in word.templates])
    found = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in pictured(sources)]))
    clean = found.permute(0, 3, 1, 2).float() / 127.5 - 1
    moments = posterior(victim, torch.cat([clean, clean.flip(-1)]) if config.flip else clean)
    lesson = Lesson(victim, config, Variant(), text, moments, seed)

    def report(step: int, loss: float) -> None:
        if progress:
            progress(step, config.steps, f"learning a word: loss {loss:.3g}")

    with side():
        learner = Learner(word.start(), lesson, rate=config.rate, decay=config.decay)
        learner.until(config.steps, report)
    return {"rows": learner.rows.detach().cpu(), "encodings": torch.tensor(lesson.encodings),
            "felt": torch.tensor(learner.felt)}  # fmt: skip


def by_word(
    victim: Victim, cases: Sequence[Case], word: Mapping[str, Tensor], config: InversionConfig, *,
    sources: Sequence[Outcome],
) -> list[Outcome]:  # fmt: skip
    """Each case drawn with the word in the target's place, and judged; the cost of learning it, and of making the sources
    that it was learned from, is shared among them. A word that no gradient reached is said to be one in their notes."""
    found = asked(Word(victim, config), word["rows"].to(victim.pipe.device), cases)
    learning = Spent(config.steps, config.steps * config.batch, int(word["encodings"]))
    costs = shares(sum((one.spent for one in sources), learning), len(cases))
    blind = "" if bool(word["felt"]) else BLIND
    return [replace(one, spent=one.spent + cost, note="; ".join(filter(None, (one.note, blind))))
            for one, cost in zip(found, costs, strict=True)]  # fmt: skip
