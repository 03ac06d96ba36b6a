"""Random edits of the tiny pipelines, for the tests of edits, files and exports."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from erasekit.edit import Adapter, Base, Dense, Edit, Guidance, LowRank, Op, Projection, fingerprint

KEYS = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.v_proj"]
MLP = ["encoder.layers.1.mlp.fc1", "encoder.layers.1.mlp.fc2"]


def module(pipe, component: str, name: str) -> nn.Module:
    return getattr(pipe, component).get_submodule(name)


def noise(*shape: int, seed: int, size: float = 0.1) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(pipe, component: str, name: str, *, rank: int, seed: int = 0, size: float = 0.1) -> LowRank:
    weight = module(pipe, component, name).weight
    down = noise(rank, *weight.shape[1:], seed=seed, size=size)
    return LowRank(component, name, noise(weight.shape[0], rank, seed=seed + 1), down)


def dense(pipe, component: str, name: str, *, seed: int = 0) -> Dense:
    return Dense(component, name, noise(*module(pipe, component, name).weight.shape, seed=seed))


def base(pipe, ops, family: str = "sd1") -> Base:
    prints = {op.site: fingerprint(module(pipe, op.component, op.module).weight) for op in ops}
    return Base("tiny", family, prints)


def edit(pipe, *ops: Op, family: str = "sd1", **fields) -> Edit:
    if not ops:
        unet = [low_rank(pipe, "unet", name, rank=2 + i, seed=10 + i, size=1.0) for i, name in enumerate(KEYS)]
        text = [low_rank(pipe, "text_encoder", name, rank=1 + i, seed=20 + i, size=1.0) for i, name in enumerate(TEXT)]
        ops = (*unet, *text)
    known = {"method": "erasepro", "targets": ("cat",), "anchors": ("dog",), "parameters": {"ridge": 0.0}}
    return Edit(ops=ops, base=base(pipe, ops, family), **(known | fields))


def weights(pipe) -> dict[str, Tensor]:
    """Copies of all parameters of the U-Net and the text encoder."""
    return {
        f"{part}/{name}": value.detach().clone()
        for part in ("unet", "text_encoder")
        for name, value in getattr(pipe, part).state_dict().items()
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bitwise."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def example() -> Edit:
    """One op of every kind, and values of every sort."""
    weight = torch.ones(3, 2)
    shared = torch.arange(12.0).reshape(4, 3)
    ops = (
        LowRank("unet", "a.to_k", shared[:, :2], noise(2, 5, seed=1).T.contiguous().T),
        Dense("text_encoder", "encoder.x", shared.to(torch.bfloat16)),
        Projection("unet", "b", None, torch.eye(2), torch.ones(3)),
        Adapter("unet", "c", "gate", {"in.weight": torch.ones(1), "out": torch.zeros(2)}, {"rank": 1, "on": True}),
        Guidance("negative", {}, {"strength": 0.5}),
    )
    return Edit(
        ops, Base("tiny model", "sd1", {"unet/a.to_k": fingerprint(weight)}), "uce",
        parameters={"lamb": 0.5, "tokens": "last", "layers": [1, 2], "none": None}, targets=("cat", "Zoë's café"),
        anchors=("dog", ""), retain=("fox",), seed=7, versions={"torch": "2"},
        self_check={"modules": 2, "residual": 1e-7, "condition": float("inf"), "sites": [{"rank": torch.tensor(2)}]},
        history=("scaled by 1",),
    )  # fmt: skip
