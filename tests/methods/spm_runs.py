"""Short runs of SPM on tiny random models, and what its tests look at."""

from __future__ import annotations

import hashlib

import torch

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.methods import make_config
from erasekit.methods._spm_run import opened_run
from erasekit.methods.spm import SPM, SPMConfig

QUICK = {"steps": 3, "rate": 1e-2, "sampling_steps": 3, "anchoring": 1.0, "conditions": 1, "resolution": "dynamic"}


def fit(model, targets="cat", *, anchor=None, retain=(), seed=0, checkpoint=None, progress=None, **options) -> Edit:
    request = EraseRequest.build(targets, anchor=anchor, retain=retain, seed=seed)
    config = make_config(SPM, QUICK | options)
    return SPM().fit(backbone(model), request, config, checkpoint=checkpoint, progress=progress)


def opened(pipe, targets="cat", *, anchor=None, retain=(), **options):
    """A bench and its configuration, without training."""
    config = SPMConfig(**(QUICK | options))
    return opened_run(backbone(pipe), EraseRequest.build(targets, anchor=anchor, retain=retain), config), config


def state(pipe) -> dict[str, str]:
    """A digest of every weight, and the switches and hooks of every parameter and module."""
    unet = pipe.unet
    found = {
        k: hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest() for k, v in unet.state_dict().items()
    }
    flags = {f"{k} flag": f"{p.requires_grad} {p.grad} {id(p)}" for k, p in unet.named_parameters()}
    hooks = {f"{k} mode": f"{m.training} {list(m._forward_hooks.values())}" for k, m in unet.named_modules()}
    return found | flags | hooks


def tensors(edit: Edit) -> dict[str, torch.Tensor]:
    return edit.ops[0].tensors()


def same(a: Edit, b: Edit) -> bool:
    one, other = tensors(a), tensors(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def predict(pipe, text: torch.Tensor | str, latents: torch.Tensor | None = None, timestep: int = 500) -> torch.Tensor:
    text = backbone(pipe).encode([text]) if isinstance(text, str) else text
    if latents is None:
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return pipe.unet(latents, timestep, encoder_hidden_states=text).sample


def fill(student, size: float = 0.1) -> None:
    """Random up-vectors, as after training."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in student.trained.items():
            if name.endswith("up"):
                tensor.copy_(size * torch.randn(tensor.shape, generator=draw))


def naive_conditions(text: torch.Tensor, draw: torch.Generator, count: int = 4) -> list[torch.Tensor]:
    flat, found = text.flatten().double(), []
    while len(found) < count:
        noise = torch.randn(text.shape[1:], generator=draw)
        u, s = torch.rand(2, generator=draw).tolist()
        cosine = float(noise.flatten().double() @ flat / noise.double().norm() / flat.norm())
        if u < 1 - cosine:
            found.append(noise / noise.norm() * text.norm() * (0.8 + 0.4 * s))
    return found
