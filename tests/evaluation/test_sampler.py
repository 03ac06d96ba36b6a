"""An image depends on its prompt and seed, and not on what it is drawn with."""

from __future__ import annotations

import numpy as np
import torch

from erasekit.evaluation.sampler import Shot, sample, shots


def drawn(pipe, work: list[Shot], batch: int) -> dict[Shot, np.ndarray]:
    found = sample(pipe, work, steps=2, guidance=3.0, batch=batch)
    return {shot: np.asarray(image).astype(int) for shot, image in found}


def test_batches_and_order_do_not_matter(sd1) -> None:
    work = shots(["a cat", "a dog in the style of a fox"], [0, 1, 5])
    together, alone = drawn(sd1, work, 4), drawn(sd1, work[::-1], 1)
    assert set(together) == set(alone) == set(work)
    for shot in work:  # one grey level: the float rounding of another batch size
        assert np.abs(together[shot] - alone[shot]).max() <= 1, shot
    assert np.abs(together[work[0]] - together[work[1]]).max() > 10, "other seeds must draw other images"
    assert np.abs(together[work[0]] - together[work[3]]).max() > 0, "other prompts must draw other images"


def test_the_global_generator_is_left_alone(sd1) -> None:
    before = torch.random.get_rng_state()
    drawn(sd1, [Shot("a cat", 3)], 1)
    assert torch.equal(before, torch.random.get_rng_state())
