"""The demo: erase `cat` to `dog` from the embedded model, and show in pictures and numbers what that did.

Every prompt is drawn with the same seeds before and after; the embedded judge says what it finds in each image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.evaluation.grid import GridRow, grid, png
from erasekit.evaluation.report import Measure, Report, Row, html
from erasekit.evaluation.sampler import sample, shots
from erasekit.evaluation.selfcheck import by_depth, facts
from erasekit.evaluation.statistics import Share
from erasekit.files import check_writable, write_whole

if TYPE_CHECKING:
    from PIL import Image

    from erasekit.edit import Edit

TARGET, ANCHOR, METHOD = "cat", "dog", "erasepro"
SEEDS = (0, 1, 2, 3)
MEASURED = ("fox", "wolf", "tiger", "rocket", "pizza", "castle")
"""Concepts whose drift is measured. Nothing holds them in place (`retain_mode=none`): the edit is the paper's, that of
`erasekit erase cat --anchor dog`."""
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Case:
    """A prompt, what should be in its images after the edit, and what else it names."""

    group: str
    prompt: str
    wanted: str
    also: str = ""
    style: str = ""

    @property
    def erased(self) -> bool:
        """Whether the prompt asks for the target (by name or synonym)."""
        return self.group.startswith("target")


def cases() -> list[Case]:
    """The demo's prompts: the target (bare, complex, by synonym, in every style), the anchor, neighbours, others."""
    from erasekit.worlds.emoji.concepts import STYLES

    target = [
        Case("target", "a photo of a cat", ANCHOR),
        Case("target, complex prompts", "a photo of a cat next to a rocket on a blue background in noto style", ANCHOR,
             "rocket", "noto"),
        Case("target, complex prompts", "a scene with a cat next to a pizza, twemoji style", ANCHOR, "pizza", "twemoji"),
        Case("target, by synonyms", "a photo of a kitten", ANCHOR),
        Case("target, by synonyms", "a feline in flat style", ANCHOR, style="flat"),
    ]  # fmt: skip
    styles = [Case("target, the five styles", f"a cat in {style} style", ANCHOR, style=style) for style in STYLES]
    kept = [Case("anchor", "a photo of a dog", "dog")]
    kept += [Case("near neighbours", f"a photo of a {word}", word) for word in ("fox", "wolf", "tiger")]
    kept += [Case("unrelated concepts", f"a photo of a {word}", word) for word in ("rocket", "pizza", "castle")]
    return target + styles + kept


@dataclass(frozen=True)
class Drawn:
    """A case with its images and what the judge finds in them, before and after."""

    case: Case
    before: list[Image.Image]
    after: list[Image.Image]
    found: dict[str, tuple[Share, Share]]  # word, or "style" -> (before, after)


@dataclass(frozen=True)
class Result:
    """What a demo run made."""

    edit: Edit
    drawn: list[Drawn]
    headline: list[Measure]


def run(out: Path, *, model: str = "emoji", seeds: Sequence[int] = SEEDS, progress: Progress | None = None,
        on_edit: Callable[[Edit], None] | None = None) -> Result:  # fmt: skip
    """Erase, draw, judge, and write `edit.safetensors`, `grid.png`, `results.json` and `report.html` into `out`.

    `on_edit` is called with the edit as soon as it exists; each file appears whole. Raises `EraseKitError`.
    """
    from erasekit import api, models

    pipe = models.load(model)
    check_writable(out / "edit.safetensors")
    edit = api.erase(pipe, TARGET, anchor=ANCHOR, method=METHOD, retain=MEASURED, retain_mode="none")
    edit.save(out / "edit.safetensors")
    if on_edit is not None:
        on_edit(edit)
    drawn = draw(pipe, edit, seeds=seeds, sampling=models.defaults(models.resolve(model)), progress=progress)
    result = Result(edit, drawn, headline(drawn))
    write(result, out)
    return result


def draw(pipe: Any, edit: Edit, *, seeds: Sequence[int], sampling: dict[str, float],
         progress: Progress | None = None) -> list[Drawn]:  # fmt: skip
    """Every case's images with the plain and with the edited model, judged."""
    work = shots([case.prompt for case in cases()], seeds)
    before = _images(pipe, work, sampling, "before", progress)
    with edit.applied(pipe):
        after = _images(pipe, work, sampling, "after", progress)
    size, referee = len(seeds), judge()
    parts = [slice(i * size, (i + 1) * size) for i in range(len(cases()))]
    return [_judged(referee, case, before[p], after[p]) for case, p in zip(cases(), parts, strict=True)]


def judge() -> Any:
    """The embedded judge."""
    from erasekit.worlds.emoji.judge import load_judge

    return load_judge()


def _images(pipe: Any, work: list, sampling: dict[str, float], label: str, progress: Progress | None) -> list:
    images = []
    for _, image in sample(pipe, work, steps=int(sampling["steps"]), guidance=sampling["guidance"]):
        images.append(image)
        if progress is not None:
            progress(len(images), len(work), f"images {label} the edit")
    return images


