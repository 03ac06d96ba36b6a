"""A full GPU is one line that names a setting, for every method that trains, in a fit and in a dry run."""

from __future__ import annotations

import pytest
import torch

import erasekit
from erasekit.errors import TrainingError
from erasekit.training.bench import Denoiser

METHODS = {
    "esd": ("set recompute=true, set variant=x-strict", {"sampling_steps": 2}),
    "spm": (r"set recompute=true, lower conditions \(now 4\)", {"sampling_steps": 2}),
    "receler": (
        r"set recompute=true, lower rank \(now 128\)",
        {"sampling_steps": 2, "attack_steps": 1, "attack_rows": 3},
    ),
    "mace": (r"(lower at_once \(now 8\)|set recompute=true, set precision=bfloat16)", {"templates": "none"}),
    "ac": (r"lower batch \(now 2\)", {"sampling_steps": 2, "images": 2, "batch": 2, "augment": False}),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_full_gpu_is_one_line(method: str, sd1, monkeypatch) -> None:
    def full(*args) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(Denoiser, "__call__", full)
    said, options = METHODS[method]
    for run in (erasekit.erase, erasekit.plan):
        with pytest.raises(TrainingError, match=f"the GPU's memory is full.*{said}") as error:
            run(sd1, "cat", anchor="dog", method=method, steps=1, **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("place", "run", "said"), [
    ("mace._refined", erasekit.erase, r"run on the CPU with --device cpu \(begins anew\), or"),
    ("_mace_concept.Concept._drawn", erasekit.erase, r"lower at_once \(now 8\), or"),
    ("_mace_loss.loss", erasekit.erase, r"set recompute=true, set precision=bfloat16 \(begins anew\), or"),
    ("_mace_plan.looking", erasekit.plan, r"lower at_once \(now 8\), or"),
])  # fmt: skip
def test_mace_names_what_helps_where_the_memory_ran_out(place: str, run, said: str, sd1, monkeypatch) -> None:
    def full(*args) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(f"erasekit.methods.{place}", full)
    with pytest.raises(TrainingError, match=f"^the GPU's memory is full: {said}"):
        run(sd1, "cat", anchor="dog", method="mace", steps=1, templates="none")


@pytest.mark.parametrize(("batch", "said"), [
    (2, r"lower batch \(now 2\) and raise accumulate"), (1, "give a folder of images"),
])  # fmt: skip
def test_ac_names_what_helps_where_its_images_filled_the_memory(batch: int, said: str, sd1, monkeypatch) -> None:
    def full(*args, **options) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr("erasekit.training.images.denoised", full)
    with pytest.raises(TrainingError, match=rf"^the GPU's memory is full: {said} \(begins anew\), or free"):
        erasekit.erase(sd1, "cat", anchor="dog", method="ac", steps=1, batch=batch, images=2, sampling_steps=2, augment=False)
