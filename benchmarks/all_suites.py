"""Efficacy, generality, specificity and fidelity of several methods on all emoji suites, with controls and intervals.

    python benchmarks/all_suites.py --estimate                                  # how many images, and nothing else
    python benchmarks/all_suites.py --docs                                      # runs, writes docs/all_suites.md
    python benchmarks/all_suites.py --suites emoji/object --limit-targets 1 --methods erasepro uce
    python benchmarks/all_suites.py --never cat=FOLDER bomb=FOLDER    # models of one's own; without: the shipped emoji-never

For each suite an edit by each method: one for all targets in the suites of many (there by `--many` too), else one for
each of the first targets (cat, bomb, clown and ink style before all others: these are what `--never` models are trained
without). The plan is written to OUT/SUITE/plan.yaml and run by the package's own runner, so `erasekit evaluate --plan`
runs it too, and a run that was stopped goes on. Rates of one method are pooled over its targets, with 95 % Wilson
intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from all_suites_table import pooled, rewarded, table
from many_fits import read_spec
from many_page import rewrite

from erasekit import models
from erasekit.cli import evaluate, terminal
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import arms, controls, executors, results, runner
from erasekit.evaluation.plan import CONTROLS, Entry, Plan, read
from erasekit.evaluation.shards import slug
from erasekit.evaluation.suites import Suite, load_suite
from erasekit.files import write_whole
from erasekit.worlds.emoji.concepts import STYLES, names

SUITES = tuple(f"emoji/{name}" for name in ("object", "style", "person", "unsafe", "multi-10", "multi-100"))
FIRST = ("cat", "bomb", "clown", "ink style")
NEVER = tuple(f"{concept}=emoji-never" for concept in FIRST)
PAGE = Path(__file__).parents[1] / "docs/all_suites.md"


@dataclass(frozen=True)
class Part:
    """One suite of the run: its edits, what each is called in the table, and the models that never knew."""

    suite: Suite
    entries: tuple[Entry, ...]
    labels: dict[str, str]
    never: tuple[str, ...]


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=list(SUITES))
    parser.add_argument("--methods", nargs="+", default=["erasepro", "uce"], metavar="METHOD[:PRESET]")
    parser.add_argument("--many", nargs="*", default=["erasepro:crowd:captions=emoji"], metavar="METHOD[:PRESET][:KEY=VALUE]",
                        help="also these in the suites that erase all of their targets at once")  # fmt: skip
    parser.add_argument(
        "--limit-targets", type=int, default=2, metavar="N", help="edits a method, one target each (default 2)"
    )
    parser.add_argument("--retain", choices=("none", "others"), default="none", help="others: all that is no target")
    parser.add_argument("--never", nargs="*", metavar="CONCEPT=FOLDER", help="default: the shipped emoji-never, of emoji")
    parser.add_argument("--control", choices=CONTROLS, default="random")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--jobs", type=int, help="processes that draw (default: one a core)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2.7, help="images a second, for the estimate of the time")
    parser.add_argument("--estimate", action="store_true", help="say how many images it takes, and stop")
    parser.add_argument("--docs", action="store_true", help="rewrite the table of docs/all_suites.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("build/all_suites"))
    return parser.parse_args(words)


# -- what is run --------------------------------------------------------------------------------------------------


def part(name: str, args: argparse.Namespace) -> Part:
    """The suite with its edits: every method on every set of targets."""
    suite = load_suite(name)
    chosen = targets(suite, args.limit_targets)
    entries, labels = [], {}
    for group in chosen:
        for spec in (*args.methods, *(args.many if suite.whole else ())):
            method, parameters = read_spec(spec)
            entry = Entry(
                f"{method}-{slug(group[0])}" + (f"-and-{len(group) - 1}-more" if len(group) > 1 else ""),
                method=method, targets=group, anchor=tuple(str(suite.anchor(target)) for target in group),
                retain=others(suite, group) if args.retain == "others" else (),
                parameters=parameters,
            )  # fmt: skip
            entries.append(entry)
            labels[entry.name] = spec
    known = [group[0] for group in chosen if len(group) == 1]
    never = tuple(spec for spec in map(_never, args.never or ()) if spec.partition("=")[0] in known)
    return Part(suite, tuple(entries), labels, never)


def targets(suite: Suite, limit: int) -> list[tuple[str, ...]]:
    """The sets of targets that are erased together: all of a suite of many, else single ones, at most `limit`."""
    if suite.whole:
        return [suite.targets]
    ordered = [*(name for name in FIRST if name in suite.targets), *(t for t in suite.targets if t not in FIRST)]
    return [(name,) for name in ordered[:limit]]


def others(suite: Suite, group: Sequence[str]) -> tuple[str, ...]:
    """What `--retain others` retains: all styles, or all concepts, but the targets."""
    pool = tuple(f"{style} style" for style in STYLES) if suite.kind == "style" else names()
    return tuple(name for name in pool if name not in group)


def _never(spec: str) -> str:
    name, sign, folder = spec.partition("=")
    if not sign:
        raise UsageError(f"--never {spec}: give CONCEPT=FOLDER, as several suites are run")
    return f"{name}={folder if folder in models.EMBEDDED else Path(folder).expanduser().resolve()}"


def _folder(model: str) -> Path:
    return models.resolve(model) if model in models.EMBEDDED else Path(model)


def check_never(parts: Sequence[Part], specs: Sequence[str]) -> None:
    """Raises `UsageError` for a model that never knew what no suite of this run erases alone: it would draw nothing."""
    used = {spec for one in parts for spec in one.never}
    alone = sorted({entry.targets[0] for one in parts for entry in one.entries if len(entry.targets) == 1})
    for spec in specs:
        if _never(spec) not in used:
            raise UsageError(f"--never {spec}: no suite of this run erases {spec.partition('=')[0]!r} alone; they erase "
                             f"{', '.join(alone) or 'many at once'}: name one of these, or raise --limit-targets")  # fmt: skip


def images(part: Part, control: str) -> int:
    """How many images the suite takes: edits and their controls, the unedited model once, models that never knew."""
    asked = {entry.name: part.suite.prompts(entry.targets, entry.anchor or ()) for entry in part.entries}
    base = _count(arms.union(asked.values()))
    edits = sum(map(_count, asked.values())) * (2 if control == "random" else 1)
    knew_not = [controls.Never(name, _folder(model)) for name, _, model in (spec.partition("=") for spec in part.never)]
    never = [controls.fair(arms.union(asked[e.name] for e in part.entries if one.concept in e.targets), part.suite, one)
             for one in knew_not]  # fmt: skip
    return base + edits + sum(map(_count, never))


def _count(prompts: Sequence[Any]) -> int:
    return sum(len(prompt.seeds) for prompt in prompts)


# -- running it ---------------------------------------------------------------------------------------------------


def run(part: Part, args: argparse.Namespace) -> tuple[dict[str, Any] | None, list[str]]:
    """The suite's results and what methods refused; no results where all did."""
    out = args.out / slug(part.suite.name)
    kept, refused = [], []
    plan = Plan((_spec(part.suite),), model=args.model, never=part.never, control=args.control, batch=args.batch)
    sha256 = arms.model_sha256(models.resolve(args.model))
    for entry in part.entries:
        try:
            arms.load_edits(replace(plan, edits=(entry,)), out, sha256)  # kept there: the runner finds it again
            kept.append(entry)
        except EraseKitError as error:
            refused.append(f"{part.labels[entry.name]} on {part.suite.name}: {error}")
    if not kept:
        return None, refused
    path = write_plan(replace(plan, edits=tuple(kept)), out / "plan.yaml")
    jobs = evaluate.jobs_of(args, "cpu")
    executor = executors.Local() if jobs == 1 else executors.Processes(jobs, terminal.quiet)
    command = f"erasekit evaluate --plan {path.name} --out {out.name}"
    with evaluate.progress() as progress:
        (found,) = runner.evaluate(read(path), out, executor=executor, command=command, progress=progress)
    return results.load(found), refused


