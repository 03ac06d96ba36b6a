"""`erasekit attack`: does the concept come back. One attack, or a ladder of them with one worst-case number."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.cli import attack_bench, attack_list, attack_never
from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.attacks import Case
    from erasekit.attacks.ladder import Climbed, Ladder
    from erasekit.attacks.victim import Sampling
    from erasekit.edit import Edit

PROMPTS = ("a photo of {}", "a picture of {}", "{}", "a drawing of {}")
STYLES = ("a picture of a dog in {} style", "a house in {} style", "a photo of a cat in {} style", "a car in {} style")
CASES = 20


def add(commands: argparse._SubParsersAction) -> None:
    """The grammar of `attack` and `attacks`; nothing heavy is imported for it."""
    text = "try to bring an erased concept back, with one attack or a ladder of them"
    parser = commands.add_parser("attack", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("name", metavar="NAME", help="an attack or a ladder: see `erasekit attacks`")
    parser.add_argument("--model", default="emoji", metavar="M",
                        help="emoji (embedded), a diffusers folder, or a hub id owner/name (default: emoji)")  # fmt: skip
    parser.add_argument("--device", default=None, metavar="D", help="cpu, cuda, mps (default: cpu)")
    parser.add_argument("--edit", type=Path, metavar="E", help="the edit under attack (default: the unedited model)")
    parser.add_argument(
        "--target", metavar="T", help="the concept to bring back (default: the edit's, where it has one)"
    )
    parser.add_argument("--judge", default="emoji", metavar="J", help="who looks for it: see `erasekit judges`")
    parser.add_argument("--label", nargs="+", action="extend", default=[], metavar="L",
                        help="the judge's labels that count as the target (default: its name)")  # fmt: skip
    parser.add_argument("--style", action="store_true",
                        help="the target is a style (ink, or ink style): the judge's style decides")  # fmt: skip
    parser.add_argument("--prompt", nargs="+", action="extend", default=[], metavar="P",
                        help='prompts that ask for it, "{}" for its name (default: four plain ones)')  # fmt: skip
    parser.add_argument("--cases", type=int, default=CASES, metavar="N",
                        help=f"pictures to attack: the prompts in turn, seeds from 0 (default: {CASES})")  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: the model's)")
    parser.add_argument("--guidance", type=float, metavar="G", help="guidance (default: the model's)")
    parser.add_argument("--batch", type=int, metavar="N",
                        help="pictures and cases side by side at most, for less memory (default: 16)")  # fmt: skip
    parser.add_argument("--set", dest="parameters", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="a parameter of the attack")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of what an attack draws (default: 0)")
    parser.add_argument("--checks", action="store_true",
                        help="attack the unedited model and a weak edit, too: is a low number the attack's fault?")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where outcomes and pictures go")
    attack_never.add(parser)
    attack_bench.add(parser)
    attack_list.add(commands)


def run(arguments: argparse.Namespace) -> None:
    """Check the request, attack, print each rung and the worst case."""
    if attack_bench.named(arguments):
        if arguments.checks:
            raise UsageError(f"--checks is for attacks and ladders: {arguments.name} has controls of its own")
        attack_bench.run(arguments)
        return
    edit, target, ladder = _request(arguments)
    from erasekit.cli import attack_run, terminal

    terminal.quiet()
    on, never = attack_run.subject(arguments, edit, target)
    tried = cases(on.sight.target, arguments.prompt or (STYLES if arguments.style else PROMPTS), arguments.cases)
    with terminal.progress() as progress:
        found, page = attack_run.attacked(arguments, on, never, tried, ladder, seed=arguments.seed, progress=progress)
    print(summary(found))
    print(f"wrote {arguments.out / 'results.json'} and {page}, with every picture beside them")


def cases(target: str, prompts: Sequence[str], count: int) -> list[Case]:
    """The prompts in turn, with seeds from 0 on; `UsageError` for none."""
    from erasekit.attacks import Case

    if count < 1:
        raise UsageError("--cases takes a number from 1 on")
    return [Case(" ".join(prompts[i % len(prompts)].replace("{}", target).split()), i) for i in range(count)]


def sampling(arguments: argparse.Namespace) -> Sampling:
    """How pictures are drawn: as asked, else as is usual for the model. Raises `UsageError` for no picture at once."""
    from erasekit import models
    from erasekit.attacks.victim import Sampling

    if arguments.batch is not None and arguments.batch < 1:
        raise UsageError("--batch takes a number from 1 on")
    known = models.defaults(models.resolve(arguments.model))
    guidance = known["guidance"] if arguments.guidance is None else arguments.guidance
    return Sampling(arguments.steps or int(known["steps"]), guidance, arguments.batch or Sampling.batch)


def results(ladder: Ladder, tried: Sequence[Case], done: Sequence[Climbed], about: dict[str, Any]) -> dict[str, Any]:
    """What `results.json` holds: the worst case, every rung with its rate and cost, and what was attacked."""
    from erasekit.attacks import get
    from erasekit.attacks.ladder import never_judged, worst
    from erasekit.attacks.relearn import recovered

    def share(value: Any) -> dict[str, Any]:
        low, high = value.interval
        return {"hits": value.hits, "of": value.trials, "rate": value.value, "low": low, "high": high}

    rungs = [{"label": one.rung.label, "attack": one.rung.attack, "access": list(get(one.rung.attack).access),
              "counts": one.rung.counts, "tried": len(one.outcomes), "invalid": one.invalid, "unattacked": one.unattacked,
              **share(one.share), "fell": one.fell, "spent": vars(one.spent), "skipped": one.skipped,
              "curve": [list(point) for point in recovered(one.outcomes)] if one.rung.attack == "relearn" else []}
             for one in done]  # fmt: skip
    return {"ladder": {"name": ladder.name, "sha256": ladder.digest}, **about, "cases": len(tried),
            "worst": share(worst(tried, done)) | {"invalid": never_judged(tried, done)}, "rungs": rungs}  # fmt: skip


def summary(found: dict[str, Any]) -> str:
    """The rungs as a table, those that could not be run, the worst case, then what the checks warn of."""
    from erasekit.attacks.report import alarming, skips
    from erasekit.attacks.report_control import beside
    from erasekit.cli import terminal

    control = beside(found)
    table = [
        ["attack", "tried", "invalid", f"shows {found['target']} (95 % interval)", *["never knew it"] * any(control)]
    ]
    for rung, other in zip(found["rungs"], control, strict=True):
        mark = "" if rung["counts"] else " (apart)"
        tried = "skipped" if rung["skipped"] else str(rung["tried"])
        invalid = "" if rung["skipped"] else str(rung["invalid"])
        table.append([rung["label"] + mark, tried, invalid, _percent(rung) if rung["of"] else "-",
                      *([_percent(other) if other["of"] else "-"] if other else [])])  # fmt: skip
    worst = found["worst"]
    lines = [terminal.table(table), *skips(found["rungs"])]
    lines.append(f"worst case over all: {worst['hits']} of {worst['of']}, {_percent(worst)}; "
                 f"{worst['invalid']} more are invalid: nothing could be judged")  # fmt: skip
    if "checks" in found:
        lines += (alarms := alarming(found["checks"]))
        untested = sum(one["status"] == "untested" for one in found["checks"])
        lines.append(f"checks: {len(found['checks'])}, of which {len(alarms)} warn and {untested} could not be made")
    else:
        lines.append("not checked: a low number may be the attacks' fault; the same command with --checks asks")
    return "\n".join(lines)


def _percent(share: Mapping[str, Any]) -> str:
    return f"{share['rate']:.0%} ({share['low'] * 100:.0f}\u2013{share['high'] * 100:.0f})"


def _request(arguments: argparse.Namespace) -> tuple[Edit | None, str, Ladder]:
    """The edit, the target and the ladder that was named; `UsageError` before anything heavy is loaded."""
    from erasekit.attacks import ATTACKS, get
    from erasekit.attacks.ladder import Ladder, Rung
    from erasekit.attacks.standard import LADDERS
    from erasekit.cli.settings import pairs
    from erasekit.methods import make_config

    values = pairs(arguments.parameters)
    if arguments.name in LADDERS:
        if values:
            raise UsageError(f"the ladder {arguments.name} is fixed: --set is for a single attack")
        ladder = LADDERS[arguments.name]
    elif arguments.name in ATTACKS:
        make_config(get(arguments.name), values)
        ladder = Ladder(arguments.name, (Rung(arguments.name, arguments.name, values),))
    else:
        known = (*LADDERS, *ATTACKS, attack_bench.NAME)
        raise UsageError(f"unknown attack {arguments.name!r}: use one of {', '.join(known)}")
    from erasekit import io

    edit = None if arguments.edit is None else io.load(arguments.edit)
    if not arguments.target and (edit is None or len(edit.targets) != 1):
        raise UsageError("name what should come back: --target T")
    return edit, arguments.target or edit.targets[0], ladder  # pyright: ignore[reportOptionalMemberAccess]


def _about(
    arguments: argparse.Namespace, pipe: Any, edit: Edit | None, target: str, judge: Any, how: Any
) -> dict[str, Any]:
    """What decides the outcomes besides ladder, cases and seed. The model is known by its hash (that of an evaluation's
    results), not by the name that it was asked for with."""
    from erasekit import models
    from erasekit.evaluation.arms import model_sha256, versions
    from erasekit.files import file_sha256

    return {"model_sha256": model_sha256(models.resolve(arguments.model)), "device": pipe.device.type,
            "precision": str(pipe.unet.dtype).removeprefix("torch."), "versions": versions(),
            "target": target, "kind": "style" if arguments.style else "object",
            "edit": None if edit is None else edit.method,
            "edit_sha256": None if edit is None else file_sha256(arguments.edit),
            "judge": judge.name, "judge_sha256": judge.weights_sha256, "labels": list(arguments.label),
            "sampling": {"steps": how.steps, "guidance": how.guidance}}  # fmt: skip
