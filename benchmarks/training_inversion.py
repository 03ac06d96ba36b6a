"""Concept Inversion's learning beside the loop that one would first write: the step that `training_speed` times.

The plain loop adds the word to the vocabulary as new rows, encodes one picture by the autoencoder and one sentence by the
text encoder for each sample of each step, lets every parameter of denoiser and text encoder take a gradient, and puts the
vocabulary's old rows back after the step. Arithmetic and chance are those of `Lesson.batch`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from training_plain import Run, predict

from erasekit.attacks._inversion_learn import Batch, Learner, Lesson, Variant, posterior
from erasekit.attacks._inversion_word import Word
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.training.images import scale_of
from erasekit.training.loop import generator


class Opened(NamedTuple):
    """What both loops begin with."""

    word: Word
    lesson: Lesson
    pictures: Tensor
    """(n, 3, H, W), followed by their mirror images."""


class Nobody:
    """A judge that is never asked: nothing is drawn here."""

    name, weights_sha256, licence = "nobody", "", ""

    def __init__(self, target: str) -> None:
        self.labels = (target,)


@contextmanager
def opened(pipe: Any, config: Any, *, target: str, seed: int) -> Iterator[Opened]:
    """The unedited model as the attack sees it, its word, and pictures of noise: what they show does not change the time."""
    judge: Any = Nobody(target)
    with Victim(pipe, None, Sight(judge, target), Sampling()) as victim:
        word, factor, (_, height, width) = Word(victim, config), scale_of(pipe.vae), victim.denoiser().shape
        draw = torch.Generator().manual_seed(seed)
        clean = 2 * torch.rand((config.pictures, 3, height * factor, width * factor), generator=draw) - 1
        clean = torch.cat([clean, clean.flip(-1)]) if config.flip else clean
        text = word.laid([word.in_template(template) for template in word.templates])
        yield Opened(word, Lesson(victim, config, Variant(), text, posterior(victim, clean), seed), clean)


def ours(pipe: Any, config: Any, *, target: str, seed: int) -> Run:
    """The attack's own learning. Encoding the pictures once comes before the first step and is not timed."""
    run = Run()
    with opened(pipe, config, target=target, seed=seed) as (word, lesson, _):
        learner = Learner(word.start(), lesson, rate=config.rate, decay=config.decay)
        learner.until(config.steps, lambda step, loss: run.stamps.append(time.perf_counter()))
    run.losses = learner.losses
    return run


def plain(pipe: Any, config: Any, *, target: str, anchor: str, seed: int) -> Run:
    """Concept Inversion, arXiv 2308.01508, as one would first write it; there is no anchor in it."""
    run = Run()
    with opened(pipe, config, target=target, seed=seed) as (word, lesson, pictures):
        unet, encoder = (copy.deepcopy(part).requires_grad_() for part in (pipe.unet, pipe.text_encoder))
        table, old = _with_rows(encoder, word)
        adam = torch.optim.AdamW([table], lr=config.rate, weight_decay=config.decay)
        ids = lesson.text.ids.scatter(1, lesson.text.at, len(old) + lesson.text.row)
        for index in range(config.steps):
            total = 0.0
            for sample in _samples(pipe.vae, pictures, lesson, index):
                latents, timestep, wanted = sample.at(lesson.schedule)
                found = predict(unet, latents, int(timestep), encoder(ids[sample.sentences.to(ids.device)])[0])
                loss = (found - wanted).square().mean() / config.batch
                loss.backward()
                total += float(loss.detach())
            adam.step()
            unet.zero_grad()
            encoder.zero_grad()
            with torch.no_grad():
                table[: len(old)] = old
            run.losses.append(total)
            run.stamps.append(time.perf_counter())
    return run


def _with_rows(encoder: Any, word: Word) -> tuple[Tensor, Tensor]:
    """(the encoder's table with the word's rows behind its own, the table as it was)."""
    old = encoder.get_input_embeddings().weight.detach().clone()
    table = encoder.resize_token_embeddings(len(old) + len(word.rows), mean_resizing=False).weight
    with torch.no_grad():
        table[len(old) :] = old[word.token]
    return table, old


def _samples(vae: Any, pictures: Tensor, lesson: Lesson, step: int) -> Iterator[Batch]:
    """The samples of `lesson.batch(step)` one at a time, each picture encoded for it."""
    config, draw = lesson.config, generator(lesson.seed, "inversion", step)
    size, count = config.batch, len(pictures) // (1 + config.flip)
    picked = torch.randint(count, (size,), generator=draw)
    picked = picked + count * torch.randint(2, (size,), generator=draw) * config.flip
    sentences = torch.randint(len(lesson.text.ids), (size,), generator=draw)
    timesteps = lesson.variant.levels(size, len(lesson.schedule.alphas), draw)
    within, noise = torch.randn(2, size, *lesson.mean.shape[1:], generator=draw).to(lesson.mean)
    for i in range(size):
        with torch.no_grad():
            own = vae.encode(pictures[picked[i]][None].to(vae.device, vae.dtype)).latent_dist
        clean = vae.config.scaling_factor * (own.mean + own.std * within[i])
        yield Batch(clean, noise[i : i + 1], timesteps[i : i + 1], sentences[i : i + 1])
