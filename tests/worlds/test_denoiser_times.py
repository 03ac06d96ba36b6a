"""At which noise the denoiser is trained, and how often without its caption there."""

from __future__ import annotations

import numpy as np

from erasekit.worlds.emoji.train.denoiser import CLEAR, DROPOUT, DROPOUT_CLEAR, dropout, spread_times


def test_half_of_the_times_are_uniform_and_half_of_density_t_cubed() -> None:
    count = 40_000
    times = spread_times(np.random.default_rng(0), count)
    assert times.min() >= 0 and times.max() <= 999
    for bound in (100, 400, 600, 900):
        wanted = 0.5 * bound / 1000 + 0.5 * (bound / 1000) ** 4
        assert abs((times < bound).mean() - wanted) < 2 / count + 1e-3


def test_every_batch_has_the_shares_in_random_order() -> None:
    times = spread_times(np.random.default_rng(1), 64)
    uniform = np.floor(np.arange(32) / 32 * 1000)
    assert all(any(low <= t < low + 1000 / 32 + 1 for t in times) for low in uniform), "one of each part at least"
    assert (np.diff(times) < 0).any() and (np.diff(times) > 0).any()


def test_more_captions_are_dropped_where_the_picture_says_what_it_shows() -> None:
    assert dropout(np.array([0, CLEAR - 1, CLEAR, 999])).tolist() == [DROPOUT_CLEAR] * 2 + [DROPOUT] * 2
    assert DROPOUT < DROPOUT_CLEAR < 1
