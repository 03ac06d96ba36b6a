"""What Ablating Concepts trains: weights of the U-Net, or rows of the text encoder's token table; both with the first
token's keys and values cut off from gradients (arXiv 2303.13516, both released codes)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, LowRank, Op
from erasekit.errors import UsageError
from erasekit.training.bench import Bench
from erasekit.training.parameters import Student, select
from erasekit.training.result import changes, settle

VARIANTS = {"cross.kv": "cross.kv", "attention": "attention", "full": "all", "embedding": ""}
TABLE = "embeddings.token_embedding"
HALF_SCALE = 1024.0  # gradients are this much larger while they are in a float16 encoder, or they would underflow


@contextmanager
def bos_detached(unet: nn.Module) -> Iterator[None]:
    """Inside, the first row of every cross-attention's keys and values is what it was, and carries no gradient."""
    handles = [
        module.register_forward_hook(_cut)
        for name, module in unet.named_modules()
        if name.endswith((".attn2.to_k", ".attn2.to_v"))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], 1) if output.requires_grad else None


class WeightsStudent(Student):
    """Weights in place; while active no gradient passes through the first token."""

    def __init__(self, unet: nn.Module, names: Sequence[str]) -> None:
        super().__init__(unet, names)
        self.unet = unet

    @contextmanager
    def active(self) -> Iterator[None]:
        """As `Student.active`."""
        with super().active(), bos_detached(self.unet):
            yield


class RowsStudent:
    """The rows of the text encoder's token table that belong to `ids`: while active the encoder reads these."""

    site = f"text_encoder/{TABLE}"

    def __init__(self, unet: nn.Module, backbone: Backbone, ids: Sequence[int], *, autocast: bool) -> None:
        self.unet, self.backbone, self.autocast = unet, backbone, autocast
        self.encoder: Any = backbone.text_encoder()
        self.table: nn.Module = self.encoder.get_input_embeddings()
        weight: Tensor = self.table.weight  # pyright: ignore[reportAssignmentType]
        self.weight = weight
        self.scale = HALF_SCALE if weight.dtype == torch.float16 else 1.0
        self.ids = torch.tensor(ids, device=weight.device)
        self.original = weight.detach()[self.ids].to(torch.promote_types(weight.dtype, torch.float32))
        self.trained: dict[str, Tensor] = {"rows": self.original.clone().requires_grad_()}

    @property
    def modules(self) -> list[str]:
        """None: the denoiser stays as it is."""
        return []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the encoder reads the trained rows; outside its own, bit for bit."""
        handle = self.table.register_forward_hook(self._replaced)
        try:
            with bos_detached(self.unet):
                yield
        finally:
            handle.remove()

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """What the cross-attention reads: (n, length, width), with gradient to the rows where it is active; float32 (at
        least), so that gradients are scaled before they are rounded to the encoder's dtype."""
        ids = self.backbone.tokenize(prompts).ids.to(self.weight.device)
        with torch.autocast(self.weight.device.type, torch.bfloat16, enabled=self.autocast):
            text = self.encoder(ids)[0]
        return lifted(text.to(torch.promote_types(text.dtype, torch.float32)), self.scale)

    def _replaced(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        place = inputs[0][..., None] == self.ids
        found = embedding(place.int().argmax(-1), self.trained["rows"])  # looked up: a product rounds under autocast
        rows = lifted(found, 1 / self.scale)
        return torch.where(place.any(-1, keepdim=True), rows.to(output.dtype), output)


def lifted(tensor: Tensor, scale: float) -> Tensor:
    """The tensor itself, whose gradient goes on `scale` times as large (a power of two changes no digit)."""
    if scale != 1 and tensor.requires_grad:
        tensor.register_hook(lambda gradient: gradient * scale)
    return tensor


AnyStudent = WeightsStudent | RowsStudent


def student(backbone: Backbone, request: EraseRequest, variant: str, precision: str) -> Callable[[Any], AnyStudent]:
    """What makes the student of a U-Net."""
    if variant != "embedding":
        return lambda unet: WeightsStudent(unet, select(unet, VARIANTS[variant]))
    ids = own_tokens(backbone, request)
    return lambda unet: RowsStudent(unet, backbone, ids,
                                    autocast=precision == "bfloat16" or unet.dtype == torch.float16)  # fmt: skip


def own_tokens(backbone: Backbone, request: EraseRequest) -> list[int]:
    """The tokens of the targets that no anchor has, sorted; `UsageError` where there are none."""
    found = [{token for row, end in zip(read.ids.tolist(), read.ends, strict=True) for token in row[1:end]}
             for read in (backbone.tokenize(names) for names in (request.targets, request.anchors))]  # fmt: skip
    if not found[0] - found[1]:
        raise UsageError("every token of the targets is an anchor's too, so no row of the token table can move: choose "
                         "another anchor or variant")  # fmt: skip
    return sorted(found[0] - found[1])


def written(bench: Bench[Any]) -> tuple[Sequence[Op], list[dict[str, Any]]]:
    """The edit's ops and their records; from here on the student computes with exactly what they write."""
    if isinstance(bench.student, RowsStudent):
        return _rows(bench)
    ops = settle(bench.student)
    return ops, changes(bench, ops)


@torch.no_grad()
def _rows(bench: Bench[RowsStudent]) -> tuple[Sequence[Op], list[dict[str, Any]]]:
    """One op: the rows' changes, and where in the table they stand."""
    own = bench.student
    change = own.trained["rows"] - own.original
    own.trained["rows"].copy_(own.original + change)
    up = torch.nn.functional.one_hot(own.ids.cpu(), len(own.weight)).T.float().contiguous()
    op: Op = LowRank("text_encoder", TABLE, up, change.float().cpu())
    # Few tokens of a large table; where factors are no smaller (tests' tables) the difference itself is written.
    if up.numel() + change.numel() >= own.weight.numel():
        op = Dense("text_encoder", TABLE, up @ change.float().cpu())
    update = float(change.norm() / own.original.norm().clamp_min(1e-30))
    return [op], [{"site": op.site, "group": "text.token", "depth": 0, "relative_update": update, "rank": op.rank}]
