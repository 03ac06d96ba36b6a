"""The emoji world's judge: says which objects, which style and which background a picture shows.

A small convolutional classifier, trained by the project on renders only (`train/judge.py`), never on the denoiser's
pictures. It answers each object on its own, so that two can be named in one picture. Its error rates, on held-out
renders and on generated pictures, are in `judge.json` beside its weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ModelError, UsageError
from .concepts import BACKGROUNDS, HERE, STYLES, names

JUDGE_DIR = HERE / "judge_v1"
THRESHOLD = 0.5


class Block(nn.Module):
    """Half the side: two convolutions with group norm, and a skip."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, 2, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(before, after, 1, 2, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(8, after) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, s, s) to (n, after, s / 2, s / 2)."""
        y = F.silu(self.norms[0](self.first(x)))
        return F.silu(self.norms[1](self.second(y)) + self.skip(x))


class Network(nn.Module):
    """(n, 3, 64, 64) in 0..1 to logits: objects (n, C), style (n, 5), background (n, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 1, 1)
        self.body = nn.Sequential(Block(32, 48), Block(48, 96), Block(96, 160), Block(160, 224))
        self.cells = nn.Sequential(nn.Conv2d(224, 384, 1), nn.SiLU())
        self.objects = nn.Conv2d(384, len(names()), 1)
        self.style = nn.Linear(384, len(STYLES))
        self.background = nn.Linear(384, len(BACKGROUNDS))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of objects, style and background."""
        cells = self.cells(self.body(F.silu(self.stem(images * 2 - 1))))
        # An object is there if any of the 4 x 4 cells shows it: what is learned in one place holds in all.
        objects = self.objects(cells).flatten(2).logsumexp(2)
        whole = cells.mean((2, 3))
        return objects, self.style(whole), self.background(whole)


@dataclass(frozen=True)
class Verdict:
    """Probabilities: `objects` (n, C), each on its own; `style` (n, 5) and `background` (n, 8), each summing to one."""

    objects: Tensor
    style: Tensor
    background: Tensor


class Judge:
    """A trained network with its labels; an image that is not one raises, so that a failure is never a verdict."""

    name = f"emoji-judge-v1@{THRESHOLD}"
    labels = property(lambda self: names())
    styles = STYLES
    backgrounds = tuple(BACKGROUNDS)

    def __init__(self, network: Network) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Verdict:
        """Judges images (n, 3, 64, 64) in 0..1."""
        if images.ndim != 4 or images.shape[1:] != (3, 64, 64) or not torch.isfinite(images).all():
            raise UsageError(f"the emoji judge needs finite images of shape (n, 3, 64, 64), got {tuple(images.shape)}")
        parts = [self.network(chunk.float()) for chunk in images.split(256)]
        objects, style, background = (torch.cat(p) for p in zip(*parts, strict=True))
        return Verdict(objects.sigmoid(), style.softmax(-1), background.softmax(-1))

    def found(self, images: Tensor, concept: str) -> Tensor:
        """Whether each image shows the concept: bool (n,)."""
        return self(images).objects[:, self.index(concept)] > THRESHOLD

    def index(self, concept: str) -> int:
        """The concept's place among the labels; synonyms are not labels."""
        if concept not in names():
            raise UsageError(f"the emoji judge does not know '{concept}': choose one of its {len(names())} labels")
        return names().index(concept)


@cache
def load_judge(folder: Path = JUDGE_DIR) -> Judge:
    """The shipped judge."""
    from safetensors.torch import load_file

    path = folder / "judge.safetensors"
    if not path.exists():
        raise ModelError(f"the judge's weights are missing: {path}; reinstall the package")
    network, weights = Network(), load_file(path)
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in network.state_dict().items()}:
        raise ModelError(
            f"{path} holds the weights of another network than this version's judge: reinstall the package"
        )
    network.load_state_dict({k: v.float() for k, v in weights.items()})
    return Judge(network)


def calibration(folder: Path = JUDGE_DIR) -> dict[str, object]:
    """The judge's measured error rates, as written when it was trained."""
    return json.loads((folder / "judge.json").read_text())
