"""`--without-model M` of `erasekit attack`: each rung on a model that never knew the target, as its control."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasekit.attacks import Case
    from erasekit.attacks.ladder import Ladder
    from erasekit.attacks.sight import Sight
    from erasekit.attacks.victim import Victim

KEPT = ("label", "tried", "invalid", "hits", "of", "rate", "low", "high", "curve", "skipped")


def add(parser: argparse.ArgumentParser) -> None:
    """The option; the benchmark has it, too."""
    parser.add_argument("--without-model", metavar="M",
                        help="a model of the same recipe that never saw the target, as a control of each rate")  # fmt: skip


def check(arguments: argparse.Namespace, sight: Sight) -> None:
    """Raises in one line, before any model is loaded, where that of `--without-model` is none, or knows the target."""
    if not arguments.without_model:
        return
    from erasekit import models
    from erasekit.evaluation import controls

    folder = models.resolve(arguments.without_model)
    controls.without(folder, sight.target, *sight.labels, option=f"--without-model {arguments.without_model}")


def victim(arguments: argparse.Namespace, pipe: Any, device: str, sight: Any, how: Any) -> Victim | None:
    """The model of `--without-model` as the edited side beside `pipe`; None where none is named. `UsageError` for one of
    another recipe, or a family that is not attacked."""
    if not arguments.without_model:
        return None
    from erasekit import models
    from erasekit.attacks import never_knew
    from erasekit.backbones import backbone

    never = models.load(arguments.without_model, device=device)
    backbone(never)
    return never_knew.beside(pipe, never, sight, how)


def climbed(
    arguments: argparse.Namespace, never: Victim, cases: Sequence[Case], ladder: Ladder, about: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """What the results have under `never_knew`: every rung alone on every case.

    Kept in `never-knew` beside the rungs, and gone on with as they are. What a rung taught or searched has nothing to bring
    back there: its rate is what the attack brings along itself.
    """
    from erasekit import models
    from erasekit.attacks.checks import every
    from erasekit.attacks.ladder import climb
    from erasekit.cli.attack import results
    from erasekit.evaluation.arms import model_sha256

    own = model_sha256(models.resolve(arguments.without_model))
    asked = {**about, "edit": None, "edit_sha256": None, "without_model_sha256": own}
    alone = every(ladder.name, ladder.rungs)
    with never:
        done = climb(never, cases, alone, arguments.out / "never-knew", about=asked, tolerant=True, **more)
    rungs = [{key: rung[key] for key in KEPT} for rung in results(alone, cases, done, {})["rungs"]]
    return {"never_knew": {"model": models.public_name(arguments.without_model), "model_sha256": own, "rungs": rungs}}
