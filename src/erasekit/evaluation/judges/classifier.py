"""Image classifiers from a transformers folder: any labels, or ImageNet-1k by the names that papers use.

A classifier that chooses one label finds its top-1 label, the field's rule (name: "@top1"); one that answers each
label by itself (`problem_type` "multi_label_classification") finds those over 0.5. Resizing and normalisation are the
folder's own, on PIL and numpy.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasekit.errors import ModelError, UsageError

from .base import Judgement, judge_each, pil, scores, sha256
from .folder import calibration, deciding_files, find, licence, processor, read, title

BATCH = 32
THRESHOLD = 0.5

# ImageNet-1k classes of the erasure papers (Imagenette): name, id, other names. Ids: arXiv 2303.07345 and after.
FIELD: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("tench", 0, ("tinca tinca",)),
    ("English springer", 217, ("english springer spaniel", "springer spaniel")),
    ("airliner", 404, ("plane", "airplane", "aeroplane")),
    ("cassette player", 482, ()),
    ("chain saw", 491, ("chainsaw",)),
    ("church", 497, ("church building",)),
    ("French horn", 566, ("horn",)),
    ("garbage truck", 569, ("dustcart",)),
    ("gas pump", 571, ("petrol pump", "gasoline pump")),
    ("golf ball", 574, ("golfball",)),
    ("parachute", 701, ("chute",)),
)


class ClassifierJudge:
    """`data`: `scores` {label: p}, `found`, `best`, and `top5`, the five most probable labels, best first."""

    def __init__(
        self, model: Any, processor: Any, *, labels: Sequence[str], name: str, weights_sha256: str, licence: str,
        folder: Path, aliases: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.processor, self.labels, self.folder = model, processor, tuple(labels), folder
        self.many = model.config.problem_type == "multi_label_classification"
        rule = f"@{THRESHOLD:g}" if self.many else "@top1"
        self.name, self.weights_sha256, self.licence = f"{name}[{len(self.labels)}]{rule}", weights_sha256, licence
        self._known = parts(self.labels) | dict(aliases or {}) | {label.lower(): label for label in self.labels}

    @property
    def calibration(self) -> dict[str, Any]:
        """Its error rates in the file beside its folder, read now; {} without one. `ModelError` for another judge's.

        A file that is out of date is no reason not to load the judge: it is then calibrated again.
        """
        return calibration(self.folder, self.name, self.weights_sha256)

    def judge(self, images: Tensor, prompts: Sequence[str]) -> list[Judgement]:
        """One verdict for each image."""
        return judge_each(images, prompts, self._verdicts)

    def label(self, word: str) -> str:
        """The label that `word` means, in any case, or by an alias; `UsageError` naming near ones if there is none."""
        key = " ".join(word.lower().replace("_", " ").split())
        if key not in self._known:
            near = difflib.get_close_matches(key, self._known, n=3)
            hint = f": did you mean {', '.join(self._known[n] for n in near)}?" if near else ": use one of its labels"
            raise UsageError(f"the judge {self.name} does not know {word!r}{hint}")
        return self._known[key]

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Float32 (n, labels), of images (n, 3, h, w) in 0..1; rows sum to one unless the model is multi-label."""
        inputs = [self.processor(images=pil(part), return_tensors="pt")["pixel_values"] for part in images.split(BATCH)]
        logits = torch.cat([self.model(x.to(self.model.device)).logits.float().cpu() for x in inputs])
        return logits.sigmoid() if self.many else logits.softmax(-1)

    def _verdicts(self, images: Tensor) -> list[dict[str, Any] | str]:
        found = self.probabilities(images)
        return [self._data(p) if torch.isfinite(p).all() else "the judge gave no finite number" for p in found]

    def _data(self, p: Tensor) -> dict[str, Any]:
        top = [self.labels[i] for i in p.topk(min(5, len(p))).indices.tolist()]
        known = scores(self.labels, p.tolist())
        found = [label for label, share in known.items() if share > THRESHOLD] if self.many else top[:1]
        return {"scores": known, "found": found, "best": top[0], "top5": top}


def load(*, option: str | None = None) -> ClassifierJudge:
    """A transformers image-classification folder as a judge; `ModelError` unless it is complete."""
    folder, model = _open(option, "classifier")
    return _judge(model, folder, f"classifier-{title(str(option))}", unique(_labels(model)))


def load_imagenet(*, option: str | None = None) -> ClassifierJudge:
    """An ImageNet-1k classifier under the field's class names; `ModelError` unless its 1000 classes are in that order."""
    folder, model = _open(option, "imagenet")
    own = _labels(model)
    if len(own) != 1000:
        raise ModelError(f"{folder} knows {len(own)} labels, not ImageNet's 1000: use classifier:{option}")
    for word, index, _ in FIELD:
        if word.lower() not in own[index].lower() and own[index] != f"LABEL_{index}":
            raise ModelError(f"{folder} has {own[index]!r} where ImageNet has {word!r} (class {index}): its labels are "
                             f"in another order; use classifier:{option}")  # fmt: skip
    known = {index: word for word, index, _ in FIELD}
    labels = unique([known.get(i, label) for i, label in enumerate(own)])
    aliases = {other: word for word, _, others in FIELD for other in others}
    return _judge(model, folder, f"imagenet-{title(str(option))}", labels, aliases)


def unique(labels: Sequence[str]) -> list[str]:
    """The labels, those that occur twice with their index: ImageNet has a crane that flies and one that lifts."""
    return [f"{label} ({i})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def parts(labels: Sequence[str]) -> dict[str, str]:
    """Each name within labels of several ("goldfish, Carassius auratus") to its label, where only one label has it."""
    pairs = [(part.strip().lower(), label) for label in labels for part in label.split(",")]
    seen = Counter(name for name, _ in pairs)
    return {name: label for name, label in pairs if seen[name] == 1}


def _open(option: str | None, judge: str) -> tuple[Path, Any]:
    from transformers import AutoModelForImageClassification

    folder = find(option, judge=judge)
    return folder, read(AutoModelForImageClassification, folder)


def _judge(
    model: Any, folder: Path, name: str, labels: Sequence[str], aliases: Mapping[str, str] | None = None
) -> ClassifierJudge:
    return ClassifierJudge(model, processor(folder), labels=labels, name=name, aliases=aliases, folder=folder,
                           weights_sha256=sha256(deciding_files(folder)), licence=licence(folder))  # fmt: skip


def _labels(model: Any) -> list[str]:
    table = {int(index): str(label) for index, label in model.config.id2label.items()}
    return [table.get(i, f"LABEL_{i}") for i in range(len(table))]
