"""The emoji world's own CLIP as a judge: embeddings for CLIP score and CLIP accuracy, and its own error rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from erasekit.evaluation.judges.base import Judgement, judge_each, packed, sha256
from erasekit.models import read_json
from erasekit.worlds.emoji.captions import article
from erasekit.worlds.emoji.clip import CLIP_DIR, Clip, load_clip
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, concepts, names, neighbours

if TYPE_CHECKING:
    from torch import Tensor

    from erasekit.worlds.emoji.scenes import Scene

SIZE = 64


class EmojiClip:
    """Embeds pictures of any size, squeezed to 64 x 64; each vector depends on its own picture alone, to the bit."""

    licence = "Apache-2.0"

    def __init__(self, clip: Clip, weights_sha256: str, calibration: Mapping[str, Any] | None = None) -> None:
        self.clip, self.weights_sha256 = clip, weights_sha256
        self.calibration = dict(calibration or {})
        self.name, self.dim = clip.name, clip.dim

    def judge(self, images: Tensor, prompts: Sequence[str]) -> list[Judgement]:
        """One embedding for each image; the prompts are not looked at."""
        return judge_each(images, prompts, self._verdicts)

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, 128) float32; what stands behind the 31st word is cut off."""
        return self.clip.texts(texts)

    def _verdicts(self, images: Tensor) -> list[dict[str, Any] | str]:
        if images.shape[2:] != (SIZE, SIZE):
            images = F.interpolate(images.float(), size=(SIZE, SIZE), mode="bilinear", antialias=True)
        vectors = self.clip.images(images)
        return [packed(v) if torch.isfinite(v).all() else "the embedding is not finite" for v in vectors]


def load(folder: Path = CLIP_DIR) -> EmojiClip:
    """The shipped judge, with what was measured of it; `ModelError` tells how to get weights that are missing."""
    clip, measured = load_clip(folder), folder / "clip.json"
    known = read_json(measured) if measured.is_file() else {}
    return EmojiClip(clip, sha256([folder / "clip.safetensors"]), known)


class Embedder(Protocol):
    """What `rates` measures."""

    def images(self, images: Tensor) -> Tensor:
        """Unit vectors (n, dim)."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, dim)."""
        ...


def rates(clip: Embedder, scenes: Sequence[Scene], pictures: Tensor) -> dict[str, Any]:
    """How often the right text beats wrong ones on pictures of known scenes, and how large cosines are.

    `pictures[i]` (n, 3, 64, 64) shows `scenes[i]`; both single and double scenes must be among them. Shares in 0..1.
    """
    vectors = clip.images(pictures)
    one = [i for i, scene in enumerate(scenes) if len(scene.objects) == 1]
    two = [i for i, scene in enumerate(scenes) if len(scene.objects) == 2]
    plain = clip.texts([article(name) for name in names()])
    singles = [scenes[i] for i in one]
    report = {"single_images": len(one), "double_images": len(two)} | objects(vectors[one] @ plain.T, singles)
    report |= {"synonym_accuracy": synonyms(clip, vectors[one], plain, singles)}
    report |= {
        "style_accuracy": variants(clip, vectors[one], singles, "{} in {} style", STYLES, [s.style for s in singles]),
        "background_accuracy": variants(
            clip, vectors[one], singles, "{} on a {} background", tuple(BACKGROUNDS), [s.background for s in singles]
        ),
    }
    return report | doubles(clip, vectors[two], plain, [scenes[i] for i in two])


def trials(scenes: Sequence[Scene]) -> dict[str, int]:
    """How many of the scenes' pictures each share of `rates` is a mean over."""
    one = [concepts()[scene.objects[0]] for scene in scenes if len(scene.objects) == 1]
    two = sum(len(scene.objects) == 2 for scene in scenes)
    single = ("retrieval_top1", "pair_accuracy", "style_accuracy", "background_accuracy")
    return dict.fromkeys(single, len(one)) | {
        "pair_accuracy_neighbours": sum(bool(neighbours(concept.name)) for concept in one),
        "synonym_accuracy": sum(bool(concept.synonyms) for concept in one),
        "both_objects_top2": two, "whole_beats_half": two,
    }  # fmt: skip


def objects(cosines: Tensor, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Of one-object pictures' cosines with the plain texts (n, 132): retrieval, CLIP accuracy, floor and ceiling."""
    truth = torch.tensor([scene.objects[0] for scene in scenes])
    right = cosines.gather(1, truth[:, None])
    others = ~F.one_hot(truth, cosines.shape[1]).bool()
    near = [[names().index(n) for n in neighbours(names()[i])] for i in truth.tolist()]
    beaten = [float((row[kin] < own).float().mean()) for row, kin, own in zip(cosines, near, right, strict=True) if kin]
    return {
        "retrieval_top1": _mean(cosines.argmax(1) == truth),
        "pair_accuracy": _mean((cosines < right)[others]),
        "pair_accuracy_neighbours": _mean(torch.tensor(beaten)),
        "cosine_ceiling": _spread(right.flatten()),
        "cosine_floor": _spread(cosines[others]),
    }


def synonyms(clip: Embedder, vectors: Tensor, plain: Tensor, scenes: Sequence[Scene]) -> float:
    """How often a synonym of what is shown is nearer than every other object's plain text."""
    hits, seen = [], {scene.objects[0] for scene in scenes}
    known = {i: clip.texts([*map(article, concepts()[i].synonyms)]) for i in sorted(seen) if concepts()[i].synonyms}
    for vector, scene in zip(vectors, scenes, strict=True):
        if (shown := scene.objects[0]) in known:
            others = torch.cat((plain[:shown], plain[shown + 1 :])) @ vector
            hits.append((known[shown] @ vector > others.max()).float().mean())
    return _mean(torch.stack(hits))


def variants(
    clip: Embedder, vectors: Tensor, scenes: Sequence[Scene], form: str, words: Sequence[str], truth: Sequence[int]
) -> float:
    """How often, the object being named, the right one of some words (styles, backgrounds) gives the nearest text."""
    shown = sorted({scene.objects[0] for scene in scenes})
    texts = clip.texts([form.format(article(names()[i]), word) for i in shown for word in words])
    table = texts.view(len(shown), len(words), -1)[[shown.index(scene.objects[0]) for scene in scenes]]
    return _mean(torch.einsum("nwd,nd->nw", table, vectors).argmax(1) == torch.tensor(truth))


def doubles(clip: Embedder, vectors: Tensor, plain: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """On two-object pictures: both plain texts nearest of all; "a X and a Y" nearer than its halves alone."""
    shown = torch.tensor([scene.objects for scene in scenes])
    cosines = vectors @ plain.T
    whole = clip.texts([" and ".join(article(names()[i]) for i in scene.objects) for scene in scenes])
    nearest = cosines.topk(2).indices.sort(1).values
    halves = cosines.gather(1, shown).amax(1)
    return {
        "both_objects_top2": _mean((nearest == shown.sort(1).values).all(1)),
        "whole_beats_half": _mean((vectors * whole).sum(1) > halves),
    }


def _mean(values: Tensor) -> float:
    return round(float(values.double().mean()), 4)


def _spread(values: Tensor) -> dict[str, float]:
    low, high = values.double().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return {"mean": _mean(values), "p05": round(low, 4), "p95": round(high, 4)}
