"""Tiny random Stable Diffusion pipelines, built offline in well under a second: the tests' stand-ins.

`sd1()` has a flat quick-gelu CLIP encoder, convolutional `proj_in` and eps prediction; `sd2()` has gelu, a linear
`proj_in`, `!` as padding and v prediction. Every call gives a fresh pipeline; the same seed gives the same weights. A
pipeline is built once for each seed and unpickled from then on: torch fills every layer twice before it has its weights.
The tokenizer knows single letters and a few whole words (`WORDS`), so that a word outside them is several tokens.
"""

from __future__ import annotations

import io
import pickle
import string
from functools import cache

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 32
WORDS = ("cat", "dog", "a", "photo", "of", "the", "fox", "in", "style", "and")
END = "</w>"


def merges_of(word: str) -> list[tuple[str, str]]:
    """The merges that build `word` letter by letter: c a, ca t</w>."""
    letters = [*word[:-1], word[-1] + END]
    return [("".join(letters[:i]), letters[i]) for i in range(1, len(letters))]


def tokenizer(pad: str | None = None) -> CLIPTokenizer:
    """A CLIPTokenizer of letters, digits, some signs and `WORDS`; pads with EOS, or with `pad` (SD 2: "!")."""
    symbols = [*string.ascii_lowercase, *string.digits, *"!,.-'"]
    merges = list(dict.fromkeys(pair for word in WORDS for pair in merges_of(word)))
    pieces = dict.fromkeys([*symbols, *(s + END for s in symbols), *("".join(pair) for pair in merges)])
    if pad is not None:  # SD 2's pad token has id 0
        pieces = {pad: None} | pieces
    names = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    extra = {} if pad is None else {"pad_token": pad}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, **extra)


def text_encoder(tokens: CLIPTokenizer, act: str, layers: int = 2) -> CLIPTextModel:
    """A random CLIP text encoder of width 32 that fits `tokens`."""
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, projection_dim=WIDTH, hidden_act=act, max_position_embeddings=77,
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
    )  # fmt: skip
    model = CLIPTextModel(config)
    with torch.no_grad():  # transformers starts biases at zero: random ones make a forgotten bias visible
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    return model


def vae() -> AutoencoderKL:
    """A random VAE of factor 2."""
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4,
        latent_channels=4, sample_size=32,
    )  # fmt: skip


def unet(**options: object) -> UNet2DConditionModel:
    """A random U-Net with cross-attention at one resolution of two, and in the middle."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=WIDTH, **options,
    )  # fmt: skip


def scheduler(prediction: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip


def pipeline(tokens: CLIPTokenizer, act: str, prediction: str, **options: object) -> StableDiffusionPipeline:
    """The parts together, in eval mode, silent."""
    parts = {"vae": vae(), "text_encoder": text_encoder(tokens, act), "unet": unet(**options)}
    pipe = StableDiffusionPipeline(
        **{name: part.eval() for name, part in parts.items()}, tokenizer=tokens, scheduler=scheduler(prediction),
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Taken(pickle.Pickler):
    """Pickles a pipeline but for its tensors, which `tensors` keeps as they are, and its tokenizer, which would decode
    `photo` as `photo</w>` afterwards."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, obj: object) -> int | str | None:
        """The number of a tensor in `tensors`. One tensor in two places would become two."""
        if isinstance(obj, CLIPTokenizer):
            return "tokenizer"
        if not isinstance(obj, torch.Tensor):
            return None
        assert all(obj is not known for known in self.tensors), "tied weights"
        self.tensors.append(obj)
        return len(self.tensors) - 1


class Given(pickle.Unpickler):
    """A pipeline with a copy of every tensor, in memory of its own, and with `tokens`."""

    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor], tokens: CLIPTokenizer) -> None:
        super().__init__(file)
        self.tensors, self.tokens = tensors, tokens

    def persistent_load(self, pid: int | str) -> torch.Tensor | CLIPTokenizer:
        """A parameter or a buffer, as it was; the tokenizer."""
        if pid == "tokenizer":
            return self.tokens
        tensor = self.tensors[pid]
        copy = tensor.detach().clone()
        return torch.nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else copy


def built(name: str, seed: int) -> StableDiffusionPipeline:
    """The pipeline of this name, made anew; leaves torch's own generator where it was."""
    pad, act, prediction, options = KINDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pipeline(tokenizer(pad), act, prediction, **options)


@cache
def taken(name: str, seed: int, width: int) -> tuple[bytes, list[torch.Tensor]]:
    """The pipeline of this name, seed and (a test may change it) `WIDTH`, in pieces: nobody is given these tensors."""
    assert width == WIDTH
    file = io.BytesIO()
    pickler = Taken(file)
    pickler.dump(built(name, seed))
    return file.getvalue(), pickler.tensors


def given(name: str, seed: int) -> StableDiffusionPipeline:
    data, tensors = taken(name, seed, WIDTH)
    return Given(io.BytesIO(data), tensors, tokenizer(KINDS[name][0])).load()


KINDS = {  # the padding, the encoder's activation, what is predicted, the U-Net's options
    "sd1": (None, "quick_gelu", "epsilon", {"attention_head_dim": 4}),
    "sd2": ("!", "gelu", "v_prediction", {"attention_head_dim": (2, 4), "use_linear_projection": True}),
}


def sd1(seed: int = 0) -> StableDiffusionPipeline:
    """A fresh tiny SD 1.x pipeline; the same seed gives the same weights."""
    return given("sd1", seed)


def sd2(seed: int = 0) -> StableDiffusionPipeline:
    """A fresh tiny SD 2.x pipeline; the same seed gives the same weights."""
    return given("sd2", seed)


def image(pipe: StableDiffusionPipeline, prompt: str = "a cat", *, seed: int = 0, latent: bool = False) -> torch.Tensor:
    """One image of 2 steps as a tensor (1, 3, 32, 32), or its latents (1, 4, 16, 16)."""
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed)).to(pipe.unet.dtype)
    result = pipe(
        prompt, latents=noise, num_inference_steps=2, guidance_scale=3.0, output_type="latent" if latent else "pt"
    )
    return result.images
