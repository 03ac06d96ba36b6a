"""Measures the assembled model with the judge and writes the model card: what was measured, on how many images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erasekit.evaluation.sampler import sample, shots
from erasekit.evaluation.statistics import wilson

from ....models import load
from ..captions import HELD_OUT_PAIR, HELD_OUT_SINGLE, article, fill
from ..concepts import BACKGROUNDS, STYLES, names
from ..judge import THRESHOLD, Judge, calibration, load_judge
from .loop import step_rng
from .withheld import NOTHING, Withheld

LICENCES = {
    "twemoji": ("Twemoji", "CC-BY-4.0", "https://github.com/jdecked/twemoji, Twitter and contributors"),
    "noto": ("Noto Emoji", "Apache-2.0", "https://github.com/googlefonts/noto-emoji, Google"),
    "blob": ("Noto Emoji v1", "Apache-2.0", "https://github.com/googlefonts/noto-emoji, Google"),
    "flat": ("Fluent Emoji Flat", "MIT", "https://github.com/microsoft/fluentui-emoji, Microsoft"),
    "ink": ("Fluent Emoji High Contrast", "MIT", "https://github.com/microsoft/fluentui-emoji, Microsoft"),
}
PLAIN = "plain, a X in S style"
# What each share counts: its words in the card, and the key in `quality.json`.
RULES = {
    "objects": "the object named right",
    "found": "exactly the asked objects found",
    "style": "the style named right",
    "background": "the background named right",
}


@dataclass(frozen=True)
class Ask:
    """A prompt and what a faithful picture of it shows."""

    prompt: str
    objects: tuple[int, ...]
    style: int | None = None
    background: int | None = None


def plain_asks() -> list[Ask]:
    """Every object in every style, in the form "a X in S style"."""
    return [
        Ask(f"{article(word)} in {style} style", (i,), s)
        for i, word in enumerate(names())
        for s, style in enumerate(STYLES)
    ]


def form_asks(forms: Sequence[str], rng: np.random.Generator, count: int) -> list[Ask]:
    """Random objects, styles and backgrounds in the given forms."""
    asks = []
    for row in range(count):
        form = forms[row % len(forms)]
        chosen = tuple(int(i) for i in rng.choice(len(names()), 2 if "{c}" in form else 1, replace=False))
        s, b = int(rng.integers(len(STYLES))), int(rng.integers(len(BACKGROUNDS)))
        text = fill(form, tuple(names()[i] for i in chosen), STYLES[s], tuple(BACKGROUNDS)[b])
        asks.append(Ask(text, chosen, s if "{s}" in form else None, b if "{b}" in form else None))
    return asks


def draw(pipe: Any, asks: Sequence[Ask], *, steps: int, guidance: float, first: int = 0) -> Tensor:
    """One image for each ask, seeded by its row from `first` on: (n, 3, 64, 64) in 0..1."""
    work = [shots([a.prompt], [first + row])[0] for row, a in enumerate(asks)]
    pixels = [
        np.asarray(image, dtype=np.float32) / 255 for _, image in sample(pipe, work, steps=steps, guidance=guidance)
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def asked_for(asks: Sequence[Ask], said: Tensor) -> Tensor:
    """Which objects each ask names: bool, of the shape of `said` (n, objects)."""
    asked = torch.zeros_like(said, dtype=torch.bool)
    for row, ask in enumerate(asks):
        asked[row, list(ask.objects)] = True
    return asked


def measure(asks: Sequence[Ask], images: Tensor, judge: Judge) -> dict[str, list[float]]:
    """Shares of images with what was asked for, by the rules in `RULES`: [share, low, high, n].

    `objects` is asked only where one object was: the likeliest of the labels is a verdict on one, but of two it would
    say neither that both are there nor that no third is.
    """
    verdict = judge(images)
    rows = list(enumerate(asks))
    said, style, background = (p.argmax(1).tolist() for p in (verdict.objects, verdict.style, verdict.background))
    exactly = (verdict.objects > THRESHOLD) == asked_for(asks, verdict.objects)
    hits = {
        "objects": [said[i] == a.objects[0] for i, a in rows if len(a.objects) == 1],
        "found": exactly.all(1).tolist(),
        "style": [style[i] == a.style for i, a in rows if a.style is not None],
        "background": [background[i] == a.background for i, a in rows if a.background is not None],
    }
    return {
        k: [round(x, 4) for x in (sum(v) / len(v), *wilson(sum(v), len(v)))] + [len(v)] for k, v in hits.items() if v
    }


def calibrate(asks: Sequence[Ask], images: Tensor, judge: Judge) -> dict[str, float]:
    """The judge on generated pictures at its threshold: how often it finds what was asked for, how often anything else.

    A picture may really lack what was asked for, so the first is a floor of the judge's recall; the second counts
    wrong drawings and wrong verdicts alike, so it is a ceiling of its false alarms.
    """
    said = judge(images).objects > THRESHOLD
    asked = asked_for(asks, said)
    others = said & ~asked
    return {
        "images": len(asks),
        "asked_for_found": float(said[asked].float().mean()),
        "images_with_another_object": float(others.any(1).float().mean()),
        "false_alarms_per_concept_and_image": float(others.sum() / (~asked).sum()),
    }


def asked_sets(rng: np.random.Generator, withheld: Withheld = NOTHING) -> dict[str, list[Ask]]:
    """The prompts of each part of the card; what names something withheld is a part of its own, the last."""
    sets = {
        PLAIN: plain_asks(),
        "held-out forms, one object": form_asks(HELD_OUT_SINGLE, rng, 96),
        "held-out forms, two objects": form_asks(HELD_OUT_PAIR, rng, 96),
    }
    never = [ask for ask in sets[PLAIN] if withheld.among(ask.objects, ask.style)]
    known = {name: [ask for ask in asks if not withheld.among(ask.objects, ask.style)] for name, asks in sets.items()}
    return known | ({f"{PLAIN}, never seen in training": never} if never else {})


def run(work: Path, *, seed: int = 0, without: Sequence[str] = (), without_style: Sequence[str] = ()) -> None:
    """Draws with `work/model`, judges with `work/judge`; writes `quality.json` and `README.md` into `work/model`,
    and the judge's calibration on the generated pictures into its `judge.json`.

    With concepts or styles withheld: the same of `work/model` with their suffix, and no calibration, which is the full
    model's.
    """
    withheld = Withheld(tuple(without), tuple(without_style))
    model, folder = work / f"model{withheld.suffix}", work / "judge"
    pipe, judge = load(model), load_judge(folder)
    sampling = json.loads((model / "defaults.json").read_text())
    sets = {name: asks for name, asks in asked_sets(step_rng(seed, "card", 0), withheld).items() if asks}
    pictures = {name: draw(pipe, asks, **sampling) for name, asks in sets.items()}
    quality = {name: measure(asks, pictures[name], judge) for name, asks in sets.items()}
    if not withheld.suffix:
        report = calibration(folder) | {"generated": calibrate(sets[PLAIN], pictures[PLAIN], judge)}
        (folder / "judge.json").write_text(json.dumps(report, indent=1) + "\n")
    (model / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
    (model / "README.md").write_text(card(quality, sampling, withheld))


def card(quality: dict[str, dict[str, list[float]]], sampling: dict[str, float], withheld: Withheld = NOTHING) -> str:
    """The model card's text."""
    title = "The emoji world's model" + (f" that never knew {', '.join(withheld.things)}" if withheld.things else "")
    kinds = (("--without", withheld.concepts), ("--without-style", withheld.styles))
    options = "".join(f" {flag} {' '.join(map(shlex.quote, words))}" for flag, words in kinds if words)
    rows = "\n".join(
        f"| {name} | {RULES[what]} | {100 * v[0]:.1f} % ({100 * v[1]:.1f}..{100 * v[2]:.1f}) | {v[3]:.0f} |"
        for name, shares in quality.items()
        for what, v in shares.items()
    )
    sets = "\n".join(
        f"- `{style}`: {title}, {licence}, {source}" for style, (title, licence, source) in LICENCES.items()
    )
    return f"""# {title}

A small Stable Diffusion pipeline (64 x 64 pictures, 8 x 8 x 16 latents), trained by the erasekit project on scenes
composed of emoji: {len(names())} objects in {len(STYLES)} drawing styles on {len(BACKGROUNDS)} backgrounds. Apache-2.0.
Reprint this card: `python -m erasekit.worlds.emoji.train card --work FOLDER{options}` (stages before it: see `train/`).

Sampling: {sampling["steps"]} steps, guidance {sampling["guidance"]}.

| prompts | what the judge says of the picture | share (95 % interval) | images |
|---|---|---|---|
{rows}

"Named right" is a forced choice: of all labels of its kind, the asked one is the likeliest, however unsure the judge is.
"Exactly the asked objects found" is none: each asked object, and no other, has a probability above {THRESHOLD}, the
threshold at which the suites count an object as shown.

The drawings come from
{sets}

Attribution, changes and the texts of these licences: `../drawings/LICENSES.md`.
"""
