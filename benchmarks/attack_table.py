"""Several edits, the weak control and a model that never knew the target, under one ladder of attacks: one table.

    python benchmarks/attack_table.py --estimate                                 # how long at most, and nothing else
    python benchmarks/attack_table.py --docs                                     # runs, writes docs/attacks/table.md
    python benchmarks/attack_table.py --methods uce --edit esd-x=FILE --never cat=FOLDER --targets cat
    python benchmarks/attack_table.py --only "plain prompts" "concept inversion"

Each edit is fitted for each target by itself, to the suite's anchor. The weak control is ErasePro times `--scale`: an
attack that fails there is broken. As in `--checks` it is attacked in the cases alone that the unedited model shows: what
that model does not draw, no attack brings back. A model that never knew a target is attacked as if it were an edit of the
one that does, so its pictures of the target come from that one. Rates of one edit are pooled over its targets, with 95 %
Wilson intervals. A rung that is done is kept: the same command goes on where it was stopped, and `--only` has folders of
its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from many_page import rewrite

from erasekit import io, models
from erasekit.attacks import budget, checks, ladder, never_knew
from erasekit.attacks.ladder import Climbed, Ladder
from erasekit.attacks.sight import Sight
from erasekit.attacks.standard import LADDERS
from erasekit.attacks.victim import Sampling, Victim
from erasekit.cli import attack, terminal
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import arms, judges
from erasekit.evaluation.plan import Entry, Plan
from erasekit.evaluation.shards import digest, slug
from erasekit.evaluation.statistics import Share
from erasekit.evaluation.suites import load_suite
from erasekit.files import file_sha256, write_whole

PAGE = Path(__file__).parents[1] / "docs/attacks/table.md"
WEAK, NEVER, WORST = "erasepro × {:g}", "never knew", "worst case of those that count"


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=["erasepro", "uce"], metavar="METHOD[:PRESET]")
    parser.add_argument("--edit", nargs="+", default=[], metavar="NAME=FILE", help="edits that come as files")
    parser.add_argument("--scale", type=float, default=0.3, help="of the weak control; 0 leaves it out")
    parser.add_argument("--never", nargs="+", default=[], metavar="TARGET=FOLDER")
    parser.add_argument("--targets", nargs="+", default=["cat"])
    parser.add_argument("--ladder", choices=tuple(LADDERS), default="standard")
    parser.add_argument("--only", nargs="+", default=[], metavar="RUNG", help="these rungs and no others")
    parser.add_argument("--cases", type=int, default=attack.CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--judge", default="emoji")
    parser.add_argument("--suite", default="emoji/object", help="whose anchors are taken")
    parser.add_argument("--rate", type=float, default=108.0, help="passes a second, for the estimate of the time")
    parser.add_argument("--estimate", action="store_true", help="say how long it takes at most, and stop")
    parser.add_argument("--docs", action="store_true", help="rewrite the table of docs/attacks/table.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("build/attacks"))
    return parser.parse_args(words)


# -- what is attacked ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One model under attack: its column, its target, what decides it, and how it is made a victim."""

    name: str
    target: str
    about: Mapping[str, Any]
    victim: Callable[[], Victim]
    weak: bool = False


@dataclass(frozen=True)
class Setup:
    """What all of them share."""

    pipe: Any
    judge: Any
    how: Sampling


def setup(args: argparse.Namespace) -> Setup:
    return Setup(models.load(args.model), judges.get(args.judge), sampling(args))


def sampling(args: argparse.Namespace) -> Sampling:
    known = models.defaults(models.resolve(args.model))
    return Sampling(int(known["steps"]), known["guidance"])


def columns(args: argparse.Namespace, target: str) -> list[str]:
    """The table's columns that have such a target, in order."""
    files = [name for name, file in named(args.edit, "--edit NAME=FILE") if target in io.load(file).targets]
    weak = [WEAK.format(args.scale)] if args.scale else []
    return [
        *args.methods,
        *files,
        *weak,
        *([NEVER] if target in dict(named(args.never, "--never TARGET=FOLDER")) else []),
    ]


def subjects(args: argparse.Namespace, made: Setup, target: str) -> Iterator[Subject]:
    """One for each column. Raises what the methods raise for a request that they refuse."""
    sight, files = Sight(made.judge, target), dict(named(args.edit, "--edit NAME=FILE"))
    for name in columns(args, target):
        if name == NEVER:
            folder = Path(dict(named(args.never, ""))[target])
            sha256 = arms.model_sha256(models.resolve(str(folder)))
            yield Subject(name, target, {"never_sha256": sha256}, lambda folder=folder: never_knew.beside(
                made.pipe, models.load(str(folder)), sight, made.how))  # fmt: skip
            continue
        weak = name == WEAK.format(args.scale)
        file = Path(files[name]) if name in files else fitted(args, "erasepro" if weak else name, target)
        edit = args.scale * io.load(file) if weak else io.load(file)
        about = {"edit_sha256": file_sha256(file), "scale": args.scale if weak else 1.0}
        yield Subject(name, target, about, lambda edit=edit: Victim(made.pipe, edit, sight, made.how), weak)


def named(words: Sequence[str], what: str) -> list[tuple[str, str]]:
    """NAME=VALUE words as pairs."""
    pairs = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    if wrong := [word for word, (name, value) in zip(words, pairs, strict=True) if not (name and value)]:
        raise UsageError(f"{wrong[0]}: give {what}")
    return pairs


def fitted(args: argparse.Namespace, method: str, target: str) -> Path:
    """The file of the method's edit for the target; fitted once."""
    anchor = str(load_suite(args.suite).anchor(target))
    entry = Entry(f"{slug(method)}-{slug(target)}", method=method, targets=(target,), anchor=(anchor,))
    plan = Plan((args.suite,), model=args.model, edits=(entry,))
    (loaded,) = arms.load_edits(plan, args.out, arms.model_sha256(models.resolve(args.model)))
    return loaded.file


