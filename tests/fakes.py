"""A tiny suite and judges that answer by rule, for the tests of the runner and of the aggregates."""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch
import torch.nn.functional as F

from erasekit.evaluation.judges import Judgement, check
from erasekit.evaluation.judges.base import packed
from erasekit.evaluation.suites import Prompt, Sampling, Suite, Target

PROMPTS = (
    Prompt("plain/cat/1", "plain", "a cat", "cat", ("cat",), seeds=(0, 1), twin="a photo"),
    Prompt("plain/cat/2", "plain", "a photo of a cat", "cat", ("cat",), seeds=(0, 1), twin="a photo of a"),
    Prompt("synonym/cat/1", "synonym", "a c", "cat", ("cat",), seeds=(0, 1)),
    Prompt("anchor/cat/1", "anchor", "a dog", "cat", ("dog",), seeds=(0, 1)),
    Prompt("unrelated/1", "unrelated", "a fox", "", ("fox",), "noto", "blue", seeds=(0, 1)),
    Prompt("unrelated/2", "unrelated", "the fox in a style", "", ("fox",), "flat", "pink", seeds=(0, 1, 2)),
)
COUNT = sum(len(prompt.seeds) for prompt in PROMPTS)


class Tiny(Suite):
    """A suite whose prompts are a constant list."""

    def prompts(self, targets=(), anchors=()):
        assert not targets or list(targets) == ["cat"]
        return PROMPTS


def suite(name: str = "tiny", *, judges: tuple[str, ...] = ("rule", "near"), **changes) -> Suite:
    concepts = (Target("cat", "cat", "dog"), Target("dog", "dog"))
    made = Tiny(name, 1, "A tiny suite", "any", "object", "", Sampling(2, 3.0), judges, "d" * 64, concepts, False, (), (),
                (), (), (0, 1))  # fmt: skip
    return replace(made, **changes)


class RuleJudge:
    """Finds a label where a quantity of the picture is above its threshold: decided by pixels alone."""

    name, weights_sha256, licence = "rule-v1[3]@0.5", "0" * 64, "Apache-2.0"
    calls = 0

    def judge(self, images: torch.Tensor, prompts) -> list[Judgement]:
        RuleJudge.calls += len(images)
        return [self._one(image, reason) for image, reason in zip(images, check(images), strict=True)]

    def _one(self, image: torch.Tensor, reason: str | None) -> Judgement:
        if reason is not None:
            return Judgement("invalid", {"reason": reason})
        channels = image.mean((1, 2)).tolist()
        scores = dict(zip(("cat", "dog", "fox"), (round(c, 5) for c in channels), strict=True))
        found = [label for label, score in scores.items() if score > sum(channels) / 3]
        return Judgement("ok", {"scores": scores, "found": found, "best": max(scores, key=scores.__getitem__),
                                "style": "noto", "background": "blue" if channels[2] > 0.5 else "pink"})  # fmt: skip


class NearJudge:
    """A CLIP judge: images by their colours, texts by their letters."""

    name, weights_sha256, licence, dim = "near-v1", "1" * 64, "Apache-2.0", 6

    def judge(self, images: torch.Tensor, prompts) -> list[Judgement]:
        small = F.adaptive_avg_pool2d(images, (1, 2)).flatten(1) + 0.1
        return [Judgement("ok", packed(F.normalize(one, dim=0))) for one in small]

    def text_embeddings(self, texts) -> torch.Tensor:
        counts = torch.tensor([[1.0 + text.count(letter) for letter in "catdog"] for text in texts])
        return F.normalize(counts, dim=1)


def draw(pipe, prompts, seeds, sampling, *, encode: bool = True, known=None) -> torch.Tensor:
    """Instead of `drawing.draw`, at once: noise of prompt and seed, tinted by a weight that the edits change."""
    weight = pipe.text_encoder.get_submodule("encoder.layers.0.self_attn.q_proj").weight
    tint = int(weight.detach().double().sum().abs() * 1e4) % 97
    images = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{prompt} {seed}".encode()))
        noise = torch.rand(32, 32, 3, generator=generator) * torch.rand(3, generator=generator)
        images.append((noise * 150 + tint).to(torch.uint8))
    return torch.stack(images)


JUDGES = {"rule": RuleJudge, "near": NearJudge}


def get(spec: str):
    return JUDGES[spec]()
