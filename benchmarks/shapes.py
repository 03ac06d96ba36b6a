"""Model folders of Stable Diffusion's public shapes with random weights, and names of concepts that fit their tokenizer.

`build` writes what an edit reads of a diffusers folder: tokenizer, text encoder, the U-Net's cross-attention, the
scheduler's settings. The other weights of the U-Net are holes in its file (zeros where the file system has no holes):
an edit never reads them. SDXL has no backbone here; `xl_matrices` counts its matrices from the public configuration.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONSONANTS, VOWELS, END = "bcdfghjklmnpqrstvwxyz", "aeiou", "</w>"
SYLLABLES = [c + v for c in CONSONANTS for v in VOWELS]
TEXT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")


@dataclass(frozen=True)
class Shape:
    """One model: the text encoder's sizes (`TEXT`), the U-Net's configuration, the prediction, the padding token."""

    text: tuple[int | str, ...]
    unet: dict[str, Any]
    prediction: str = "epsilon"
    pad: str | None = None


BLOCKS = {
    "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
TINY = {
    "layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 8, "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SHAPES = {
    "sd14": Shape(
        (768, 3072, 12, 12, "quick_gelu"),
        BLOCKS | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    ),
    "sd21": Shape(
        (1024, 4096, 23, 16, "gelu"),
        BLOCKS
        | {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
        | {"use_linear_projection": True},
        prediction="v_prediction",
        pad="!",
    ),
    "sd14-small": Shape(  # wider than 77 positions: ErasePro's constraints fit, as in 768
        (192, 384, 2, 4, "quick_gelu"), TINY | {"attention_head_dim": 4, "cross_attention_dim": 192}
    ),
    "sd21-small": Shape(
        (32, 64, 2, 4, "gelu"), TINY | {"attention_head_dim": (2, 4), "use_linear_projection": True},
        prediction="v_prediction", pad="!",
    ),
}  # fmt: skip
SDXL = {
    "sample_size": 128, "layers_per_block": 2, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def folder_of(cache: Path, name: str, small: bool) -> Path:
    """Where the folder of a shape stands: sd14-shapes, sd14-shapes-small, ..."""
    return cache / f"{name}-shapes{'-small' * small}"


def build(folder: Path, name: str) -> None:
    """The diffusers folder of `SHAPES[name]`; kept if it is complete."""
    done = folder / "complete"
    if done.exists():
        return
    import torch
    from diffusers import DDIMScheduler
    from transformers import CLIPTextModel

    shape = SHAPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer", shape.pad)
    CLIPTextModel(text_config(shape)).save_pretrained(folder / "text_encoder")
    unet = empty_unet(shape.unet)
    unet.save_config(folder / "unet")
    write_random(folder / "unet" / "diffusion_pytorch_model.safetensors", unet.state_dict())
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=shape.prediction
    ).save_pretrained(folder / "scheduler")
    write_index(folder)
    done.touch()


def text_config(shape: Shape) -> Any:
    """CLIPTextConfig of the shape, with CLIP's 49408 ids."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=49408, projection_dim=shape.text[0], max_position_embeddings=77, bos_token_id=49406,
        eos_token_id=49407, pad_token_id=0 if shape.pad else 49407, **dict(zip(TEXT, shape.text, strict=True)),
    )  # fmt: skip


def empty_unet(config: dict[str, Any]) -> Any:
    """The U-Net without memory for its weights: names and shapes."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def edited(name: str) -> bool:
    """Whether a weight of this name is what cross-attention edits change."""
    return name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))


def xl_matrices(small: bool) -> dict[tuple[int, int], int]:
    """(outputs, inputs) -> how many of SDXL's cross-attention K and V matrices have this shape."""
    tensors = empty_unet(TINY if small else SDXL).state_dict()
    return dict(Counter(tuple(tensor.shape) for name, tensor in tensors.items() if edited(name)))


def write_random(path: Path, tensors: dict[str, Any]) -> None:
    """A float32 safetensors file: what gets edited is drawn at random one by one, the rest is skipped over."""
    import torch

    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            if edited(name):
                file.write((torch.randn(tensor.shape) / tensor.shape[1] ** 0.5).numpy().tobytes())
            else:
                file.seek(4 * tensor.numel(), 1)
        file.truncate(8 + len(text) + offset)


def write_index(folder: Path) -> None:
    parts = {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **parts}))


def write_tokenizer(folder: Path, pad: str | None) -> None:
    """CLIP's 49408 ids: the padding sign if there is one (id 0), letters, two-syllable words of one token each,
    unused ids, the two specials last."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    open_ = [(c, v) for c in CONSONANTS for v in VOWELS]
    close = [(c, v + END) for c in CONSONANTS for v in VOWELS]
    joined = [(a + b, c + d) for a, b in open_ for c, d in close]
    signs = [pad] if pad else []
    merges = open_ + close + joined
    pieces = dict.fromkeys([*signs, *letters, *(c + END for c in letters), *(a + b for a, b in merges)])
    names = [*pieces, *(f"<unused{i}>" for i in range(49406 - len(pieces))), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    extra = {"pad_token": pad} if pad else {}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, **extra).save_pretrained(folder)


def concepts(count: int, start: int = 0) -> list[str]:
    """Different concepts of two one-token words each; `start` and `count` together up to 1,157,625."""
    s, size = SYLLABLES, len(SYLLABLES)
    numbers = range(start, start + count)
    return [
        f"{s[i % size]}{s[(i * 7 + 3) % size]} {s[i // size % size]}{s[-1 - i // size**2]}" for i in numbers
    ]  # fmt: skip


def words(count: int, start: int = 0) -> list[str]:
    """Different concepts of one token each; `start` and `count` together up to 11,025."""
    s, size = SYLLABLES, len(SYLLABLES)
    return [f"{s[i % size]}{s[(i * 11 + 5 + i // size) % size]}" for i in range(start, start + count)]
