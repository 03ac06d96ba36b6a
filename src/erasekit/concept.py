"""What is asked of a method: which concepts go, what each becomes, which ones stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erasekit.errors import UsageError


@dataclass(frozen=True)
class EraseRequest:
    """A checked request: no empty or repeated target, and no target that is its own anchor or retained.

    `anchors[i]` is what `targets[i]` is mapped to; the empty string is the empty prompt. `seed` is for methods
    that draw anything at random. Concepts compare as the text encoder reads them: case and spacing aside.

    Raises:
        UsageError: with one line that names the concept at fault.
    """

    targets: tuple[str, ...]
    anchors: tuple[str, ...]
    retain: tuple[str, ...] = ()
    seed: int = 0

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
    ) -> EraseRequest:
        """A request from what a user types: one name or several, one anchor for all or one for each target.

        Surrounding and repeated spaces are removed; repeated retained concepts are kept once. Without `anchor`
        every target gets `default_anchor`, the method's own.
        """
        wanted = _names(targets, "target")
        anchors = (default_anchor,) if anchor is None else _names(anchor, "anchor")
        if len(anchors) == 1:
            anchors *= len(wanted)
        kept: dict[str, str] = {}
        for name in _names(retain, "retained concept"):
            kept.setdefault(_key(name), name)
        return cls(targets=wanted, anchors=anchors, retain=tuple(kept.values()), seed=seed)


def _names(value: str | Sequence[str], what: str) -> tuple[str, ...]:
    """One string or several, as a tuple with tidy spaces."""
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"a {what} must be text, not {type(name).__name__}: {name!r}")
    return tuple(" ".join(name.split()) for name in names)


def _key(name: str) -> str:
    """How concepts compare: CLIP's tokenizers lower-case and collapse spaces."""
    return " ".join(name.split()).lower()


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
