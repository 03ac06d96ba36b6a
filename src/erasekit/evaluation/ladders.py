"""What folders of `erasekit attack` are to a run: read at once, and refused where they attack something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasekit.evaluation.page_view import Tried

Facts = Sequence[Mapping[str, Any]]  # of a run's arms, as in the results


def read(folders: Sequence[Path]) -> Callable[[Mapping[str, Any], Facts], tuple[Tried, ...]]:
    """What the folders' attacks are to a model and its arms. They are read now: what is wrong with one shows up first.

    The function raises `UsageError` for an attack on another model, or on an edit that none of the arms is or can become.
    """
    if not folders:
        return lambda model, arms: ()
    from erasekit.attacks import folder

    known = [folder.read(path) for path in folders]
    return lambda model, arms: tuple(folder.tried(one, model, _fitted(arms, one.found)) for one in known)


def _fitted(arms: Facts, attacked: Mapping[str, Any]) -> Facts:
    """The arms, those that wait to be fitted by the attacked edit's method as that edit: nobody knows yet that they are not."""
    return [{**arm, "edit": {**arm["edit"], "sha256": attacked["edit_sha256"]}} if _may_be(arm, attacked) else arm
            for arm in arms]  # fmt: skip


def _may_be(arm: Mapping[str, Any], attacked: Mapping[str, Any]) -> bool:
    edit = arm["edit"]
    return edit is not None and edit["sha256"] == "" and edit["method"] == attacked["edit"]
