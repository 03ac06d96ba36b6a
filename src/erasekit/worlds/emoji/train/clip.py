"""The training of the emoji world's CLIP: pictures against captions, on disturbed renders, some through the autoencoder.

Two random captions nearly always differ in their objects, so that a plain batch teaches little about anything else.
Therefore half of each batch are families: a scene, and its likes that differ in style, in background, in one object
alone. A caption that is true of another picture of the batch as well ("a cat", twice) does not count as wrong there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from erasekit.evaluation.judges.emoji_clip import rates

from ....files import write_whole
from ..captions import HELD_OUT_PAIR, HELD_OUT_SINGLE, PAIR, SINGLE, fill
from ..clip import Network, Words, read_clip, save_clip, split
from ..concepts import BACKGROUNDS, STYLES, concepts, names, neighbours
from ..scenes import Scene, render, sample_scene
from .judge import disturb, free_scene, labels_of, through_autoencoder
from .loop import Schedule, step_rng, train

# No object named: a style or a background must be readable alone, as CLIP accuracy of a style asks.
GENERAL = ("{s} style", "a picture in {s} style", "a {s} drawing", "a {b} background", "a scene on a {b} background")
GENERAL_SHARE = 0.06
SYNONYM_SHARE = 0.3
UNKNOWN_SHARE = 0.15
STRANGER = "someotherword"
POOL = 400  # blocks of eight
CHECKED, DECODED = 1500, 600  # scenes of the calibration; the autoencoder is slow


@dataclass(frozen=True)
class Text:
    """A caption and what it says: objects, and style and background or None where it is silent."""

    text: str
    objects: tuple[int, ...]
    style: int | None
    background: int | None


def vocabulary() -> Words:
    """All words of all caption forms, concepts, synonyms, styles and backgrounds, in alphabetical order."""
    forms = (*SINGLE, *PAIR, *HELD_OUT_SINGLE, *HELD_OUT_PAIR, *GENERAL)
    said = [form.format(a="a", x="an", c="", s="", b="") for form in forms]
    nouns = [word for concept in concepts() for word in (concept.name, *concept.synonyms)]
    return Words(sorted({word for text in (*said, *nouns, *STYLES, *BACKGROUNDS) for word in split(text)}))


def describe(scene: Scene, rng: np.random.Generator) -> Text:
    """A caption of the scene in any form, held-out ones included: this is a judge. Its objects come in either order."""
    single, pair = (*SINGLE, *HELD_OUT_SINGLE), (*PAIR, *HELD_OUT_PAIR)
    general = rng.random() < GENERAL_SHARE
    forms = GENERAL if general else pair if len(scene.objects) == 2 else single
    form = forms[int(rng.integers(len(forms)))]
    shown = scene.objects[:: 1 if rng.random() < 0.5 else -1]
    text = fill(form, tuple(_noun(i, rng) for i in shown), STYLES[scene.style], tuple(BACKGROUNDS)[scene.background])
    style = scene.style if "{s}" in form else None
    background = scene.background if "{b}" in form else None
    return Text(_with_strangers(text, rng), () if general else shown, style, background)


def _noun(index: int, rng: np.random.Generator) -> str:
    concept = concepts()[index]
    if concept.synonyms and rng.random() < SYNONYM_SHARE:
        return concept.synonyms[int(rng.integers(len(concept.synonyms)))]
    return concept.name


def _with_strangers(text: str, rng: np.random.Generator) -> str:
    """Now and then up to three unknown words in between: the rest of the text must count all the same."""
    words = text.split()
    if rng.random() < UNKNOWN_SHARE:
        for _ in range(int(rng.integers(1, 4))):
            words.insert(int(rng.integers(len(words) + 1)), STRANGER)
    return " ".join(words)


def block(rng: np.random.Generator) -> list[Scene]:
    """Eight scenes: one, its likes in another style, on another background, with another object, and four more."""
    first = free_scene(rng)
    likes = (
        replace(first, style=_another(first.style, len(STYLES), rng)),
        replace(first, background=_another(first.background, len(BACKGROUNDS), rng)),
        replace(first, objects=exchange(first.objects, rng)),
    )
    return [first, *likes, *(free_scene(rng) for _ in range(4))]


def exchange(objects: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
    """The objects with one of them replaced, half the time by a near neighbour where it has one."""
    slot = int(rng.integers(len(objects)))
    near = [names().index(n) for n in neighbours(names()[objects[slot]])]
    all_others = range(len(names()))
    choice = [i for i in (near if rng.random() < 0.5 else all_others) if i not in objects]
    choice = choice or [i for i in all_others if i not in objects]
    return (*objects[:slot], choice[int(rng.integers(len(choice)))], *objects[slot + 1 :])


def _another(index: int, count: int, rng: np.random.Generator) -> int:
    return (index + int(rng.integers(1, count))) % count


def pictures_of(scenes: Sequence[Scene]) -> Tensor:
    """The renders (n, 3, 64, 64) in 0..1."""
    return torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2)


def truths(scenes: Sequence[Scene], texts: Sequence[Text]) -> Tensor:
    """Whether each picture shows all that each text says: bool (scenes, texts)."""
    shown, style, background = labels_of(list(scenes))
    said = torch.zeros(len(texts), len(names()))
    for row, text in enumerate(texts):
        said[row, list(text.objects)] = 1
    true = (1 - shown) @ said.T == 0
    for have, want in ((style, [t.style for t in texts]), (background, [t.background for t in texts])):
        asked = torch.tensor([-1 if w is None else w for w in want])
        true &= (asked == -1) | (asked == have[:, None])
    return true


def contrast(logits: Tensor, true: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of (pictures, texts) logits; other pairs that are true as well are left out."""
    also = true & ~torch.eye(len(true), dtype=torch.bool)
    logits, goal = logits.masked_fill(also, -torch.inf), torch.arange(len(true))
    return (F.cross_entropy(logits, goal) + F.cross_entropy(logits.T, goal)) / 2


