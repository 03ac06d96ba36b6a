"""Any transformers CLIPModel as a judge: an embedding of each image, to be compared with those of texts.

Resizing, crop and normalisation are the folder's own (PIL and numpy, as in the published scores); texts are cut at
the model's limit (77 tokens), not refused. Scores made of the embeddings (scale, prefix, prompt) are metrics' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasekit.errors import ModelError
from erasekit.models import read_json

from .base import Judgement, judge_each, packed, pil, sha256
from .folder import calibration, deciding_files, find, guarded, licence, needed, processor, read, title

BATCH = 32
USUAL = 224  # pixels
SIZES = {(768, 12): "B", (1024, 24): "L", (1280, 32): "H"}  # (width, layers) of the image tower


class ClipJudge:
    """A CLIP model with its tokenizer and image processor; `data` is `packed`: `embedding` and `dim`."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, folder: Path, title: str) -> None:
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.dim = int(model.config.projection_dim)
        self.name = f"clip[{kind_of(model.config.vision_config)} {title}]"
        self.folder = folder
        self.weights_sha256, self.licence = sha256(deciding_files(folder)), licence(folder)

    @property
    def calibration(self) -> dict[str, Any]:
        """Its error rates in the file beside its folder, read now; {} without one. `ModelError` for another judge's."""
        return calibration(self.folder, self.name, self.weights_sha256)

    def judge(self, images: Tensor, prompts: Sequence[str]) -> list[Judgement]:
        """One embedding for each image."""
        return judge_each(images, prompts, self._verdicts)

    @torch.no_grad()
    def image_embeddings(self, images: Tensor) -> Tensor:
        """Unit vectors, float32 (n, dim), of images (n, 3, h, w) in 0..1."""
        parts = [self.processor(images=pil(part), return_tensors="pt")["pixel_values"] for part in images.split(BATCH)]
        return torch.cat([_unit(self.model.get_image_features(pixel_values=p.to(self.model.device))) for p in parts])

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 (n, dim); a text longer than the model's limit is cut there."""
        limit = int(self.model.config.text_config.max_position_embeddings)
        parts = [list(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        tokens = [self.tokenizer(part, padding=True, truncation=True, max_length=limit, return_tensors="pt")
                  .to(self.model.device) for part in parts]  # fmt: skip
        found = [
            _unit(self.model.get_text_features(t["input_ids"], attention_mask=t["attention_mask"])) for t in tokens
        ]
        return torch.cat(found) if found else torch.empty(0, self.dim)

    def _verdicts(self, images: Tensor) -> list[dict[str, Any] | str]:
        found = self.image_embeddings(images)
        return [packed(v) if torch.isfinite(v).all() else "the judge gave no finite embedding" for v in found]


def load(*, option: str | None = None) -> ClipJudge:
    """The CLIP of a folder, or of a hub id that the user names; `ModelError` unless it is a complete CLIPModel."""
    from transformers import AutoTokenizer, CLIPModel

    folder = find(option, judge="clip", hub=True)
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise ModelError(f"{option} is a model of type {kind!r}, not a CLIPModel: give the folder of one")
    needed(folder, "tokenizer.json", "vocab.json")
    tokenizer = guarded(folder, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True))
    return ClipJudge(read(CLIPModel, folder), tokenizer, processor(folder), folder=folder, title=title(str(option)))


def kind_of(vision: Any) -> str:
    """The usual name of an image tower: ViT-B/32, ViT-L/14-336 (its images' size, if not 224), or its width and depth where
    it has none."""
    size = SIZES.get((vision.hidden_size, vision.num_hidden_layers))
    pixels = f"-{vision.image_size}" if size and vision.image_size != USUAL else ""
    return f"ViT-{size or f'{vision.hidden_size}x{vision.num_hidden_layers}'}/{vision.patch_size}{pixels}"


def _unit(features: Any) -> Tensor:
    # transformers 5 gives an output object whose pooler_output is the projected vector; before, the vector itself.
    vectors = getattr(features, "pooler_output", features).float().cpu()
    return vectors / vectors.norm(dim=-1, keepdim=True)
