"""The work of `erasekit attack`: what is attacked is loaded, the ladder climbed, and what is asked for beside it added."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit import models
from erasekit.attacks import checks, report
from erasekit.attacks import folder as places
from erasekit.attacks import ladder as rungs
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Victim
from erasekit.backbones import backbone
from erasekit.cli import attack, attack_never, commands
from erasekit.evaluation import judges
from erasekit.files import write_whole

if TYPE_CHECKING:
    from erasekit.attacks import Case
    from erasekit.attacks.ladder import Climbed, Ladder
    from erasekit.edit import Edit


def subject(arguments: argparse.Namespace, edit: Edit | None, target: str) -> tuple[checks.Subject, Victim | None]:
    """What is attacked, and the model that never knew the target where one is named. What is wrong with the judge or with a
    model's name is refused before a model is loaded."""
    judge = judges.get(arguments.judge)
    sight = Sight(judge, target, labels=arguments.label, kind="style" if arguments.style else "object")
    how = attack.sampling(arguments)
    attack_never.check(arguments, sight)
    device = commands.device(arguments.device)
    pipe = models.load(arguments.model, device=device)
    backbone(pipe)  # a model of another kind is refused here
    never = attack_never.victim(arguments, pipe, device, sight, how)
    about = attack._about(arguments, pipe, edit, sight.target, judge, how)
    return checks.Subject(pipe, edit, sight, how, about), never


def attacked(
    arguments: argparse.Namespace, on: checks.Subject, never: Victim | None, tried: Sequence[Case], ladder: Ladder,
    **more: Any,
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """The results, and the page's path. Both are written when the ladder is done, and again after its control and after its
    checks: whatever ends these, nothing that is done is lost. What an earlier run added to the same ladder stays."""
    out = arguments.out
    with Victim(on.pipe, on.edit, on.sight, on.sampling) as victim:
        done = rungs.climb(victim, tried, ladder, out, about=on.about, **more)
    found = attack.results(ladder, tried, done, {"model": models.public_name(arguments.model), **on.about})
    found |= places.kept_beside(out, found)
    page = _written(found, done, out)
    if never is not None:
        found |= attack_never.climbed(arguments, never, tried, ladder, on.about, **more)
        page = _written(found, done, out)
    if arguments.checks:
        seen = checks.checked(on, tried, done, out / "checks", name=ladder.name, **more)
        found["checks"] = [vars(one) for one in seen]
        page = _written(found, done, out)
    return found, page


def _written(found: dict[str, Any], done: Sequence[Climbed], folder: Path) -> Path:
    """Writes the results and the page, as far as they go; returns the page's path."""
    write_whole(folder / "results.json", (json.dumps(found, indent=1) + "\n").encode())
    return report.write_report(found, done, folder)
