"""Captions: from a bare word to a whole sentence, some forms kept out of training for evaluation.

Held-out forms are made of words that training also uses, in orders that it never saw.
"""

from __future__ import annotations

import numpy as np

from .concepts import BACKGROUNDS, STYLES, concepts
from .scenes import Scene, sample_scene

SINGLE = (
    "{a}",
    "{x}",
    "a photo of {a}",
    "a picture of {a}",
    "{a} in {s} style",
    "{a} in {s} style",
    "{a} in {s} style",
    "a photo of {a} in {s} style",
    "a picture of {a} in {s} style",
    "a {s} drawing of {a}",
    "{x}, {s} style",
    "{a} on a {b} background",
    "{a} on a {b} background in {s} style",
    "a photo of {a} on a {b} background in {s} style",
    "a {s} drawing of {a} on a {b} background",
    "there is {a} on a {b} background, {s} style",
    "{a} alone in front of a {b} background",
    "a scene with {a} in {s} style",
)
PAIR = (
    "{a} and {c}",
    "{a} next to {c}",
    "{a} and {c} in {s} style",
    "{a} next to {c} in {s} style",
    "a photo of {a} next to {c} on a {b} background in {s} style",
    "a picture of {a} beside {c} on a {b} background",
    "{a} beside {c}, {s} style",
    "a {s} drawing of {a} and {c} on a {b} background",
    "a scene with {a} and {c} in front of a {b} background in {s} style",
    "there is {a} next to {c}, {s} style",
)
# Never seen in training: single scenes first, then pairs.
HELD_OUT_SINGLE = (
    "a picture of {a} in front of a {b} background in {s} style",
    "there is a {s} drawing of {a} on a {b} background",
    "a scene with {a} alone on a {b} background, {s} style",
    "a photo of {a} in front of a {b} background",
    "a {s} style picture of {a}",
    "there is {a} in {s} style",
    "a {s} style scene with {a} on a {b} background",
    "a drawing of {a} in {s} style, {b} background",
)
HELD_OUT_PAIR = (
    "a picture of {a} next to {c} in {s} style",
    "there is {a} beside {c} on a {b} background in {s} style",
    "a photo of {a} and {c} in front of a {b} background",
    "a {s} style drawing of {a} beside {c}",
    "a scene with {a} next to {c}, {s} style",
    "a {s} drawing of {a} next to {c} on a {b} background",
)
SYNONYM_SHARE = 0.15
STYLED_SHARE = 0.85  # of training captions name the style: it is what the denoiser learns last


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def fill(template: str, nouns: tuple[str, ...], style: str, background: str) -> str:
    """The template with its nouns, style and background put in."""
    first, *rest = nouns
    other = article(rest[0]) if rest else ""
    return template.format(x=first, a=article(first), c=other, s=style, b=background)


def caption(scene: Scene, rng: np.random.Generator, *, synonyms: bool = True) -> str:
    """A training caption of the scene; now and then a concept is named by a synonym."""
    nouns = tuple(_noun(i, rng) if synonyms else concepts()[i].name for i in scene.objects)
    styled = rng.random() < STYLED_SHARE
    forms = [f for f in (SINGLE if len(nouns) == 1 else PAIR) if ("{s}" in f) == styled]
    template = forms[int(rng.integers(len(forms)))]
    return fill(template, nouns, STYLES[scene.style], tuple(BACKGROUNDS)[scene.background])


def _noun(index: int, rng: np.random.Generator) -> str:
    concept = concepts()[index]
    if concept.synonyms and rng.random() < SYNONYM_SHARE:
        return concept.synonyms[int(rng.integers(len(concept.synonyms)))]
    return concept.name


def sentences(count: int, *, seed: int = 0) -> tuple[str, ...]:
    """Captions of random scenes as training has them, none twice, always the same for a seed; no held-out form."""
    rng = np.random.default_rng([seed, *b"sentences"])
    found: dict[str, None] = {}
    while len(found) < count:
        found[caption(sample_scene(rng, pair_share=0.4), rng)] = None
    return tuple(found)