def sampler(work: Path, seed: int, words: Words, *, blocks: int, pool: int) -> Callable[[int], tuple[Tensor, ...]]:
    """The batch of a step: pictures, word numbers, truths; three blocks in eight went through the autoencoder."""
    rng = step_rng(seed, "clip-pool", 0)
    kept = [block(rng) for _ in range(pool)]
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    decoded = through_autoencoder(pictures_of([*chain(*kept)]), vae, rng).view(pool, -1, 3, 64, 64)

    def batch(step: int) -> tuple[Tensor, ...]:
        rng = step_rng(seed, "clip", step)
        rows = [int(i) for i in rng.integers(pool, size=blocks * 3 // 8)]
        fresh = [*chain(*(block(rng) for _ in range(blocks - len(rows))))]
        scenes = [*fresh, *chain(*(kept[i] for i in rows))]
        pictures = torch.cat((pictures_of(fresh), decoded[rows].flatten(0, 1)))
        texts = [describe(scene, rng) for scene in scenes]
        return disturb(pictures, rng), words.ids([t.text for t in texts]), truths(scenes, texts)

    return batch


def run(work: Path, *, seed: int = 0, steps: int = 1500, blocks: int = 16, pool: int = POOL) -> None:
    """Saves `work/clip/clip.safetensors` (float16) and its calibration on renders, `clip.json`. Needs `work/vae`."""
    words = vocabulary()
    batch = sampler(work, seed, words, blocks=blocks, pool=pool)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        network = Network(len(words)).to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        pictures, ids, true = batch(step)
        return contrast(network(pictures.contiguous(memory_format=torch.channels_last), ids), true)

    train(network, loss_of, Schedule(steps, 1.5e-3, decay=0.8), work / "clip.pt", weight_decay=0.05)
    save_clip(network, words, work / "clip")
    _calibrate(work, seed)


def _calibrate(work: Path, seed: int) -> None:
    """Measures what was saved, as it will be read, on scenes of the denoiser's kind from a stream of their own."""
    rng = step_rng(seed, "clip-held-out", 0)
    scenes = [sample_scene(rng) for _ in range(CHECKED)]
    clip, pictures = read_clip(work / "clip"), pictures_of(scenes)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    report = {
        "renders": rates(clip, scenes, pictures),
        "through_autoencoder": rates(clip, scenes[:DECODED], through_autoencoder(pictures[:DECODED], vae, rng)),
    }
    write_whole(work / "clip" / "clip.json", (json.dumps(report, indent=1) + "\n").encode())
