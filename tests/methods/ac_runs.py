"""Short runs of AC on tiny random models, and what its tests look at."""

from __future__ import annotations

import hashlib

import torch

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.methods import make_config
from erasekit.methods._ac_batch import Batch
from erasekit.methods._ac_run import opened_run
from erasekit.methods.ac import AC

QUICK = {"steps": 3, "rate": 1e-3, "sampling_steps": 2, "images": 4, "batch": 2, "augment": False}


def fit(model, targets="cat", *, anchor="dog", retain=(), seed=0, checkpoint=None, progress=None, **options) -> Edit:
    request = EraseRequest.build(targets, anchor=anchor, retain=retain, seed=seed)
    config = make_config(AC, QUICK | options)
    return AC().fit(backbone(model), request, config, checkpoint=checkpoint, progress=progress)


class opened:
    """A run with its images, without training."""

    def __init__(self, pipe, targets="cat", *, anchor="dog", **options) -> None:
        request = EraseRequest.build(targets, anchor=anchor)
        self.run = opened_run(backbone(pipe), request, make_config(AC, QUICK | options))

    def __enter__(self):
        return self.run.__enter__().with_images(None, lambda *_: None)

    def __exit__(self, *error) -> None:
        self.run.__exit__(*error)


def state(pipe) -> dict[str, str]:
    """A digest of every tensor of the pipeline, the switches of all parameters and modules, and their hooks."""
    found: dict[str, str] = {}
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(pipe, part)
        found |= {f"{part}.{k}": hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest()
                  for k, v in module.state_dict().items()}  # fmt: skip
        found |= {f"{part}.{k} flag": f"{p.requires_grad} {p.grad} {id(p)}" for k, p in module.named_parameters()}
        found |= {f"{part}.{k} mode": f"{m.training} {len(m._forward_hooks)}" for k, m in module.named_modules()}
    return found


def same(a: Edit, b: Edit) -> bool:
    one, other = ({(op.site, k): v for op in e.ops for k, v in op.tensors().items()} for e in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def gradients(run, value) -> dict[str, torch.Tensor | None]:
    names = list(run.bench.student.trained)
    return dict(zip(names, torch.autograd.grad(value, [run.bench.student.trained[n] for n in names], allow_unused=True),
                    strict=True))  # fmt: skip


def plain(pipe, batch: Batch, prompts: list[str]) -> torch.Tensor:
    """One forward pass for each sample, of the pipeline as it is."""
    text = backbone(pipe).encode(prompts)
    with torch.no_grad():
        return torch.cat([pipe.unet(batch.latents[i : i + 1], int(t), encoder_hidden_states=text[i : i + 1]).sample
                          for i, t in enumerate(batch.timesteps)])  # fmt: skip
