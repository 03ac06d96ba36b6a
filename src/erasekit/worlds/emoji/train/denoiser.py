"""The denoiser: a U-Net on 8 x 8 x 16 latents, conditioned on the frozen text encoder.

Velocity prediction (arXiv 2202.00512) on Stable Diffusion's schedule, with the weight of low noise capped as min-SNR-5
does (arXiv 2303.09556), captions dropped for classifier-free guidance, more of them where the picture itself says what it
shows, a moving average of the weights. Latents and text features are computed once.

Why not noise prediction: on 8 x 8 latents what a picture shows is decided at high noise, where a noise error is the
picture's error times an SNR of 0.01, so the caption is learned slowly.

With concepts or styles withheld, the same recipe gives a denoiser that never saw them, beside which an edit can be laid.
Only the denoiser: text encoder and autoencoder are the full ones, and read and draw what it never learned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..captions import caption
from ..concepts import STYLES
from ..scenes import Scene, render, sample_scene
from .kept import digest, kept
from .loop import Schedule, refuse_finished, step_rng, train
from .withheld import NOTHING, Withheld

log = logging.getLogger(__name__)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DROPOUT, DROPOUT_CLEAR, CLEAR = 0.1, 0.5, 600
WEIGHT_CAP = 5.0
PREDICTION = "v_prediction"
PAIR_SHARE = 0.35
SHARES = {
    "named": 0.6,
    "unnamed": 0.1,
    "pair": 0.3,
}  # under a focus: one object with and without its style, two objects


def build() -> UNet2DConditionModel:
    """The untrained U-Net, cross-attention at both resolutions."""
    return UNet2DConditionModel(
        sample_size=8, in_channels=16, out_channels=16, block_out_channels=(128, 256), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=192, attention_head_dim=4,
    )  # fmt: skip


@torch.no_grad()
def encode_text(work: Path, texts: list[str]) -> Tensor:
    """Text features (n, 77, 192) in float16."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(work / "text_encoder").eval()
    parts = []
    for start in range(0, len(texts), 256):
        ids = tokenizer(texts[start : start + 256], padding="max_length", max_length=77, return_tensors="pt").input_ids
        parts.append(encoder(input_ids=ids).last_hidden_state.half())
    return torch.cat(parts)