def _spec(suite: Suite) -> str:
    """The suite as a plan names it: its name, or its file."""
    return str(Path(suite.source).resolve()) if Path(suite.source).is_file() else suite.name


def write_plan(plan: Plan, path: Path) -> Path:
    """The plan as a file that `erasekit evaluate --plan` reads."""
    import yaml

    model = str(Path(plan.model).resolve()) if Path(plan.model).exists() else plan.model
    edits = [{"name": e.name, "targets": [*e.targets], "anchor": [*(e.anchor or ())], "method": e.method,
              "retain": [*e.retain], "parameters": e.parameters} for e in plan.edits]  # fmt: skip
    data = {"suites": [*plan.suites], "model": model, "control": plan.control, "never": [*plan.never],
            "batch": plan.batch, "edits": edits}  # fmt: skip
    write_whole(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120).encode())
    return path


def main(words: Sequence[str] | None = None) -> None:
    args = options(words)
    given, args.never = args.never or (), NEVER if args.never is None and args.model == "emoji" else args.never
    parts = [part(name, args) for name in args.suites]
    check_never(parts, given)
    counts = [images(one, args.control) for one in parts]
    for one, count in zip(parts, counts, strict=True):
        print(f"{one.suite.name:<18} {len(one.entries)} edits, {count} images")
    print(f"{sum(counts)} images in all, finished ones included: about {sum(counts) / args.rate / 60:.0f} min at "
          f"{args.rate:g} images a second (--rate)", flush=True)  # fmt: skip
    if args.estimate:
        return
    rows, refused = [], []
    for one in parts:
        found, lines = run(one, args)
        refused += lines
        rows += pooled(one.suite.name, one.labels, found) if found is not None else []
        write_whole(args.out / "table.json", (json.dumps({"rows": rows, "refused": refused}, indent=1) + "\n").encode())
    text = f"{table(rows, refused)}\n\n{rewarded(rows)}"
    print("\n" + text)
    if args.docs:
        rewrite(args.page, {"table": text})


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
