"""How often a CLIP judge errs: whether an image is nearer to the text of what it shows than to the texts of other things.

The texts are those of CLIP accuracy, so that the rates are those of the metric. They depend on which names compete: a
report holds them. Intervals are Wilson's, an image one trial; where an image counts by a share (of the names that it is
nearer than), that is wider than need be and never too narrow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from erasekit.errors import UsageError
from erasekit.evaluation.metrics import clip
from erasekit.evaluation.statistics import Estimate, wilson

from .base import TextJudge

if TYPE_CHECKING:
    from torch import Tensor

    from erasekit.evaluation.judges.calibrate import Case, Progress
    from erasekit.worlds.emoji.scenes import Scene

    from .emoji_clip import Embedder

BATCH = 64


@dataclass(frozen=True)
class Steps:
    """The same embedder; `progress` hears of its images."""

    inner: Embedder
    progress: Progress | None

    def images(self, images: Tensor) -> Tensor:
        """Unit vectors (n, dim)."""
        found = []
        for part in images.split(BATCH):
            found.append(self.inner.images(part))
            if self.progress is not None:
                self.progress(sum(map(len, found)), len(images), "judging")
        return torch.cat(found)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, dim)."""
        return self.inner.texts(texts)


def renders(judge: TextJudge, scenes: Sequence[Scene], pictures: Callable[[], Tensor],
            progress: Progress | None = None) -> dict[str, Any]:  # fmt: skip
    """What `emoji_clip.rates` measures on these scenes, its shares with their intervals; `UsageError` for another CLIP."""
    from .emoji_clip import EmojiClip, rates, trials

    if not isinstance(judge, EmojiClip):
        raise UsageError(f"the judge {judge.name} is not the emoji world's: give a folder of images (--images)")
    found, counts = rates(Steps(judge.clip, progress), scenes, pictures()), trials(scenes)
    shares = {name: _share([value] * counts[name]) if name in counts else value for name, value in found.items()}
    return {"images": len(scenes), "statuses": {"ok": len(scenes)}} | shares


def names(truths: Iterable[frozenset[str]]) -> list[str]:
    """The names that compete, in order; `UsageError` unless there are two."""
    found = sorted(frozenset().union(*truths))
    if len(found) < 2:
        raise UsageError(f"a CLIP judge is asked which of several things an image shows, and here is only "
                         f"{', '.join(found) or 'none'}: give a subfolder for each of at least two")  # fmt: skip
    return found


def rates(judge: TextJudge, cases: Sequence[Case], known: Sequence[str]) -> dict[str, Any]:
    """Retrieval and pair accuracy among the names, over the images that were judged and show one of them.

    retrieval_top1: share of the images whose nearest text is one that they show. pair_accuracy: how often the text of what
    they show is nearer than another's, mean over the images. A tie is an error.
    """
    texts = clip.texts_with_prefix(known)
    vectors = clip.unit(judge.text_embeddings(texts).numpy())
    tops: dict[str, list[float]] = {name: [] for name in known}
    top, pairs = [], []
    for case in cases:
        own = np.array([name in case.truth for name in known])
        if case.judgement.status != "ok" or own.all() or not own.any():
            continue
        cosines = vectors @ clip.decode(case.judgement.data["embedding"])
        top.append(float(cosines[own].max() > cosines[~own].max()))
        pairs.append(float((cosines[own][:, None] > cosines[~own]).mean()))
        for name in sorted(case.truth):
            tops[name].append(top[-1])
    return {
        "images": len(cases), "statuses": dict(Counter(case.judgement.status for case in cases)),
        "retrieval_top1": _share(top), "pair_accuracy": _share(pairs),
        "names": {name: {"text": text, "retrieval_top1": _share(tops[name])} for name, text in zip(known, texts, strict=True)},
    }  # fmt: skip


def _share(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    hits, n = math.fsum(values), len(values)
    return asdict(Estimate(hits / n, *wilson(min(hits, n), n), n, "wilson95"))
