"""Lists of more targets than a method can do justice to: what that means for each method, said before anything is fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.concept import EraseRequest

WEIGHTS = ("no weight can send each to its own anchor, the edit is a compromise",
           "the fused matrices cannot do for each what its own LoRA does, the edit is a compromise")  # fmt: skip

APART = ("spm", "irece")
"""Methods that treat each target by itself, with no weight that they share: an SPM, or a gate, for each."""


class CrowdWarning(UserWarning):
    """A list of targets is longer than the text features are wide."""


def crowded(name: str, request: EraseRequest, config: Any, width: int) -> str:
    """What the method of this name cannot do for so many targets, given text features `width` wide; empty where it can.

    Raises `UsageError` where targets take turns and there are fewer turns than targets: some would never be trained on.
    """
    count, turns = len(request.targets), _turns(name, config)
    if turns is not None and turns < count:
        raise UsageError(f"{count} targets, but {turns} turns to train them in, each for one target: some would never be "
                         f"trained on; raise steps (now {config.steps}), or erase fewer at once")  # fmt: skip
    if count <= width or name in APART:
        return ""
    said = f"{count} targets are more than the text width of {width}"
    if turns is not None:
        each = f"{turns} turns of training, about {turns / count:.3g} each"
        return f"{said} and share {each}: raise steps, or erase fewer at once"
    return f"{said}: {WEIGHTS[name == 'mace']}; erase fewer at once"


def _turns(name: str, config: Any) -> int | None:
    """How many targets a run draws, one after the other; None for a method that treats all of them."""
    if name not in ("esd", "receler", "ac"):
        return None
    return config.steps * config.accumulate * (config.batch if name == "ac" else 1)  # each sample of AC draws its own
