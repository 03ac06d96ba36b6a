"""`erasekit attack m-erasurebench`: five scenarios, each rate beside its controls."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.attacks._bench_scenarios import MErasureBenchConfig
    from erasekit.attacks.sight import Sight
    from erasekit.edit import Edit

NAME = "m-erasurebench"
OPTIONS = {"images": "--images", "only": "--only", "control": "--control"}
OTHERS = 10  # control prompts by default


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `attack` that are the benchmark's alone."""
    group = parser.add_argument_group(NAME)
    group.add_argument("--images", type=int, metavar="K", help="pictures of the target to begin with (default: 50)")
    group.add_argument("--only", nargs="+", action="extend", default=[], metavar="S",
                       help="scenarios: T, E-wb, E-bb, L-wb, L-bb (default: all)")  # fmt: skip
    group.add_argument("--control", nargs="+", action="extend", default=[], metavar="P",
                       help="prompts for other things, for the judge's false positives (default: of its labels)")  # fmt: skip


def named(arguments: argparse.Namespace) -> bool:
    """Whether the benchmark is asked for; `UsageError` for its options with another attack."""
    if arguments.name == NAME:
        return True
    if given := [option for key, option in OPTIONS.items() if getattr(arguments, key) not in (None, [])]:
        raise UsageError(f"{given[0]} is an option of {NAME}: leave it out for {arguments.name}")
    return False


def run(arguments: argparse.Namespace) -> None:
    """Check the request, run the scenarios, write results and page, print each rate with its gaps."""
    edit, target, config = _request(arguments)
    from erasekit import models
    from erasekit.attacks import folder_bench, report_bench
    from erasekit.attacks import m_erasurebench as bench
    from erasekit.attacks.sight import Sight
    from erasekit.attacks.victim import Victim
    from erasekit.cli import attack, attack_never, commands, terminal
    from erasekit.evaluation import judges
    from erasekit.files import write_whole

    terminal.quiet()
    judge = judges.get(arguments.judge)
    sight = Sight(judge, target, labels=arguments.label, kind="style" if arguments.style else "object")
    device, how = commands.device(arguments.device), attack.sampling(arguments)
    names = [arguments.model, *([arguments.without_model] if arguments.without_model else [])]
    models.resolve(arguments.model)  # a wrong one is refused before anything is loaded
    attack_never.check(arguments, sight)
    pipes = [models.load(name, device=device) for name in names]
    for pipe in pipes:
        bench.check_model(pipe)
    about = attack._about(arguments, pipes[0], edit, sight.target, judge, how)
    asked: dict[str, Any] = {"others": arguments.control or others(judge, sight), "templates": arguments.prompt,
                             "only": arguments.only, "about": about, "seed": arguments.seed}  # fmt: skip
    with terminal.progress() as progress, ExitStack() as stack:
        victim = stack.enter_context(Victim(pipes[0], edit, sight, how))
        never = stack.enter_context(Victim(pipes[1], None, sight, how)) if pipes[1:] else None
        found = bench.MErasureBench().run(victim, arguments.out, config, never=never, progress=progress, **asked)
    found = {"model": models.public_name(arguments.model), **found}
    if never is not None:
        found["never_knew"] = {"model": models.public_name(arguments.without_model)}
    elif folder_bench.never_knew(found):
        found |= folder_bench.never_named(arguments.out)
    write_whole(arguments.out / "results.json", (json.dumps(found, indent=1) + "\n").encode())
    print(summary(found))
    page = report_bench.write_report(folder_bench.read(arguments.out, found))
    print(f"wrote {arguments.out / 'results.json'} and {page}, with every picture beside them")


def others(judge: Any, sight: Sight) -> list[str]:
    """Prompts for other things that the judge knows, spread over its labels; `UsageError` where it lists none."""
    from erasekit.attacks.m_erasurebench import names_target

    usable = [label for label in sight.known or () if not names_target(label, sight)]
    if not usable:
        raise UsageError(f"the judge {judge.name} lists nothing else to ask for: give prompts without the target with "
                         "--control P")  # fmt: skip
    sentence = "a picture in {} style" if sight.kind == "style" else "a photo of {}"
    return [sentence.format(label) for label in usable[:: max(1, len(usable) // OTHERS)][:OTHERS]]


def summary(found: Mapping[str, Any]) -> str:
    """The rows as a table: the rate, and each control's with the gap in points; then what to hold beside them."""
    from erasekit.attacks._bench_scenarios import CONTROLS
    from erasekit.attacks.folder_bench import warned
    from erasekit.attacks.report_bench import HINTS
    from erasekit.cli import terminal

    names = [name for name in CONTROLS if any(name in row["controls"] for row in found["rows"])]
    table = [["scenario", f"shows {found['target']} (95 %)", *(f"{name}: rate, gap" for name in names)]]
    for row in found["rows"]:
        table.append([row["row"], _rate(row["crr"]), *(_control(row["controls"].get(name)) for name in names)])
    made, lines = found["concept_images"], [terminal.table(table)]
    lines += [f"warned: {line}" for line in warned(found)]
    lines.append(f"the judge finds {found['target']} in pictures of other things: {_rate(found['false_positives'])}")
    lines += [f"through the {name} alone: {_rate(one)}" for name, one in found["autoencoder"].items()]
    lines.append(f"pictures to begin with: {made['kept']} of {made['drawn']} drawn by the unedited model")
    if made["short"]:
        lines.append("fewer than the procedure's 50: the intervals are wide")
    return "\n".join([*lines, *(HINTS if found["autoencoder"] else ())])


def _rate(one: Mapping[str, Any]) -> str:
    """Such as 23/25, 92% (75-98); pictures that could not be judged are said beside it."""
    apart = f" and {one['invalid']} invalid" if one["invalid"] else ""
    if one["rate"] is None:
        return f"-{apart}"
    return f"{one['hits']}/{one['of']}, {one['rate']:.0%} ({one['low'] * 100:.0f}\u2013{one['high'] * 100:.0f}){apart}"


def _control(one: Mapping[str, Any] | None) -> str:
    if one is None or one["gap"] is None:
        return "-"
    value, low, high = (100 * one["gap"][key] for key in ("value", "low", "high"))
    return f"{one['rate']:.0%}, {value:+.0f} ({low:+.0f} to {high:+.0f})"


def _request(arguments: argparse.Namespace) -> tuple[Edit | None, str, MErasureBenchConfig]:
    """The edit, the target and the parameters; `UsageError` before anything heavy is loaded."""
    from erasekit.attacks._bench_scenarios import chosen
    from erasekit.attacks.m_erasurebench import MErasureBench
    from erasekit.cli.attack import CASES
    from erasekit.cli.settings import pairs
    from erasekit.methods import make_config

    chosen(arguments.only)
    if arguments.cases != CASES:
        raise UsageError(f"{NAME} has cases of its own: give --images K, and --set seeds=N for each sentence")
    given = {} if arguments.images is None else {"images": arguments.images}
    config = make_config(MErasureBench, {**pairs(arguments.parameters), **given})
    from erasekit import io

    edit = None if arguments.edit is None else io.load(arguments.edit)
    if not arguments.target and (edit is None or len(edit.targets) != 1):
        raise UsageError("name what should come back: --target T")
    return edit, arguments.target or edit.targets[0], config  # pyright: ignore[reportOptionalMemberAccess]