@torch.no_grad()
def encode_scenes(work: Path, scenes: list[Scene]) -> Tensor:
    """Scaled latents (n, 16, 8, 8)."""
    vae = AutoencoderKL.from_pretrained(work / "vae").eval().to(memory_format=torch.channels_last)
    parts = []
    for start in range(0, len(scenes), 128):
        pictures = torch.from_numpy(np.stack([render(s) for s in scenes[start : start + 128]]))
        parts.append(vae.encode(pictures.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(parts)


def pairs(seed: int, count: int, withheld: Withheld = NOTHING) -> tuple[list[Scene], list[str]]:
    """The training scenes with one caption each; what shows something withheld is replaced, all other rows stay."""
    rng = step_rng(seed, "denoiser-data", 0)
    scenes = [sample_scene(rng, pair_share=PAIR_SHARE) for _ in range(count)]
    texts = [caption(s, rng) for s in scenes]
    rng = step_rng(seed, "denoiser-data-instead", 0)
    for row, scene in enumerate(scenes):
        if withheld.shown_by(scene):
            scenes[row] = _instead(rng, len(scene.objects), withheld)
            texts[row] = caption(scenes[row], rng)
    return scenes, texts


def _instead(rng: np.random.Generator, objects: int, withheld: Withheld) -> Scene:
    """A scene of as many objects that shows nothing withheld."""
    while True:
        scene = sample_scene(rng, pair_share=float(objects == 2))
        if not withheld.shown_by(scene):
            return scene


def latents(work: Path, seed: int, count: int, withheld: Withheld = NOTHING) -> Tensor:
    """The scenes' latents; kept in `work/latents.pt`, with the suffix of what is withheld, for this very autoencoder."""
    origin = {"seed": seed, "count": count, "vae": digest(work / "vae")}
    return kept(work / f"latents{withheld.suffix}.pt", origin, count,
                lambda: encode_scenes(work, pairs(seed, count, withheld)[0]))  # fmt: skip


def contexts(work: Path, seed: int, count: int, withheld: Withheld = NOTHING) -> Tensor:
    """The captions' text features, the empty prompt's last; kept in `work/contexts.pt` likewise."""
    origin = {"seed": seed, "count": count, "text": digest(work / "tokenizer", work / "text_encoder")}
    return kept(work / f"contexts{withheld.suffix}.pt", origin, count + 1,
                lambda: encode_text(work, [*pairs(seed, count, withheld)[1], ""]))  # fmt: skip


def spread_times(rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` timesteps of 0..999 in random order, stratified: half of density t^3, half uniform.

    It is at high noise that the caption is all there is to go by, and there that which drawing of an object is meant, its
    style, is decided; but what is decided there is drawn at low noise. Stratified: less noise in the loss.
    """
    place = (rng.permutation(count) + rng.random(count)) / count
    return (np.where(place < 0.5, 2 * place, np.abs(2 * place - 1) ** 0.25) * 1000).astype(np.int64)


def dropout(times: np.ndarray) -> np.ndarray:
    """The share of captions that are dropped at each timestep: more where the picture itself says what it shows.

    There both branches of guidance should agree. Seldom trained without caption, the model needs it even for what is in
    plain sight, and guidance then drives the picture away from it.
    """
    return np.where(times < CLEAR, DROPOUT_CLEAR, DROPOUT)


def row_focus(work: Path, seed: int, count: int, withheld: Withheld = NOTHING) -> np.ndarray | None:
    """The rows' cumulative probabilities by the drawings' weights in `work/focus.pt` (stage `focus`); None without it.

    What is withheld is in no row, so its weight counts for nothing; all else has the weight that it has with all data.
    """
    path = work / "focus.pt"
    if not path.exists():
        return None
    return np.cumsum(row_weights(*pairs(seed, count, withheld), torch.load(path, weights_only=True).numpy()))


def row_weights(scenes: Sequence[Scene], texts: Sequence[str], weight: np.ndarray) -> np.ndarray:
    """Each training row's probability, such that in each kind of row every drawing has the mass of its weight.

    weight (objects, styles). The kinds' shares are `SHARES`; a pair counts half for each of its drawings. Sums to 1.
    """
    shown = np.zeros((len(scenes), *weight.shape), dtype=np.float32)
    kinds = np.empty(len(scenes), dtype="U8")
    for row, (scene, text) in enumerate(zip(scenes, texts, strict=True)):
        shown[row, list(scene.objects), scene.style] = 1 / len(scene.objects)
        named = "named" if STYLES[scene.style] in text else "unnamed"
        kinds[row] = named if len(scene.objects) == 1 else "pair"
    probability = np.zeros(len(scenes))
    for kind, share in SHARES.items():
        rows = kinds == kind
        count = shown[rows].sum(0)
        raw = (shown[rows] * np.divide(weight, count, out=np.zeros_like(count), where=count > 0)).sum((1, 2))
        probability[rows] = share * raw / max(raw.sum(), 1e-12)
    return probability / probability.sum()


def chosen_rows(rng: np.random.Generator, count: int, batch: int, focus: np.ndarray | None) -> np.ndarray:
    """The rows of a batch: all alike, or by the cumulative probabilities `focus`."""
    if focus is None:
        return rng.integers(count, size=batch)
    return np.minimum(np.searchsorted(focus, rng.random(batch), side="right"), count - 1)


def run(
    work: Path, *, seed: int = 0, steps: int = 4000, batch: int = 64, count: int = 20_000, onward: bool = False,
    without: Sequence[str] = (), without_style: Sequence[str] = (), bf16: bool = False,
) -> None:  # fmt: skip
    """Trains the U-Net (`onward`: the one in `work/unet`) and saves its moving average in `work/unet`.

    `bf16` computes the U-Net's products in bfloat16; weights, optimizer and average stay float32. (The optimizer's
    orthogonalisation too: on the Gram matrix alone it diverges in bfloat16.)

    With concepts or styles withheld, data, checkpoint and U-Net have names of their own (`Withheld.suffix`).
    """
    withheld = Withheld(tuple(without), tuple(without_style))
    suffix = withheld.suffix
    if onward:
        refuse_finished(work / f"denoiser{suffix}.pt", steps)
    clean, texts = latents(work, seed, count, withheld), contexts(work, seed, count, withheld)
    focus = row_focus(work, seed, count, withheld)
    log.info("%d scenes", len(clean))
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        unet = UNet2DConditionModel.from_pretrained(work / f"unet{suffix}") if onward else build()
    unet = unet.train().to(memory_format=torch.channels_last)
    alphas = DDPMScheduler(**BETAS).alphas_cumprod
    error_of_picture = 1 / (1 - alphas)  # squared velocity error = this times the squared error of the picture
    weight = error_of_picture.clamp(max=WEIGHT_CAP) / error_of_picture

    def loss_of(step: int) -> Tensor:
        rng = step_rng(seed, "denoiser", step)
        rows = torch.from_numpy(chosen_rows(rng, count, batch, focus))
        times = spread_times(rng, batch)
        t = torch.from_numpy(times)
        noise = torch.from_numpy(rng.standard_normal((batch, 16, 8, 8), dtype=np.float32))
        captioned = torch.from_numpy(rng.random(batch) >= dropout(times))[:, None, None]
        context = torch.where(captioned, texts[rows], texts[-1:]).float()
        signal, spread = (p[t][:, None, None, None] for p in (alphas.sqrt(), (1 - alphas).sqrt()))
        noisy = (signal * clean[rows] + spread * noise).contiguous(memory_format=torch.channels_last)
        velocity = signal * noise - spread * clean[rows]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            said = unet(noisy, t, context).sample.float()
        return (weight[t] * (said - velocity).square().mean((1, 2, 3))).mean()

    schedule = Schedule(steps, 2e-3, warmup=60, decay=0.5)
    trained = train(unet, loss_of, schedule, work / f"denoiser{suffix}.pt", ema=0.995)
    trained.save_pretrained(work / f"unet{suffix}")
