"""What a run is measured with works on devices without float64, such as Apple's GPUs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from erasekit.attacks import unlearndiffatk
from erasekit.attacks.latent_inversion import _power
from erasekit.attacks.unlearndiffatk import sampled, simplex
from erasekit.edit import Dense
from erasekit.training.probes import doubled, energy, widest
from erasekit.training.result import changes


class Away(torch.Tensor):
    """A tensor of a device that refuses float64, until it is taken to the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return found


def away(*values: float) -> Away:
    return torch.tensor(values).as_subclass(Away)


def test_numbers_are_added_up_in_float64_on_the_cpu() -> None:
    with pytest.raises(TypeError, match="no float64"):
        away(1.0).double()
    found = doubled(away(3.0, 4.0).requires_grad_())
    assert type(found) is torch.Tensor and (found.dtype, found.device.type) == (torch.float64, "cpu")
    assert not found.requires_grad and energy(away(3.0, 4.0)) == 25 and _power(away(3.0, 4.0)) == 12.5
    frozen = {"m.weight": away(3.0, 4.0)[None]}
    bench = SimpleNamespace(
        student=SimpleNamespace(frozen=frozen), backbone=SimpleNamespace(tower=SimpleNamespace(depth=1))
    )
    (record,) = changes(bench, [Dense("unet", "m", torch.tensor([[0.6, 0.8]]))])
    assert record["relative_update"] == pytest.approx(0.2)


def test_searches_compute_in_the_widest_dtype_that_their_device_has(monkeypatch) -> None:
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cpu")) == widest(torch.device("cuda")) == torch.float64
    rows, chance = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 0.9])
    exact, drawn = simplex(rows), sampled(rows, chance)
    asked: list[torch.device] = []
    monkeypatch.setattr(unlearndiffatk, "widest", lambda device: asked.append(device) or torch.float32)
    torch.testing.assert_close(simplex(rows), exact, atol=1e-6, rtol=0)
    assert torch.equal(sampled(rows, chance), drawn) and asked == [rows.device] * 2
