"""The text side: a BPE vocabulary learned on the captions, and a CLIP text encoder trained against a small image tower.

The encoder is trained contrastively (as in CLIP, arXiv 2103.00020) and then frozen. The vocabulary is kept small on
purpose: common words are one token, many concepts are two or three, as in the models that people use.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..captions import caption
from ..scenes import render, sample_scene
from .loop import Schedule, step_rng, train

VOCABULARY = 560
WIDTH = 192


def build_tokenizer(seed: int = 0) -> CLIPTokenizer:
    """A genuine `CLIPTokenizer` whose merges were learned on 20,000 captions."""
    rng = step_rng(seed, "bpe", 0)
    texts = [caption(sample_scene(rng), rng) for _ in range(20_000)]
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = Whitespace()
    alphabet = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    trainer = BpeTrainer(
        vocab_size=VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    symbols = alphabet + [c + "</w>" for c in alphabet]
    pieces = [*list(dict.fromkeys(symbols + ["".join(m) for m in merges])), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, model_max_length=77)


def _halving(before: int, after: int) -> nn.Sequential:
    first = (nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.SiLU())
    return nn.Sequential(*first, nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU())


class ImageTower(nn.Module):
    """64 x 64 pictures to unit vectors; only a partner for the text encoder, not shipped."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        blocks = [_halving(before, after) for before, after in ((32, 64), (64, 128), (128, 256))]
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), nn.SiLU(), *blocks, nn.Flatten(), nn.Linear(256 * 16, width)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Unit vectors (n, width)."""
        return F.normalize(self.body(pictures), dim=-1)


class Pair(nn.Module):
    """Text encoder and image tower with CLIP's learned temperature."""

    def __init__(self, vocabulary: int, end: int, start: int) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=6,
            num_attention_heads=4, projection_dim=WIDTH, hidden_act="quick_gelu", max_position_embeddings=77,
            bos_token_id=start, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        self.text = CLIPTextModel(config)
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)
        self.image = ImageTower()
        self.temperature = nn.Parameter(torch.tensor(2.65))

    def loss(self, ids: Tensor, pictures: Tensor) -> Tensor:
        """The symmetric contrastive loss of a batch."""
        text = F.normalize(self.project(self.text(input_ids=ids).pooler_output), dim=-1)
        logits = self.temperature.clamp(max=4.6).exp() * text @ self.image(pictures).T
        truth = torch.arange(len(ids))
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def batch_of(rng: np.random.Generator, tokenizer: CLIPTokenizer, count: int) -> tuple[Tensor, Tensor]:
    """Token ids, cut to the longest caption (nothing behind the end is read: the encoder is causal), and pictures."""
    scenes = [sample_scene(rng) for _ in range(count)]
    ids = tokenizer([caption(s, rng) for s in scenes], padding=True, return_tensors="pt").input_ids
    pictures = np.stack([render(s) for s in scenes])
    return ids, torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1


def run(work: Path, *, seed: int = 0, steps: int = 300, batch: int = 160) -> None:
    """Saves `work/tokenizer` and the frozen `work/text_encoder`."""
    tokenizer = build_tokenizer(seed)
    tokenizer.save_pretrained(work / "tokenizer")
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        pair = Pair(len(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id)

    def loss_of(step: int) -> Tensor:
        return pair.loss(*batch_of(step_rng(seed, "text", step), tokenizer, batch))

    train(pair, loss_of, Schedule(steps, 1.5e-3, decay=0.7), work / "text.pt", weight_decay=0.05)
    pair.text.save_pretrained(work / "text_encoder")
    (work / "text.json").write_text(json.dumps({"in_batch_accuracy": _accuracy(pair, tokenizer, seed)}))


@torch.no_grad()
def _accuracy(pair: Pair, tokenizer: CLIPTokenizer, seed: int) -> float:
    ids, pictures = batch_of(step_rng(seed, "text-check", 0), tokenizer, 160)
    text = F.normalize(pair.project(pair.text(input_ids=ids).pooler_output), dim=-1)
    return float(((text @ pair.image(pictures).T).argmax(1) == torch.arange(160)).float().mean())