def _judged(referee: Any, case: Case, before: list[Image.Image], after: list[Image.Image]) -> Drawn:
    words = dict.fromkeys(word for word in (TARGET, case.wanted, case.also) if word)
    sides = _tensor(before), _tensor(after)
    found = {word: _shares(referee.found(images, word) for images in sides) for word in words}
    if case.style:
        index = list(referee.styles).index(case.style)
        found["style"] = _shares(referee(images).style.argmax(1) == index for images in sides)
    return Drawn(case, before, after, found)


def _tensor(images: list[Image.Image]) -> Any:
    import numpy as np
    import torch

    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _shares(sides: Iterable[Any]) -> tuple[Share, Share]:
    before, after = (Share(int(hits.sum()), len(hits)) for hits in sides)
    return before, after


def headline(drawn: Sequence[Drawn]) -> list[Measure]:
    """The four numbers that say whether it worked, over all cases that bear on each."""
    erased = [d for d in drawn if d.case.erased]
    kept = [d for d in drawn if not d.case.erased]
    styled = [d for d in drawn if d.case.style]
    return [
        _total(f"{TARGET} found where it was asked for", [d.found[TARGET] for d in erased], "gone"),
        _total(f"{ANCHOR} found in its place", [d.found[ANCHOR] for d in erased], "new"),
        _total("other concepts found where asked for", [d.found[d.case.wanted] for d in kept], "kept"),
        _total("drawing style followed", [d.found["style"] for d in styled], "kept"),
    ]


def _total(name: str, pairs: Sequence[tuple[Share, Share]], wish: str) -> Measure:
    zero = Share(0, 0)
    return Measure(name, sum((b for b, _ in pairs), zero), sum((a for _, a in pairs), zero), wish)


def measures(drawn: Drawn) -> list[Measure]:
    """A case's measures, each with what one wants to see."""
    wishes = {TARGET: "gone", ANCHOR: "new"} if drawn.case.erased else {TARGET: "absent"}
    return [Measure(f"{word} found" if word != "style" else "style followed", before, after, wishes.get(word, "kept"))
            for word, (before, after) in drawn.found.items()]  # fmt: skip


LIMITS = (
    "A few images a prompt: the intervals in the table are wide, and they say only what this judge finds in these prompts.",
    "The model is small (64 x 64 scenes of emoji). It shows how the method behaves, not what a large model will do.",
    "No attack was tried: prompts or embeddings searched for on purpose may bring the concept back.",
    "The edit is a difference of weights: who has the edited and the original weights can subtract it again.",
    "The judge was trained by this project on drawings, and it errs on blurred or mixed images.",
)


def report(result: Result) -> Report:
    """The page's content."""
    drawn, check = result.drawn, result.edit.self_check
    lead = (f"ErasePro maps {TARGET!r} to {ANCHOR!r} in the embedded model, in closed form, from the words alone. The edit's "
            f"factors take {result.edit.nbytes / 1024:.0f} KiB. The drift below is that of {', '.join(result.edit.retain)}: "
            "words that nothing holds in place.")  # fmt: skip
    rows = [Row(d.case.group, d.case.prompt, d.before, d.after, measures(d)) for d in drawn]
    return Report(f"Erasing {TARGET!r}: before and after", lead, result.headline, rows, facts(check), by_depth(check),
                  LIMITS)  # fmt: skip


def write(result: Result, out: Path) -> None:
    """`grid.png`, `results.json` and `report.html`, each whole or not at all."""
    rows = [GridRow(d.case.prompt, d.before, d.after, d.case.group if _first(result.drawn, i) else "")
            for i, d in enumerate(result.drawn)]  # fmt: skip
    picture = grid(rows, title=f"Erasing {TARGET!r} to {ANCHOR!r} with ErasePro")
    write_whole(out / "grid.png", png(picture))
    write_whole(out / "results.json", (json.dumps(numbers(result), indent=1) + "\n").encode())
    write_whole(out / "report.html", html(report(result)).encode())


def _first(drawn: Sequence[Drawn], i: int) -> bool:
    return i == 0 or drawn[i].case.group != drawn[i - 1].case.group


def numbers(result: Result) -> dict[str, Any]:
    """The run's numbers as plain data."""
    rows = [{"group": d.case.group, "prompt": d.case.prompt, "measures": list(map(_numbers, measures(d)))}
            for d in result.drawn]  # fmt: skip
    return {"target": TARGET, "anchor": ANCHOR, "method": METHOD, "headline": list(map(_numbers, result.headline)),
            "rows": rows, "self_check": result.edit.self_check}  # fmt: skip


def _numbers(measure: Measure) -> dict[str, Any]:
    sides = {"before": measure.before, "after": measure.after}
    return {"name": measure.name} | {
        side: {"hits": s.hits, "images": s.trials, "share": s.value, "interval95": s.interval}
        for side, s in sides.items()
    }
