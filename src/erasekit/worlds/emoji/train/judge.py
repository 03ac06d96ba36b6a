"""The judge's training: renders, strongly disturbed, half of them passed through the autoencoder.

Disturbances: shifts and sizes that no training scene of the denoiser has, colour changes, blur, noise, patches
covered, and pictures that show nothing (plain, or two drawings averaged away), so that "nothing there" is an answer.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from ..concepts import STYLES, names
from ..judge import Network, load_judge
from ..scenes import Scene, render, sample_scene
from .loop import Schedule, refuse_finished, step_rng, train

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
POOL = 6000
CLEAN = 0.3
OBJECT_WEIGHT = 60.0


def free_scene(rng: np.random.Generator) -> Scene:
    """A scene with places and sizes off the denoiser's grid."""
    scene = sample_scene(rng, pair_share=0.4)
    grow = 0.85 + 0.25 * rng.random()
    places = tuple(
        (x + int(rng.integers(-4, 5)), y + int(rng.integers(-4, 5)), int(s * grow)) for x, y, s in scene.places
    )
    return Scene(scene.objects, scene.style, scene.background, places)


def labels_of(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Objects as a multi-hot (n, C), style and background as indices (n,)."""
    objects = torch.zeros(len(scenes), len(names()))
    for row, scene in enumerate(scenes):
        objects[row, list(scene.objects)] = 1
    return objects, torch.tensor([s.style for s in scenes]), torch.tensor([s.background for s in scenes])


def clean_batch(rng: np.random.Generator, count: int) -> Batch:
    """Undisturbed renders and their labels."""
    scenes = [free_scene(rng) for _ in range(count)]
    images = torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2)
    return images, *labels_of(scenes)


@torch.no_grad()
def through_autoencoder(images: Tensor, vae: AutoencoderKL, rng: np.random.Generator) -> Tensor:
    """The images as the autoencoder gives them back, with a little noise on the latents."""
    parts = []
    for chunk in images.split(128):
        z = vae.encode(chunk * 2 - 1).latent_dist.mean
        spread = torch.from_numpy(rng.random((len(z), 1, 1, 1), dtype=np.float32)) * 0.25 / vae.config.scaling_factor
        z = z + spread * torch.from_numpy(rng.standard_normal(z.shape, dtype=np.float32))
        parts.append((vae.decode(z).sample / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)


def disturb(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift by up to 3 pixels, colour, blur, noise and a covered patch, each on some of the images; 30 % stay clean."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, size=(n, *shape)).astype(np.float32))

    dy, dx = rng.integers(-3, 4, size=2)
    x = torch.roll(images, (int(dy), int(dx)), (2, 3))
    x = (x - 0.5) * uniform(0.75, 1.2, 1, 1, 1) + 0.5 + uniform(-0.08, 0.08, 3, 1, 1)
    small = F.interpolate(F.interpolate(x, scale_factor=0.5, mode="area"), size=64, mode="bilinear")
    blur = uniform(0, 1, 1, 1, 1) * (uniform(0, 1, 1, 1, 1) < 0.6)
    x = x * (1 - blur) + small * blur
    x = x + uniform(0, 0.06, 1, 1, 1) * torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    for row in np.flatnonzero(rng.random(n) < 0.3):
        top, left, size = rng.integers(0, 52), rng.integers(0, 52), rng.integers(6, 13)
        x[row, :, top : top + size, left : left + size] = float(rng.random())
    spared = torch.from_numpy(rng.random(n) < CLEAN)[:, None, None, None]
    return torch.where(spared, images, x.clamp(0, 1))


def empty_some(batch: Batch, rng: np.random.Generator) -> Batch:
    """Turns 8 % of the images into pictures of nothing: a plain colour, an average over the batch, a coarse blur."""
    images, objects, style, background = (t.clone() for t in batch)
    rows = np.flatnonzero(rng.random(len(images)) < 0.08)
    for row in rows:
        others = images[rng.integers(len(images), size=6)].mean(0)
        coarse = F.interpolate(images[row : row + 1], scale_factor=1 / 16, mode="area")
        blurred = F.interpolate(coarse, size=64, mode="bilinear")[0]
        images[row] = (images[row, :, :1, :1].expand(3, 64, 64), others, blurred)[int(rng.integers(3))]
        objects[row] = 0
    return images, objects, style, background


def loss_on(network: Network, batch: Batch) -> Tensor:
    """Objects by binary cross-entropy (the few ones weigh more), style and background by cross-entropy."""
    images, objects, style, background = batch
    o, s, b = network(images)
    positive = torch.full((objects.shape[1],), 2.0)
    named = F.binary_cross_entropy_with_logits(o, objects, pos_weight=positive)
    return OBJECT_WEIGHT * named + F.cross_entropy(s, style) + 0.5 * F.cross_entropy(b, background)


def run(work: Path, *, seed: int = 0, steps: int = 1400, batch: int = 96, onward: bool = False) -> None:
    """Saves `work/judge/judge.safetensors` (float16) and its error rates on held-out renders; `onward` begins there."""
    if onward:
        refuse_finished(work / "judge.pt", steps)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    rng = step_rng(seed, "judge-pool", 0)
    pool = clean_batch(rng, POOL)
    pool = (through_autoencoder(pool[0], vae, rng), *pool[1:])
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        network = load_judge(work / "judge").network.train() if onward else Network()
    network = network.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        rng = step_rng(seed, "judge", step)
        rows = torch.from_numpy(rng.integers(POOL, size=batch // 3))
        fresh = clean_batch(rng, batch - len(rows))
        both = tuple(torch.cat((a, b[rows])) for a, b in zip(fresh, pool, strict=True))
        images, *rest = empty_some(both, rng)  # type: ignore[arg-type]
        return loss_on(network, (disturb(images, rng), *rest))  # type: ignore[arg-type]

    train(network, loss_of, Schedule(steps, 1.5e-3, decay=0.8), work / "judge.pt", weight_decay=0.05)
    _save(network, vae, work / "judge", seed)


def rates(network: Network, batch: Batch) -> dict[str, float]:
    """Recall of objects that are there, share of images with a false object, exact matches, style and background accuracy."""
    images, objects, style, background = batch
    with torch.no_grad():
        o, s, b = (torch.cat(p) for p in zip(*(network(c) for c in images.split(256)), strict=True))
    said = o.sigmoid() > 0.5
    return {
        "object_recall": float(said[objects > 0].float().mean()),
        "false_object_rate": float((said & (objects == 0)).any(1).float().mean()),
        "exact_match": float((said == (objects > 0)).all(1).float().mean()),
        "style_accuracy": float((s.argmax(1) == style).float().mean()),
        "background_accuracy": float((b.argmax(1) == background).float().mean()),
    }


def _save(network: Network, vae: AutoencoderKL, folder: Path, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    rng = step_rng(seed, "judge-held-out", 0)
    held = clean_batch(rng, 3000)
    decoded = (through_autoencoder(held[0], vae, rng), *held[1:])
    grid = [sample_scene(rng) for _ in range(2000)]
    on_grid = (torch.from_numpy(np.stack([render(s) for s in grid])).permute(0, 3, 1, 2), *labels_of(grid))
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, folder / "judge.safetensors")
    report = {"labels": len(names()), "styles": list(STYLES), "renders": rates(network, on_grid)}
    report |= {"renders_off_grid": rates(network, held), "through_autoencoder": rates(network, decoded)}
    (folder / "judge.json").write_text(json.dumps(report, indent=1) + "\n")
