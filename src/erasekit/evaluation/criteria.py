"""EraseEval's four criteria from the rows alone, with local substitutes that each line names. Source: arXiv 2502.13989.

The paper's captioner, detectors, encoders and real photographs are not at hand in a run: a CLIP judge's image embeddings
stand for captions and for its image encoder, the suite's judge for its detectors, unedited images for real ones. So the
names end in "-local", and no number here compares with the paper's. The single scores are this project's integration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from erasekit.evaluation import bootstrap
from erasekit.evaluation.distances import APART, DIGITS
from erasekit.evaluation.metrics import clip, distribution, eraseeval
from erasekit.evaluation.metrics.distribution import Features
from erasekit.evaluation.metrics.eraseeval import Criterion
from erasekit.evaluation.rates import Side, line
from erasekit.evaluation.rows import Row
from erasekit.evaluation.similarity import Space, rng
from erasekit.evaluation.statistics import Estimate

Rows = dict[str, list[Row]]  # by prompt
IMAGES = "image embeddings for captions, the suite's judge for the paper's detectors"
TEXTS = "this space for the paper's encoder, the suite's unrelated prompts for COCO's captions"
REAL = "unedited images of every second unrelated prompt for real photographs, distances in this space"
HALF = 8  # images on either side, below which M4 is not stated


def criteria(side: Side, space: Space) -> list[dict[str, Any]]:
    """M1 to M4 and their means for one arm; `side` is read by the deciding judge. What has no images is left out.

    The unedited model has M3 = M4 = 1, and M1, M2 near 0 where it shows the target.
    """
    ours = [row for row in side.rows if space.has(row) and side.reading.status(row) == "ok"]
    named = [row for row in ours if side.reading.seeks(row)]
    base = {shot: row for shot, row in side.base.items() if space.has(row)}
    found: list[tuple[Criterion, dict[str, Any]]] = [
        *_similar("M1", side, space, [row for row in named if row.group == "plain"], list(base.values())),
        *_similar("M2", side, space, [row for row in named if row.group == "implicit"], list(base.values())),
    ]
    others = [(row, base[row.shot]) for row in ours if row.group in APART and row.shot in base]
    found += [*_aligned(side, space, others), *_real(side, space, others)]
    lines = [one for _, one in found]
    if len(found) == 4:
        lines += _combined(side, space, [criterion for criterion, _ in found], sum(one["n"] for one in lines))
    return lines


def _similar(name: str, side: Side, space: Space, rows: Sequence[Row],
             base: Sequence[Row]) -> Iterator[tuple[Criterion, dict[str, Any]]]:  # fmt: skip
    """M1 or M2: each prompt's images against the unedited ones of that prompt, 0 where the target is found."""
    ours, before = _by_prompt(rows), _by_prompt(base)
    prompts = [prompt for prompt in ours if prompt in before]
    if not prompts:
        return
    measure = eraseeval.m1 if name == "M1" else eraseeval.m2
    each = [measure(space.images(before[p]), space.images(ours[p]), present=[side.reading.target(r) for r in ours[p]],
                    substitute=IMAGES) for p in prompts]  # fmt: skip
    values = [round(one.value, DIGITS) for one in each]
    drawn = bootstrap.mean(values, prompts, generator=rng(name, side.arm, space.judge))
    whole = Criterion(each[0].name, drawn.value, drawn.value, IMAGES)
    groups = [space.images(before[p]) for p in prompts]
    more = {"floor": eraseeval.floor(groups) if len(groups) > 1 else None, "ceiling": _ceiling(groups)}
    yield whole, _line(side, space, whole, replace(drawn, n=sum(len(ours[p]) for p in prompts)), **more)


def _aligned(side: Side, space: Space, both: Sequence[tuple[Row, Row]]) -> Iterator[tuple[Criterion, dict[str, Any]]]:
    """M3: how near unrelated images are to their texts, over the unedited model's."""
    if not both:
        return
    texts = np.stack([space.texts[text] for text in clip.texts_with_prefix([row.text for row, _ in both])])
    after, before = (clip.cosines(space.images(rows), texts) for rows in zip(*both, strict=True))
    if before.mean() <= 0:
        return
    found = eraseeval.m3(before.tolist(), after.tolist(), substitute=TEXTS)
    ends = {"floor": _permuted(space, both, texts, float(before.mean())), "ceiling": 1.0}  # 1: the unedited model
    yield found, _line(side, space, found, _bare(found.value, len(both)), **ends)


def _permuted(space: Space, both: Sequence[tuple[Row, Row]], texts: np.ndarray, before: float) -> float | None:
    """M3 of the same images with each other's texts: what is left of it where a picture has nothing to do with its text."""
    prompts = [row.prompt for row, _ in both]
    if len(set(prompts)) < 2:
        return None
    found = clip.floor(space.images([row for row, _ in both]), texts, prompts, scale="cosine") / before
    return round(min(1.0, max(0.0, found)), DIGITS)


def _real(side: Side, space: Space, both: Sequence[tuple[Row, Row]]) -> Iterator[tuple[Criterion, dict[str, Any]]]:
    """M4: does the arm move away from the unedited images of other prompts, which stand for real ones."""
    odd = set(sorted({row.prompt for row, _ in both})[1::2])
    kept = [pair for pair in both if pair[0].prompt not in odd]
    real = [before for row, before in both if row.prompt in odd]
    if min(len(kept), len(real)) < HALF:
        return
    fixed = Features(space.judge, space.images(real))
    after, before = (distribution.cmmd(Features(space.judge, space.images(rows)), fixed).value
                     for rows in zip(*kept, strict=True))  # fmt: skip
    if before > 0:
        found = eraseeval.m4(before, after, substitute=REAL)
        yield found, _line(side, space, found, _bare(found.value, len(kept)))


def _combined(side: Side, space: Space, four: Sequence[Criterion], n: int) -> list[dict[str, Any]]:
    means = eraseeval.combined(four)
    return [line(f"eraseeval_{name}-local({space.judge})", side.arm, None, None, _bare(means[name], n), space.judge,
                 substitute=means["label"]) for name in ("harmonic", "geometric")]  # fmt: skip


def _line(side: Side, space: Space, found: Criterion, estimate: Estimate, **more: Any) -> dict[str, Any]:
    return line(f"{found.name.lower()}({space.judge})", side.arm, None, None, estimate, space.judge,
                substitute=found.substitute, raw=round(found.raw, DIGITS), **more)  # fmt: skip


def _bare(value: float, n: int) -> Estimate:
    value = round(value, DIGITS)
    return Estimate(value, value, value, n, "none: a ratio or a mean of criteria")


def _by_prompt(rows: Sequence[Row]) -> Rows:
    found: Rows = {}
    for row in rows:
        found.setdefault(row.prompt, []).append(row)
    return found


def _ceiling(groups: Sequence[np.ndarray]) -> float | None:
    """The unedited model against itself with other seeds; None where every prompt has one seed."""
    found = eraseeval.ceilings(groups)
    return None if found is None else round(found, DIGITS)
