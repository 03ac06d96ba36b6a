"""Latents that are kept while they are made: a kill at any time, files of other runs, and what writing may cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from erasekit.errors import TrainingError
from erasekit.training.kept import Sparing, kept

WHOLE = torch.randn(5, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def test_what_is_whole_is_read_back_and_that_of_another_run_is_refused(tmp_path: Path) -> None:
    def never(known, keep):
        raise AssertionError

    assert torch.equal(kept(lambda known, keep: WHOLE, tmp_path, {"seed": 0}, count=5), WHOLE)
    assert torch.equal(kept(never, tmp_path, {"seed": 0}, count=5), WHOLE)
    with pytest.raises(TrainingError, match=r"another run \(other seed\)"):
        kept(never, tmp_path, {"seed": 1}, count=5)
    assert torch.equal(kept(lambda known, keep: WHOLE, None, {}, count=5), WHOLE)


def test_what_was_made_before_a_kill_is_there_and_handed_back(tmp_path: Path) -> None:
    place = tmp_path / "run.safetensors"

    def killed(known, keep):
        assert known is None
        keep([WHOLE[:2]])
        raise KeyboardInterrupt

    def resumed(known, keep):
        assert torch.equal(known, WHOLE[:2])
        keep([known, WHOLE[2:4]])
        assert len(load_file(tmp_path / "run.images.safetensors")["latents"]) == 4
        return WHOLE

    with pytest.raises(KeyboardInterrupt):
        kept(killed, place, {}, count=5)
    with pytest.raises(TrainingError, match="another run"):
        kept(killed, place, {"seed": 1}, count=5)
    assert torch.equal(kept(resumed, place, {}, count=5), WHOLE)
    assert torch.equal(load_file(tmp_path / "run.images.safetensors")["latents"], WHOLE)


@pytest.mark.parametrize(("batch", "written"), [(0.7, 4), (20.0, 50)])
def test_writing_takes_a_tenth_of_the_time_at_most(batch: float, written: int, monkeypatch) -> None:
    """Fifty batches, and writes of one second each: those after every thirteenth batch of 0.7 s, and after each of 20 s."""
    clock, saved = SimpleNamespace(now=100.0), []
    monkeypatch.setattr("erasekit.training.kept.time", SimpleNamespace(perf_counter=lambda: clock.now))

    def save(tensors, losses) -> None:
        clock.now += 1
        saved.append(len(tensors["latents"]))

    keep, began = Sparing(SimpleNamespace(save=save)), clock.now
    for i in range(1, 51):
        clock.now += batch
        keep([WHOLE[:1]] * i)
    assert saved[0] == 1 and len(saved) == written
    assert len(saved) <= 1 + 0.1 * (clock.now - began)
