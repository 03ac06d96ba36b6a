"""The world's training loop: resumes to the bit, and its optimizer does what it says."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from erasekit.errors import DivergenceError
from erasekit.worlds.emoji.train import denoiser
from erasekit.worlds.emoji.train.loop import Schedule, step_rng, train
from erasekit.worlds.emoji.train.muon import orthogonalise


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_the_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalise(matrix) @ vh.T
    values = inner.diagonal()
    assert (inner - torch.diag(values)).abs().max() < 1e-6
    assert values.min() > 0.3 and values.max() < 1.3


def run(folder, steps, stop=None):
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 1))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))

    def loss_of(step):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(step_rng(0, "test", step).standard_normal((16, 6), dtype="float32"))
        return (model(x) - x[:, :1] * x[:, 1:2]).square().mean()

    return train(model, loss_of, Schedule(steps, 1e-2, warmup=3), folder / "state.pt", ema=0.9, every=5)


def test_a_stopped_run_ends_as_an_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    expected = run(whole, 20).state_dict()
    with pytest.raises(KeyboardInterrupt):
        run(parts, 20, stop=13)
    resumed = run(parts, 20).state_dict()
    assert all(torch.equal(expected[k], resumed[k]) for k in expected)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    model, path = nn.Linear(2, 1), tmp_path / "state.pt"

    def loss_of(step):
        return model(torch.ones(1, 2)).square().sum() * (float("nan") if step == 7 else 1.0)

    with pytest.raises(DivergenceError, match=r"step 7 is nan: .*state.pt has an earlier step"):
        train(model, loss_of, Schedule(10, 1e-2, warmup=3), path, every=5)
    assert torch.load(path, weights_only=True)["step"] == 5
    assert all(p.isfinite().all() for p in model.parameters())


def test_step_data_depends_on_seed_stage_and_step():
    draws = {tuple(step_rng(*key).integers(1 << 30, size=3)) for key in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]}
    assert len(draws) == 4
    assert (step_rng(3, "a", 5).random() == step_rng(3, "a", 5).random())


class Recorded(nn.Module):
    """A one-layer stand-in for the U-Net that notes the dtype of its product."""

    def __init__(self):
        super().__init__()
        self.mix, self.seen = nn.Conv2d(16, 16, 1), set()

    def forward(self, noisy, t, context):
        out = self.mix(noisy)
        self.seen.add(out.dtype)
        return SimpleNamespace(sample=out)

    def save_pretrained(self, folder):
        torch.save({"weights": self.state_dict(), "seen": self.seen}, folder)


@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_the_denoisers_products_are_in_bfloat16_where_asked_for(tmp_path, monkeypatch, bf16, dtype):
    net = Recorded()
    monkeypatch.setattr(denoiser, "build", lambda: net)
    monkeypatch.setattr(denoiser, "latents", lambda *_: torch.zeros(8, 16, 8, 8))
    monkeypatch.setattr(denoiser, "contexts", lambda *_: torch.zeros(9, 77, 192))
    denoiser.run(tmp_path, steps=2, batch=4, count=8, bf16=bf16)
    saved = torch.load(tmp_path / "unet", weights_only=False)
    assert net.seen == {dtype}
    assert {value.dtype for value in saved["weights"].values()} == {torch.float32}
