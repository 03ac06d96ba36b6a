"""`erasekit evaluate`: how well edits work, on pinned suites, with intervals and controls, as results and a report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.evaluation.executors import Executor
    from erasekit.evaluation.plan import Plan
    from erasekit.evaluation.runner import Progress

MOST_JOBS = 8  # each holds a model of its own
OVERRIDES = ("model", "device", "control", "batch", "seed", "lpips", "inception", "real")
"""What the command line sets over a plan's file."""
HEADLINES = ("efficacy", "generality", "specificity", "fidelity", "net_erasure")


def add(commands: argparse._SubParsersAction) -> None:
    """The command's grammar; nothing heavy is imported for it."""
    text = "measure edits on pinned suites, with controls and intervals; a run that was cut short goes on"
    parser = commands.add_parser("evaluate", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--model", metavar="M",
                        help="emoji (embedded), a diffusers folder, or a hub id owner/name (default: emoji)")  # fmt: skip
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (default: cpu)")
    parser.add_argument("--edit", nargs="+", action="extend", type=Path, default=[], metavar="E",
                        help="edit files; each is measured by itself")  # fmt: skip
    parser.add_argument("--suite", nargs="+", action="extend", default=[], metavar="S",
                        help="see `erasekit suites`, or a suite's YAML file")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where results and images go")
    parser.add_argument("--prompts", nargs="+", action="extend", default=[], metavar="[SUITE=]FILE",
                        help="the prompt file of a suite that needs one")  # fmt: skip
    parser.add_argument("--control", choices=("random", "none"),
                        help="noise of each edit's norm as a control (default: random)")  # fmt: skip
    parser.add_argument("--never", nargs="+", action="extend", default=[], metavar="[CONCEPT=]FOLDER",
                        help="models that were trained without a target")  # fmt: skip
    parser.add_argument("--lpips", type=Path, metavar="WEIGHTS",
                        help="also LPIPS to the unedited images, with these weights (file or folder)")  # fmt: skip
    parser.add_argument("--inception", type=Path, metavar="WEIGHTS",
                        help="also FID and KID on Inception features, with these weights (a file or folder)")  # fmt: skip
    parser.add_argument("--real", metavar="FOLDER|emoji",
                        help="also distances to real images: a folder of them, or the emoji world's references")  # fmt: skip
    parser.add_argument("--batch", type=int, metavar="N", help="images drawn together (default: 16)")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="processes that draw; results do not depend on it (default: one a core on the CPU)")  # fmt: skip
    parser.add_argument("--ray", nargs="?", const="auto", metavar="ADDRESS",
                        help="draw with --jobs workers of a Ray cluster: auto, host:port, or local")  # fmt: skip
    parser.add_argument("--plan", type=Path, metavar="FILE", help="many edits, methods and suites as a YAML file")
    parser.add_argument("--baseline", type=Path, metavar="FOLDER",
                        help="where the unedited model's images are kept (default: beside --out)")  # fmt: skip
    parser.add_argument("--attacks", nargs="+", action="extend", type=Path, default=[], metavar="FOLDER",
                        help="what `erasekit attack --out` wrote on these edits: into results and page")  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the random control (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Check the request, evaluate, print the headline numbers and where everything lies."""
    plan = plan_of(arguments)
    jobs = jobs_of(arguments, plan.device)
    from erasekit.cli import commands, terminal
    from erasekit.evaluation import results, runner

    if arguments.ray in (None, "local"):  # a cluster has devices that this machine need not have
        commands.device(plan.device)
    terminal.quiet()
    with progress() as report:
        written = runner.evaluate(plan, arguments.out, executor=executor_of(arguments, jobs), command=command_of(arguments),
                                  baseline=arguments.baseline, progress=report, attacks=arguments.attacks)  # fmt: skip
    for path in written:
        print(summary(results.load(path)))
        print(f"wrote {path}, {path.with_name('report.html').name} and {path.with_name('rows.jsonl').name} beside it")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan: the file's, with what the command line adds (edits, suites) and overrides (all else)."""
    from erasekit.evaluation import plan as plans

    given = {key: getattr(arguments, key) for key in OVERRIDES}
    given = {key: value for key, value in given.items() if value is not None}
    edits, suites, never = plans.files(arguments.edit), tuple(arguments.suite), tuple(arguments.never)
    if arguments.plan is None:
        return plans.Plan(suites, edits=edits, never=never, prompts=prompts_of(arguments.prompts, suites), **given)
    read = plans.read(arguments.plan)
    prompts = prompts_of(arguments.prompts, read.suites + suites)
    if isinstance(read.prompts, Mapping) and (prompts is None or isinstance(prompts, Mapping)):
        prompts = {**read.prompts, **(prompts or {})}
    return replace(read, suites=read.suites + suites, edits=read.edits + edits, never=read.never + never,
                   prompts=prompts or read.prompts, **given)  # fmt: skip


def prompts_of(texts: Sequence[str], suites: Sequence[str]) -> Path | dict[str, Path] | None:
    """The prompt file of all suites, or of each that is named before a sign of equality; None for none."""
    parts = [text.partition("=") for text in texts]
    named = {suite: Path(file).expanduser() for suite, sign, file in parts if sign and suite in suites}
    if len(named) == len(texts):
        return named or None
    if len(texts) > 1:
        raise UsageError(f"--prompts takes one file, or SUITE=FILE of {', '.join(suites)}: not {' '.join(texts)}")
    return Path(texts[0]).expanduser()


def jobs_of(arguments: argparse.Namespace, device: str) -> int:
    """How many workers: as asked, else one a core on the CPU (each draws with one thread), one elsewhere."""
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UsageError("--jobs takes a number from 1 on")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return arguments.jobs or (min(cores, MOST_JOBS) if device == "cpu" else 1)


def executor_of(arguments: argparse.Namespace, jobs: int) -> Executor:
    """Ray if it was asked for, else this process or several."""
    from erasekit.cli import terminal
    from erasekit.evaluation import executors

    if arguments.ray is not None:
        return executors.Ray(arguments.ray, jobs)
    return executors.Local() if jobs == 1 else executors.Processes(jobs, terminal.quiet)


def command_of(arguments: argparse.Namespace) -> str:
    """The command that gives the same results: what decides them and no more (not who draws, not where it is kept)."""
    words = ["erasekit", "evaluate"]
    for key in ("edit", "suite", "prompts", "never", "plan", *OVERRIDES, "attacks", "out"):
        value = getattr(arguments, key)
        if value not in (None, []):
            words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def summary(found: dict[str, Any]) -> str:
    """The headline numbers of every arm as a table, by the deciding judge, then the warnings."""
    from erasekit.cli import terminal

    names = [name for name in HEADLINES if any(m["metric"] == name for m in found["metrics"])]
    table = [[f"{found['suite']['name']} (95 % intervals)", *names]]
    for arm in found["arms"]:
        table.append([arm["label"], *(_cell(found["metrics"], name, arm["arm"]) for name in names)])
    return "\n".join([terminal.table(table), *(f"warning: {line}" for line in found["warnings"])])


def _cell(metrics: list[dict[str, Any]], name: str, arm: str) -> str:
    for one in metrics:
        if (one["metric"], one["arm"], one["group"], one["target"]) == (name, arm, None, None) and one["n"]:
            ends = "" if one["low"] is None else f" ({one['low'] * 100:.0f}\u2013{one['high'] * 100:.0f})"
            return f"{one['value']:.0%}{ends}"
    return "-"


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar with the time left on a terminal; elsewhere a plain line at each tenth that says it too."""
    if sys.stderr.isatty():
        from erasekit.cli import terminal

        with terminal.progress() as report:
            yield report
    else:
        yield Lines()


class Lines:
    """Progress as plain lines, at most eleven for each kind of work (what stands before a colon names it); the time left is
    reckoned from what this run itself has done."""

    def __init__(self) -> None:
        self.start: tuple[float, int] | None = None
        self.last = ("", 0)
        self.said = -1

    def __call__(self, done: int, total: int, what: str) -> None:
        """Say it, if a tenth is full."""
        now, (name, _, more) = time.monotonic(), what.partition(":")
        if self.start is None or name != self.last[0] or done < self.last[1]:  # other work, or that of another suite
            self.start, self.said = (now, done), -1
        self.last = (name, done)
        tenth = done * 10 // max(total, 1)
        if tenth > self.said:
            self.said = tenth
            print(f"{name}: {done}/{total}{more and f',{more}'}{self._left(now, done, total)}", flush=True)

    def _left(self, now: float, done: int, total: int) -> str:
        began, before = self.start or (now, done)
        if done in (before, total):
            return ""
        seconds = (now - began) / (done - before) * (total - done)
        return f", about {seconds:.0f} s left" if seconds < 90 else f", about {seconds / 60:.0f} min left"
