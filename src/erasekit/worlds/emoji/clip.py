"""The emoji world's own CLIP: pictures and texts as unit vectors of one space, for CLIP score and CLIP accuracy.

Trained by contrast (arXiv 2103.00020) on renders only (`train/clip.py`), and apart from the pipeline's text encoder,
which edits change: a metric must not mark its own homework. Texts are read word by word: case and punctuation do not
matter, a word that no caption uses counts as unknown, and what stands behind the 31st word is cut off. How far its
cosines can be trusted is measured in `clip.json` beside its weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ModelError, UsageError
from ...files import write_whole
from .concepts import HERE
from .judge import Block
from .scenes import SIZE

CLIP_DIR = HERE / "clip_v1"
DIM = 128
WIDTH = 128
HEADS = 4
MAX_WORDS = 32
PAD, START, UNKNOWN = 0, 1, 2


def split(text: str) -> list[str]:
    """The words of a text in lower case, punctuation dropped."""
    return re.findall(r"\w+", text.lower())


class Words:
    """A fixed list of words and their numbers; 0 is padding, 1 the start, 2 any word that is not in the list."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._numbers = {word: i + 3 for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words) + 3

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Numbers (n, longest): the start, then at most 31 words, then padding."""
        rows = [[START, *(self._numbers.get(w, UNKNOWN) for w in split(text))][:MAX_WORDS] for text in texts]
        longest = max(map(len, rows), default=1)
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]).view(len(rows), longest)


class ImageTower(nn.Module):
    """Pictures (n, 3, 64, 64) in 0..1 to unit vectors (n, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 2, 1)
        self.body = nn.Sequential(Block(24, 48), Block(48, 88), Block(88, 176))
        self.cells = nn.Conv2d(176, 320, 1)
        self.project = nn.Linear(640, DIM, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Unit vectors (n, 128)."""
        cells = F.silu(self.cells(self.body(F.silu(self.stem(pictures * 2 - 1))))).flatten(2)
        # The strongest of the 4 x 4 cells says what is there, wherever it is; their mean says how the whole looks.
        return F.normalize(self.project(torch.cat((cells.amax(2), cells.mean(2)), 1)), dim=-1)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        n, words, _ = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(n, words, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
        x = x + self.out(mixed.transpose(1, 2).reshape(n, words, WIDTH))
        return x + self.mlp(self.norms[1](x))


class TextTower(nn.Module):
    """Word numbers (n, words) to unit vectors (n, 128); padding changes nothing."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, WIDTH)
        self.places = nn.Embedding(MAX_WORDS, WIDTH)
        self.layers = nn.ModuleList(_Layer() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.project = nn.Linear(WIDTH, DIM, bias=False)
        for table, spread in ((self.words, 0.05), (self.places, 0.01)):
            nn.init.normal_(table.weight, std=spread)

    def forward(self, ids: Tensor) -> Tensor:
        """Unit vectors (n, 128)."""
        real = ids != PAD
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, real)
        mean = (self.norm(x) * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return F.normalize(self.project(mean), dim=-1)


class Network(nn.Module):
    """Both towers and CLIP's learned temperature."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.image = ImageTower()
        self.text = TextTower(vocabulary)
        self.temperature = nn.Parameter(torch.tensor(2.65))

    def forward(self, pictures: Tensor, ids: Tensor) -> Tensor:
        """Logits (pictures, texts): the cosines times a learned factor of at most 100."""
        return self.temperature.clamp(max=4.6).exp() * self.image(pictures) @ self.text(ids).T


class Clip:
    """A trained network with its words; each vector depends on its own picture or text alone, to the bit."""

    name = f"emoji-clip-v1[{DIM}]"
    dim = DIM

    def __init__(self, network: Network, words: Words) -> None:
        self.network = network.eval()
        self.words = words

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Unit vectors (n, 128) of pictures (n, 3, 64, 64) in 0..1; anything else raises `UsageError`."""
        if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE) or not torch.isfinite(images).all():
            got = tuple(images.shape)
            raise UsageError(f"the emoji world's CLIP needs finite images of shape (n, 3, 64, 64), got {got}")
        # One at a time: a run that was stopped batches otherwise when it goes on, and must give the same bits.
        return torch.cat([torch.empty(0, DIM), *(self.network.image(one.float()) for one in images.split(1))])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, 128) of any texts; one without a known word has a vector too, which says nothing."""
        return torch.cat([torch.empty(0, DIM), *(self.network.text(self.words.ids([text])) for text in texts)])


def save_clip(network: Network, words: Words, folder: Path) -> None:
    """Writes `clip.safetensors` in float16, the words in its header, so that the two cannot part."""
    from safetensors.torch import save

    state = {key: value.detach().half().contiguous() for key, value in network.state_dict().items()}
    write_whole(folder / "clip.safetensors", save(state, metadata={"words": json.dumps(words.words)}))


@cache
def load_clip(folder: Path = CLIP_DIR) -> Clip:
    """The shipped CLIP, read once; errors as `read_clip`."""
    return read_clip(folder)


def read_clip(folder: Path) -> Clip:
    """The CLIP in a folder; `ModelError` where its weights are missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = folder / "clip.safetensors"
    if not path.is_file():
        raise ModelError(
            f"the weights of the emoji world's CLIP are missing: {path}; reinstall the package, or train them with "
            "python -m erasekit.worlds.emoji.train clip"
        )
    try:
        with safe_open(path, "pt") as file:
            words = Words(json.loads((file.metadata() or {})["words"]))
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
        network = Network(len(words))
        network.load_state_dict(state)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ModelError(f"the weights of the emoji world's CLIP are damaged: {path}; reinstall the package") from error
    return Clip(network, words)


def calibration(folder: Path = CLIP_DIR) -> dict[str, object]:
    """Its measured accuracies and cosines, as written when it was trained."""
    return json.loads((folder / "clip.json").read_text())
