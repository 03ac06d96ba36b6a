"""A judge's own error rates: on fresh renders of the emoji world, or on a folder of images sorted by what they show.

A rate without these says little: a judge that finds cats in 30 % of pictures without one makes any edit look weak,
one that misses half of them makes it look strong. Rates carry Wilson intervals; images that could not be judged are
counted beside them and are in none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from erasekit.errors import UsageError
from erasekit.evaluation.statistics import Share

from . import clip_rates
from .base import Judge, Judgement, TextJudge

if TYPE_CHECKING:
    from torch import Tensor

    from erasekit.worlds.emoji.scenes import Scene

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NOTHING = "none"
BATCH = 64
Progress = Callable[[int, int, str], object]


@dataclass(frozen=True)
class Case:
    """One judged image: the labels that it shows, and the verdict; `looks` is its style and background, where known."""

    truth: frozenset[str]
    judgement: Judgement
    looks: tuple[str, str] | None = None


def renders(judge: Judge, *, per_label: int = 20, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """The judge's error rates on fresh renders of the emoji world: `per_label` scenes of each object.

    Styles, backgrounds and places are drawn uniformly; three scenes in ten show a second object. The same seed gives
    the same scenes. The world's CLIP is asked for retrieval (`clip_rates`). Raises `UsageError` for a judge that does not
    know the world's objects.
    """
    if isinstance(judge, TextJudge):
        drawn = scenes(per_label, seed)
        report = clip_rates.renders(judge, drawn, lambda: _pictures(drawn), progress)
    else:
        labels = _world_labels(judge)
        report = rates(list(_rendered(judge, scenes(per_label, seed), progress)), labels)
    return _head(judge) | {"images_from": f"renders of the emoji world, seed {seed}, {per_label} a label"} | report


def scenes(per_label: int, seed: int) -> list[Scene]:
    """`per_label` scenes of each object, in the objects' order; the same for the same seed."""
    from erasekit.worlds.emoji.concepts import names
    from erasekit.worlds.emoji.scenes import sample_scene

    if per_label < 1:
        raise UsageError(f"calibration needs at least one scene of each label, not {per_label}")
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, objects=_objects(rng, i)) for i in range(len(names())) for _ in range(per_label)]


