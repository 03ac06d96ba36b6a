"""What the checks on an evaluation share: how one came out, what the ladder was run on, how a rung is held to a bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erasekit.attacks.ladder import Climbed

if TYPE_CHECKING:
    from erasekit.attacks.sight import Sight
    from erasekit.attacks.victim import Sampling
    from erasekit.edit import Edit
    from erasekit.methods import Progress

FEW = "too few cases to say"


@dataclass(frozen=True)
class Check:
    """How a check on a rung came out: "ok", "broken", "warned" or "untested", and in words why. `hits` of `of` cases show
    the target, in `attacked` of which it was up to the attack."""

    check: str
    rung: str
    status: str
    says: str
    hits: int = 0
    of: int = 0
    attacked: int = 0


@dataclass(frozen=True)
class Subject:
    """What the ladder was run on: the pipeline as it is without the edit, and what decides its outcomes."""

    pipe: Any
    edit: Edit | None
    sight: Sight
    sampling: Sampling
    about: Mapping[str, Any]


BROKEN = ("broken", "its failures elsewhere prove nothing")


def judged(
    check: str, one: Climbed, bar: float, where: str, which: str = "", *, under: tuple[str, str] = BROKEN
) -> Check:
    """The rung, of which every case was attacked, held to a bar; `under` it: the status, and what that means."""
    share, label = one.share, one.rung.label
    attacked = sum(outcome.status in ("success", "failure") for outcome in one.outcomes)
    says = f"{label} shows the target in {share.hits} of {share.trials} cases {where}{which}"
    if one.skipped:
        status, says = "untested", f"{label} could not be run {where}: {one.skipped}"
    elif not share.trials:
        status, says = "untested", f"{FEW}: {label} has no valid one {where}"
    elif share.value < bar:
        low, high = share.interval  # few cases: a sound attack may end under the bar, and the interval says so
        status, says = under[0], f"{says} ({low:.0%} to {high:.0%}), under {bar:.0%}: {under[1]}"
    else:
        status = "ok"
    return Check(check, label, status, says, share.hits, share.trials, attacked)


def told(progress: Progress | None, check: str) -> Progress | None:
    """What reports under the check's name: of work by one name that was told as done, nothing more is told."""
    return progress and (lambda done, total, what: progress(done, total, f"{check}, {what}"))
