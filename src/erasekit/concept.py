"""What is asked of a method: which concepts go, what each becomes, which ones stay."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.backbones.base import Backbone


@dataclass(frozen=True)
class EraseRequest:
    """A checked request: no empty or repeated target, and no target that is its own anchor or retained.

    `anchors[i]` is what `targets[i]` is mapped to; the empty string is the empty prompt. `seed` is for methods
    that draw anything at random. Concepts compare as the text encoder reads them: case and spacing aside.
    `retain_cache` is the folder where what is computed from the retained prompts is kept; `notes` say what was tidied
    and what looks like a slip: they join the self-check's warnings. Neither is a part of what is asked.

    Raises:
        UsageError: with one line that names the concept at fault.
    """

    targets: tuple[str, ...]
    anchors: tuple[str, ...]
    retain: tuple[str, ...] = ()
    seed: int = 0
    retain_cache: Path | None = field(default=None, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_targets(self.targets)
        if len(self.anchors) != len(self.targets):
            raise UsageError(_anchor_count(len(self.anchors), len(self.targets)))
        for target, anchor in zip(self.targets, self.anchors, strict=True):
            if _key(target) == _key(anchor):
                raise UsageError(f"the target {target!r} is its own anchor: choose another anchor")
        _check_retained(self.targets, self.retain)

    @classmethod
    def build(
        cls,
        targets: str | Sequence[str],
        *,
        anchor: str | Sequence[str] | None = None,
        retain: str | Sequence[str] = (),
        seed: int = 0,
        default_anchor: str = "",
        retain_cache: Path | None = None,
    ) -> EraseRequest:
        """A request from what a user types: one name or several, one anchor for all or one for each target.

        Surrounding and repeated spaces are removed; repeated retained concepts are kept once and blank ones dropped,
        with a note that says how many. An empty string is the empty prompt, as anchor and among the retained.
        Without `anchor` every target gets `default_anchor`, the method's own.
        """
        wanted = _names(targets, "target")
        anchors = (default_anchor,) if anchor is None else _names(anchor, "anchor")
        if len(anchors) == 1:
            anchors *= len(wanted)
        kept, notes = _tidied((retain,) if isinstance(retain, str) else tuple(retain))
        notes += _overlaps(wanted, anchors, kept)
        return cls(targets=wanted, anchors=anchors, retain=kept, seed=seed, retain_cache=retain_cache,
                   notes=tuple(notes))  # fmt: skip


def with_article(concept: str) -> str:
    """The concept as a sentence has it, with "a" or "an"; what begins with an article or, as names do, with a capital stays
    as it is."""
    first = concept.split()[0] if concept.split() else ""
    if not first or first[0].isupper() or first in ("a", "an", "the"):
        return concept
    vowel = first[0] in "aeiou" and not first.startswith("uni")
    return f"{'an' if vowel else 'a'} {concept}"


def as_read(request: EraseRequest, backbone: Backbone) -> EraseRequest:
    """The request less the retained concepts that are nothing to the model's tokenizer, and with notes on what the
    model does not read as a person does.

    Raises `UsageError` for a target, or an anchor that is not empty, without a single token of its own, and for two
    targets that are the same tokens and have different anchors.
    """
    notes = [*_checked(backbone, "target", request.targets), *_checked(backbone, "anchor", request.anchors)]
    _check_twins(backbone, request)
    # What is ASCII has tokens: looking at it would make the time depend on the number of retained prompts.
    odd = [name for name in request.retain if name and not name.isascii()]
    lost = {name for name, (known, _) in zip(odd, _tokens(backbone, odd), strict=True) if not known}
    if lost:
        notes.append(f"retained concepts dropped, nothing to the model's tokenizer: {_some(map(repr, sorted(lost)))}")
    retain = tuple(name for name in request.retain if name not in lost)
    return replace(request, retain=retain, notes=request.notes + tuple(notes))


def _checked(backbone: Backbone, what: str, names: Sequence[str]) -> list[str]:
    """Notes on names that are read in part; `UsageError` for one that is not read at all."""
    named, notes = [name for name in dict.fromkeys(names) if name], []
    for name, (known, unknown) in zip(named, _tokens(backbone, named), strict=True):
        if not known:
            raise UsageError(f"the {what} {name!r} is nothing to the model's tokenizer: give a word that the model knows"
                             + (", or \"\" for the empty prompt" if what == "anchor" else ""))  # fmt: skip
        if unknown:
            notes.append(
                f"the model's tokenizer does not know every character of the {what} {name!r}: spell it otherwise"
            )
    return notes


def _check_twins(backbone: Backbone, request: EraseRequest) -> None:
    """`UsageError` for targets that are spelled differently, read the same, and asked to become two things."""
    targets, anchors = (backbone.tokenize(side).ids.tolist() for side in (request.targets, request.anchors))
    first: dict[tuple[int, ...], int] = {}
    for i, ids in enumerate(targets):
        k = first.setdefault(tuple(ids), i)
        if anchors[k] != anchors[i]:
            raise UsageError(
                f"the model reads the targets {request.targets[k]!r} and {request.targets[i]!r} as the same, and their "
                f"anchors {request.anchors[k]!r} and {request.anchors[i]!r} differ: drop one, or give them one anchor"
            )


def _tokens(backbone: Backbone, names: Sequence[str]) -> list[tuple[int, int]]:
    """How many tokens of each name are known, and how many are not (CLIP's tokenizers read those as the end token)."""
    if not names:
        return []
    tokens = backbone.tokenize(names)
    inside = [(row[1:end], row[end]) for row, end in zip(tokens.ids.tolist(), tokens.ends, strict=True)]
    counts = [(len(content), content.count(stop)) for content, stop in inside]
    return [(every - unknown, unknown) for every, unknown in counts]


def _names(value: str | Sequence[str], what: str) -> tuple[str, ...]:
    """One string or several, as a tuple with tidy spaces."""
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"a {what} must be text, not {type(name).__name__}: {name!r}")
    return tuple(" ".join(name.split()) for name in names)


