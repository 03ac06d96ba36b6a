"""The shipped pipeline: complete, small, and drawing what its card says."""

import json

import numpy as np
import pytest
import torch

import erasekit
from erasekit import models
from erasekit.evaluation.sampler import sample, shots
from erasekit.worlds.emoji import MODEL_DIR, STYLES, concepts
from erasekit.worlds.emoji.judge import JUDGE_DIR, load_judge


@pytest.fixture(scope="module")
def pipe():
    return erasekit.load("emoji")


def test_is_a_complete_pipeline_under_the_size_limit(pipe):
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.tokenizer.model_max_length == 77 and pipe.text_encoder.config.num_hidden_layers >= 5
    cross = {n.split(".")[0] for n, _ in pipe.unet.named_modules() if n.endswith("attn2.to_k")}
    assert cross >= {"down_blocks", "mid_block", "up_blocks"}
    size = sum(f.stat().st_size for folder in (MODEL_DIR, JUDGE_DIR) for f in folder.rglob("*") if f.is_file())
    assert size < 100e6
    assert not [f for f in MODEL_DIR.rglob("*") if f.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_weights_are_stored_in_half_precision():
    assert models.stored_dtype(MODEL_DIR) is torch.float16


def test_some_concepts_are_several_tokens(pipe):
    counts = [len(pipe.tokenizer(c.name).input_ids) - 2 for c in concepts()]
    assert counts.count(1) >= 100 and max(counts) >= 3


def test_the_autoencoder_gives_drawings_back(pipe):
    from erasekit.worlds.emoji.scenes import render, sample_scene

    rng = np.random.default_rng(3)
    images = torch.from_numpy(np.stack([render(sample_scene(rng)) for _ in range(16)])).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        back = pipe.vae.decode(pipe.vae.encode(images).latent_dist.mode()).sample
    assert (back - images).abs().mean() < 0.06


def test_the_same_seed_gives_the_same_picture_whatever_its_batch(pipe):
    work = shots(["a cat in ink style", "a rocket on a blue background"], [0])
    together = [np.asarray(image, dtype=int) for _, image in sample(pipe, work, steps=4, guidance=2.5)]
    alone = [np.asarray(next(iter(sample(pipe, [w], steps=4, guidance=2.5)))[1], dtype=int) for w in work]
    assert max(np.abs(a - b).max() for a, b in zip(together, alone, strict=True)) <= 2


@pytest.mark.slow
def test_draws_as_well_as_its_card_says(pipe):
    card = json.loads((MODEL_DIR / "quality.json").read_text())["plain, a X in S style"]
    rng, judge = np.random.default_rng(4), load_judge()
    rows = [(int(rng.integers(len(concepts()))), int(rng.integers(len(STYLES)))) for _ in range(160)]
    prompts = [f"a {concepts()[i].name} in {STYLES[s]} style" for i, s in rows]
    work = [shots([p], [1000 + k])[0] for k, p in enumerate(prompts)]
    pixels = np.stack([np.asarray(im, dtype=np.float32) / 255 for _, im in sample(pipe, work, **models.defaults(MODEL_DIR))])
    verdict = judge(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    named = np.mean([int(v.argmax()) == i for v, (i, _) in zip(verdict.objects, rows, strict=True)])
    styled = np.mean([int(v.argmax()) == s for v, (_, s) in zip(verdict.style, rows, strict=True)])
    assert abs(named - card["objects"][0]) < 0.13 and abs(styled - card["style"][0]) < 0.13