def chosen(args: argparse.Namespace) -> Ladder:
    """The ladder, or those of its rungs that `--only` names."""
    whole = LADDERS[args.ladder]
    labels = [rung.label for rung in whole.rungs]
    if unknown := [label for label in args.only if label not in labels]:
        raise UsageError(f"{whole.name} has no rung {unknown[0]!r}: use one of {', '.join(labels)}")
    kept = tuple(rung for rung in whole.rungs if not args.only or rung.label in args.only)
    return whole if kept == whole.rungs else Ladder(f"{whole.name}, a part", kept)


# -- running it ---------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace, made: Setup, subject: Subject, rungs: Ladder) -> tuple[list[Climbed], Share]:
    """The rungs on one subject, and the worst case; kept in a folder of its own."""
    tried = attack.cases(subject.target, attack.PROMPTS, args.cases)
    shared = {"target": subject.target, "model": arms.model_sha256(models.resolve(args.model)),
              "judge": made.judge.weights_sha256, "sampling": vars(made.how), "versions": arms.versions()}  # fmt: skip
    about = {"subject": subject.name, **shared, **subject.about}
    place = (
        args.out / f"{slug(subject.name)}-{slug(subject.target)}-{digest([rungs.digest, args.cases, args.seed])[:8]}"
    )
    if subject.weak:
        plain = args.out / f"plain-{slug(subject.target)}-{digest([args.cases, args.seed])[:8]}"
        known = checks.Subject(made.pipe, None, Sight(made.judge, subject.target), made.how, shared)
        tried = checks.shown(known, tried, plain, "plain", seed=args.seed, progress=None)
    with terminal.progress() as progress, subject.victim() as victim:
        done = ladder.climb(victim, tried, rungs, place, about=about, seed=args.seed, progress=progress)
    return done, ladder.worst(tried, done)


def rows(found: Mapping[str, Sequence[tuple[Sequence[Climbed], Share]]], rungs: Ladder) -> list[dict[str, Any]]:
    """One row a rung and the worst case last, each with the shares of every column, pooled over its targets."""
    nothing = Share(0, 0)
    lines = [{"rung": rung.label, "counts": rung.counts,
              "shares": {name: sum((done[i].share for done, _ in runs), nothing) for name, runs in found.items()}}
             for i, rung in enumerate(rungs.rungs)]  # fmt: skip
    worst = {name: sum((share for _, share in runs), nothing) for name, runs in found.items()}
    return [*lines, {"rung": WORST, "counts": True, "shares": worst}]


def table(lines: Sequence[Mapping[str, Any]], args: argparse.Namespace, rungs: Ladder) -> str:
    """The rows as Markdown, and under it what was run."""
    head = list(lines[0]["shares"])
    text = ["| attack | " + " | ".join(head) + " |", "|" + "---|" * (len(head) + 1)]
    for line in lines:
        mark = "" if line["counts"] else " (apart)"
        text.append(f"| {line['rung']}{mark} | " + " | ".join(map(cell, line["shares"].values())) + " |")
    said = (f"`{rungs.name}`, {args.cases} cases of {', '.join(args.targets)} on `{args.model}`: cases that show the target "
            "of those tried, 95 % Wilson interval. The weak edit is tried in those that the unedited model shows.")  # fmt: skip
    return "\n".join([*text, "", said])


def skipped(found: Mapping[str, Sequence[tuple[Sequence[Climbed], Share]]]) -> list[str]:
    """One line for each rung that could not be run on a column's edit; the same command tries it again."""
    lines = [f"{name}: {one.rung.label} could not be run and counts nowhere: {one.skipped}"
             for name, runs in found.items() for done, _ in runs for one in done if one.skipped]  # fmt: skip
    return list(dict.fromkeys(lines))


def cell(share: Share) -> str:
    if not share.trials:
        return "–"
    low, high = share.interval
    return f"{share.hits}/{share.trials}, {share.value:.0%} ({100 * low:.0f}–{100 * high:.0f})"


def estimate(args: argparse.Namespace, rungs: Ladder) -> str:
    """Each rung's cost for one edit, and all of it in minutes; an upper bound, finished work included."""
    how = sampling(args)
    lines = [f"{rung.label}: {(cost := budget.worst(rung, args.cases, how)).passes} passes, {cost.gradients} with gradients"
             for rung in rungs.rungs]  # fmt: skip
    count = sum(len(columns(args, target)) for target in args.targets)
    weight = budget.total(rungs, args.cases, how).weight
    return "\n".join([*lines, f"one edit: as long as {weight} passes, at most about {weight / args.rate / 60:.0f} min at "
                      f"{args.rate:g} a second (--rate); {count} of them: {count * weight / args.rate / 3600:.1f} h; fitting "
                      "the edits and the text encoder's work come on top"])  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    args = options(words)
    rungs = chosen(args)
    if args.estimate:
        print(estimate(args, rungs))
        return
    made, found = setup(args), {}
    for target in args.targets:
        for subject in subjects(args, made, target):
            found.setdefault(subject.name, []).append(run(args, made, subject, rungs))
            kept = [{**line, "shares": {k: vars(v) for k, v in line["shares"].items()}} for line in rows(found, rungs)]
            write_whole(args.out / "table.json", (json.dumps(kept, indent=1) + "\n").encode())
            print(f"{subject.name}, {target}: done", flush=True)
    text = "\n\n".join([table(rows(found, rungs), args, rungs), *skipped(found)])
    print("\n" + text)
    if args.docs:
        rewrite(args.page, {"table": text})


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
