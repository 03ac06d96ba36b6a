"""Which anchor to take and what to retain, told from the text encoder before anything is fitted or drawn.

`suggest_anchors` ranks candidates by how near they stand to the target, `suggest_retain` by how far ErasePro would
move them (arXiv 2508.04472 leaves the choice of anchors open). The numbers come from `predict`: the update norms are
those of the default fit, the drifts a first-order estimate.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from erasekit.errors import UsageError
from erasekit.suggest.candidates import key, usable

if TYPE_CHECKING:
    from torch import Tensor

    from erasekit.backbones.base import Backbone
    from erasekit.methods import Progress

SYNONYM = 0.75
"""Centred cosine from which a candidate is taken for another word for the target. In the emoji world 96 % of the
synonyms stand above it, and of two different concepts none."""


@dataclass(frozen=True)
class Drift:
    """A concept and how far it would move: ||change of its keys and values|| / ||its keys and values||."""

    concept: str
    drift: float


@dataclass(frozen=True)
class Anchor:
    """One candidate as an anchor.

    `cosine`: centred, to the target; `update_text`, `update_cross`: ||dW|| / ||W_o||, root mean square over q, k, v
    of text layer 0 (the largest change of the text side) and over the cross-attention's k, v; `drift`: mean over the
    other candidates; `worst`: the three that move most. `warnings`: why it ranks low, in words.
    """

    concept: str
    tokens: int
    cosine: float
    update_text: float
    update_cross: float
    drift: float
    worst: tuple[Drift, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Anchors:
    """The ranked candidates, best first; `left_out`: what means the target and was not ranked."""

    target: str
    tokens: int
    model: str
    anchors: tuple[Anchor, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Kept:
    """One candidate for `--retain`."""

    concept: str
    tokens: int
    cosine: float
    drift: float


@dataclass(frozen=True)
class Retain:
    """The ranked candidates, the one that would move most first.

    `synonyms`: probable other words for the target, which should move and are not ranked; `exact_at_most`: so many
    retained concepts fit beside the target into the encoder's width, more are kept softly.
    """

    target: str
    anchor: str
    tokens: int
    model: str
    concepts: tuple[Kept, ...]
    synonyms: tuple[str, ...]
    left_out: tuple[str, ...]
    exact_at_most: int


def suggest_anchors(
    backbone: Backbone,
    target: str,
    candidates: Sequence[str],
    *,
    synonyms: Collection[str] = (),
    progress: Progress | None = None,
) -> Anchors:
    """Every candidate ranked: nearest first, then those with more tokens than the target, then probable synonyms.

    `synonyms`: words known to mean the target; these and the target itself are left out. Deterministic. Raises
    `UsageError` for an empty target, fewer than three candidates, or a prompt that is too long.
    """
    from erasekit.suggest.predict import predict, similarity

    target, names, left_out = usable(target, candidates, synonyms)
    counts = _tokens(backbone, [target, *names])
    cosines = similarity(backbone, target, names).tolist()
    found = predict(backbone, target, names, names, progress=progress)
    others = [i for i, cosine in enumerate(cosines) if cosine < SYNONYM]
    ranked = []
    for i, name in enumerate(names):
        moved = _ranked(names, found.drift[i], [j for j in others if j != i])
        mean = sum(drift.drift for drift in moved) / max(1, len(moved))
        warnings = _warnings(counts[0], counts[i + 1], cosines[i])
        ranked.append(Anchor(name, counts[i + 1], cosines[i], float(found.text[i]), float(found.cross[i]), mean,
                             tuple(moved[:3]), warnings))  # fmt: skip
    ranked.sort(key=lambda a: (a.cosine >= SYNONYM, a.tokens > counts[0], -a.cosine, a.concept))
    return Anchors(target, counts[0], backbone.model_id, tuple(ranked), left_out)


def suggest_retain(
    backbone: Backbone,
    target: str,
    candidates: Sequence[str],
    *,
    anchor: str = "",
    synonyms: Collection[str] = (),
    progress: Progress | None = None,
) -> Retain:
    """Every candidate ranked by how far it would move if `target` became `anchor` (the empty prompt: ErasePro's default).

    `synonyms` are left out as in `suggest_anchors`. Deterministic. Raises `UsageError` as it does, and for an anchor
    that is the target.
    """
    from erasekit.suggest.predict import predict, similarity

    target, names, left_out = usable(target, candidates, synonyms)
    anchor = " ".join(anchor.split())
    if key(anchor) == key(target):
        raise UsageError(f"the target {target!r} is its own anchor: choose another anchor")
    counts = _tokens(backbone, [target, *names])
    cosines = similarity(backbone, target, names).tolist()
    found = predict(backbone, target, [anchor], names, progress=progress)
    same = [i for i, cosine in enumerate(cosines) if cosine >= SYNONYM]
    place = {name: i for i, name in enumerate(names)}
    ranked = _ranked(names, found.drift[0], [i for i in range(len(names)) if i not in set(same)])
    kept = [Kept(d.concept, counts[place[d.concept] + 1], cosines[place[d.concept]], d.drift) for d in ranked]
    fits = max(0, (found.width - found.length) // (found.length - 1))
    return Retain(target, anchor, counts[0], backbone.model_id, tuple(kept), tuple(names[i] for i in same), left_out,
                  fits)  # fmt: skip


def _ranked(names: Sequence[str], drift: Tensor, rows: Sequence[int]) -> list[Drift]:
    """The rows as drifts, largest first."""
    return sorted((Drift(names[i], float(drift[i])) for i in rows), key=lambda d: (-d.drift, d.concept))


def _tokens(backbone: Backbone, names: Sequence[str]) -> list[int]:
    return [end - 1 for end in backbone.tokenize(names).ends]


def _warnings(target: int, tokens: int, cosine: float) -> tuple[str, ...]:
    found = []
    if tokens > target:
        found.append(f"{tokens} tokens for the target's {target}: the text behind the target moves too, also elsewhere")
    if cosine >= SYNONYM:
        found.append("probably another word for the target: the concept would stay")
    return tuple(found)