def _key(name: str) -> str:
    """How concepts compare: CLIP's tokenizers compose characters, lower-case and collapse spaces."""
    return " ".join(unicodedata.normalize("NFC", name).split()).lower()


def _tidied(retain: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The retained concepts, each once, and notes on what was dropped: repetitions, and lines of nothing but space."""
    kept: dict[str, str] = {}
    names = _names(retain, "retained concept")
    wanted = [name for name, given in zip(names, retain, strict=True) if name or not given]
    for name in wanted:
        kept.setdefault(_key(name), name)
    dropped = {"blank": len(names) - len(wanted), "repetitions": len(wanted) - len(kept)}
    return tuple(kept.values()), [
        f"retained concepts dropped as {why}: {n} of {len(names)}" for why, n in dropped.items() if n
    ]


def _overlaps(targets: Sequence[str], anchors: Sequence[str], retain: Sequence[str]) -> list[str]:
    """Notes on targets inside what is retained, and on anchors that are, or hold, a target."""
    words = {_words(target): target for target in targets if _words(target)}
    sizes = sorted({len(key) for key in words})
    held = [f"{name!r} ({found})" for name in retain if (found := _inside(name, words, sizes))]
    notes = [f"retained prompts that contain a target, and so hold on to it: {_some(held)}; drop what need not stay"]
    pairs = ((target, anchor, _inside(anchor, words, sizes)) for target, anchor in zip(targets, anchors, strict=False))
    return notes * bool(held) + [
        f"the anchor {anchor!r} of {target!r} holds the target {found!r}, which should go too: choose another anchor"
        for target, anchor, found in pairs
        if found
    ]


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", _key(text)))


def _inside(text: str, concepts: dict[tuple[str, ...], str], sizes: Iterable[int]) -> str | None:
    """A concept that occurs in the text as whole words; `sizes` are the concepts' numbers of words."""
    words = _words(text)
    parts = (words[i : i + size] for size in sizes for i in range(len(words) - size + 1))
    return next((concepts[part] for part in parts if part in concepts), None)


def _some(texts: Iterable[str]) -> str:
    """How many there are, and the first three."""
    texts = list(texts)
    return f"{len(texts)}, {'such as ' if len(texts) > 3 else ''}{', '.join(texts[:3])}"


def _check_targets(targets: tuple[str, ...]) -> None:
    if not targets:
        raise UsageError("no target: name at least one concept to erase")
    seen: set[str] = set()
    for target in targets:
        if not _key(target):
            raise UsageError("a target is empty: name the concept to erase")
        if _key(target) in seen:
            raise UsageError(f"the target {target!r} is given twice: name each target once")
        seen.add(_key(target))


def _check_retained(targets: tuple[str, ...], retain: tuple[str, ...]) -> None:
    kept = {_key(name) for name in retain}
    for target in targets:
        if _key(target) in kept:
            raise UsageError(f"the target {target!r} is also among the retained concepts: drop it from one of the two")


def _anchor_count(anchors: int, targets: int) -> str:
    each = "the one target" if targets == 1 else f"each of the {targets} targets"
    return f"{anchors} anchors for {targets} target{'s' * (targets != 1)}: give one anchor for all, or one for {each}"