def folder(judge: Judge, path: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """The judge's error rates on the images in `path`, in one subfolder for each label.

    A subfolder is named by a label ("cat"), by several that its images all show ("cat+dog"), or "none". An image is
    taken to show nothing else: where other labels are there but not named, their fpr is too high. A CLIP judge takes any
    names, and is asked which of them an image is nearest to (`clip_rates`).
    Raises `UsageError` for a subfolder that is no label, an image that cannot be read, or no images at all.
    """
    if isinstance(judge, TextJudge):
        work = _files(str, path)
        known = clip_rates.names(truth for _, truth in work)
        report = clip_rates.rates(judge, _judged(judge, work, progress), known)
    else:
        labels, label = _labels(judge), cast(Any, judge).label
        report = rates(_judged(judge, _files(label, path), progress), labels)
    return _head(judge) | {"images_from": path.resolve().name} | report


def _judged(judge: Judge, work: Sequence[tuple[Path, frozenset[str]]], progress: Progress | None) -> list[Case]:
    cases = []
    for done, (file, truth) in enumerate(work, 1):
        cases.append(Case(truth, judge.judge(_pixels(file), [""])[0]))
        if progress is not None:
            progress(done, len(work), "judging")
    return cases


def rates(cases: Sequence[Case], labels: Sequence[str]) -> dict[str, Any]:
    """Hit rate, false alarms and exact matches over the images that were judged; for each label its tpr and fpr.

    tpr: share of the images that show the label in which it is found. fpr: share of the others in which it is. A rate
    is {value, low, high, n, method} (95 %, Wilson), None where there is no image to measure it on.
    """
    known = [case for case in cases if case.judgement.status == "ok"]
    pairs = [(case.truth, frozenset(case.judgement.data["found"])) for case in known]
    report = {
        "images": len(cases),
        "statuses": dict(Counter(case.judgement.status for case in cases)),
        "hit_rate": _rate([label in found for truth, found in pairs for label in sorted(truth)]),
        "false_alarm_rate": _rate([bool(found - truth) for truth, found in pairs]),
        "exact_match": _rate([found == truth for truth, found in pairs]),
    }
    for place, look in enumerate(("style", "background")):
        seen = [case.judgement.data[look] == case.looks[place] for case in known if case.looks]
        report |= {f"{look}_accuracy": _rate(seen)} if seen else {}
    return report | {"labels": {label: _of_label(label, pairs) for label in labels}}


def _of_label(label: str, pairs: Sequence[tuple[frozenset[str], frozenset[str]]]) -> dict[str, Any]:
    return {
        "tpr": _rate([label in found for truth, found in pairs if label in truth]),
        "fpr": _rate([label in found for truth, found in pairs if label not in truth]),
    }


def _rate(hits: Sequence[bool]) -> dict[str, Any] | None:
    estimate = Share(sum(hits), len(hits)).estimate
    return None if estimate is None else asdict(estimate)


def _head(judge: Judge) -> dict[str, Any]:
    return {"erasekit_calibration": 1, "judge": judge.name, "weights_sha256": judge.weights_sha256,
            "licence": judge.licence}  # fmt: skip


def _labels(judge: Judge) -> tuple[str, ...]:
    labels = getattr(judge, "labels", None)
    if not labels:
        raise UsageError(f"the judge {judge.name} gives embeddings, no labels: its rates depend on the texts that it "
                         "is asked with; calibrate a classifier or a detector")  # fmt: skip
    return tuple(labels)


def _world_labels(judge: Judge) -> tuple[str, ...]:
    from erasekit.worlds.emoji.concepts import names

    labels = _labels(judge)
    if missing := sorted(set(names()) - set(labels)):
        raise UsageError(f"the judge {judge.name} does not know the emoji world's objects ({missing[0]}, ...): "
                         "give a folder of images (--images)")  # fmt: skip
    return labels


def _pictures(scenes: Sequence[Scene]) -> Tensor:
    from erasekit.worlds.emoji.scenes import render

    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2).contiguous()


def _rendered(judge: Judge, scenes: Sequence[Scene], progress: Progress | None) -> Iterator[Case]:
    from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, names

    words, grounds = names(), tuple(BACKGROUNDS)
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        images = _pictures(part)
        for scene, verdict in zip(part, judge.judge(images, [""] * len(part)), strict=True):
            truth = frozenset(words[i] for i in scene.objects)
            yield Case(truth, verdict, (STYLES[scene.style], grounds[scene.background]))
        if progress is not None:
            progress(start + len(part), len(scenes), "judging")


def _objects(rng: np.random.Generator, first: int) -> tuple[int, ...]:
    """The concept alone, or with another on either side of it."""
    from erasekit.worlds.emoji.concepts import names

    if rng.random() >= 0.3:
        return (first,)
    second = (first + int(rng.integers(1, len(names())))) % len(names())
    return (first, second) if rng.random() < 0.5 else (second, first)


def _files(label: Callable[[str], str], path: Path) -> list[tuple[Path, frozenset[str]]]:
    if not path.is_dir():
        raise UsageError(f"{path} is no folder: give one with a subfolder of images for each label")
    work = []
    for sub in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        truth = frozenset(label(word) for word in sub.name.split("+") if word != NOTHING)
        work += [(file, truth) for file in sorted(sub.iterdir()) if file.suffix.lower() in SUFFIXES]
    if not work:
        raise UsageError(f"{path} has no subfolder with images ({', '.join(SUFFIXES)}): sort them by label first")
    return work


def _pixels(file: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError for broken PNGs
        raise UsageError(f"{file} cannot be read as an image ({error}): replace it or take it out") from error
    return torch.from_numpy(values).permute(2, 0, 1)[None]
