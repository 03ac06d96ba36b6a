"""Several edits, the weak control and a model that never knew the target, under one ladder of attacks: one table.

    python benchmarks/attack_table.py --estimate                                 # how long at most, and nothing else
    python benchmarks/attack_table.py --docs                                     # runs, writes docs/attacks/table.md
    python benchmarks/attack_table.py --methods uce --edit esd-x=FILE --never cat=FOLDER --targets cat
    python benchmarks/attack_table.py --only "plain prompts" "concept inversion"
    python benchmarks/attack_table.py --reprint                                  # the page again from what was measured

Each edit is fitted for each target by itself, to the suite's anchor, those that train with the one rule of `trained_rule`.
The weak control is ErasePro at a part of its strength, as in `--checks` (`checks_weak`): once so weak that it hides next to
nothing, where every case is attacked, and an attack that loses the target is broken; and once at the first of `--scale` that
hides something, in the cases that it hides. Both have the cases alone that the unedited model shows: what that model does not
draw, no attack brings back. There, and on a model that never knew a target, each rung is tried on every case, not on
what others left. The latter is attacked as if it were an edit of the model that does, so its pictures of the target come
from that one. Each target has tables of its own, with 95 % Wilson intervals. A rung that is done is kept: the
same command goes on where it was stopped, and `--only` has folders of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import attack_page
import trained_rule
from attack_page import HIDDEN, MILD, NEVER
from many_page import rewrite

from erasekit import io, models
from erasekit.attacks import Case, _weak, checks_weak, ladder, never_knew
from erasekit.attacks import _check as check
from erasekit.attacks.ladder import Climbed, Ladder
from erasekit.attacks.sight import Sight
from erasekit.attacks.standard import LADDERS
from erasekit.attacks.victim import Sampling, Victim
from erasekit.cli import attack, terminal
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import arms, controls, judges
from erasekit.evaluation.plan import Entry, Plan
from erasekit.evaluation.shards import digest, slug
from erasekit.evaluation.statistics import Share
from erasekit.evaluation.suites import load_suite
from erasekit.files import file_sha256, write_whole

PAGE = Path(__file__).parents[1] / "docs/attacks/table.md"
RESULTS = Path(__file__).parent / "results/attack_table.json"


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=["erasepro", "uce", "esd"], metavar="METHOD[:PRESET]")
    parser.add_argument("--edit", nargs="+", default=[], metavar="NAME=FILE", help="edits that come as files")
    parser.add_argument("--scale", type=float, nargs="+", default=list(_weak.SCALES),
                        help="strengths of the weak control that may hide something; 0 leaves out both columns")  # fmt: skip
    parser.add_argument("--never", nargs="*", metavar="TARGET=FOLDER",
                        help="default: the shipped emoji-never for targets of emoji that it never saw")  # fmt: skip
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
    parser.add_argument("--docs", action="store_true", help="write the results, and the table of docs/attacks/table.md")
    parser.add_argument("--reprint", action="store_true", help="rewrite it from what --docs measured before, and stop")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON that --docs writes")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("build/attacks"))
    return parser.parse_args(words)


# -- what is attacked ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One model under attack: its column, its target, what decides it, and how it is made a victim. `alone`: each rung is
    tried on all of `tried`. `says`: what the page says of it."""

    name: str
    target: str
    about: Mapping[str, Any]
    victim: Callable[[], Victim]
    tried: Sequence[Case]
    alone: bool = False
    says: str = ""


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
    weak = [MILD, HIDDEN] if any(args.scale) else []
    never = [NEVER] if never_folder(args, target) else []
    return [*args.methods, *files, *weak, *never]


def never_folder(args: argparse.Namespace, target: str) -> Path | None:
    """The model that never knew the target, where one is named, or shipped; `UsageError` where it did."""
    if args.never is None:
        shipped = models.resolve("emoji-never")
        return shipped if args.model == "emoji" and controls.bare(target) in controls.withheld(shipped) else None
    if (name := dict(named(args.never, "--never TARGET=FOLDER")).get(target)) is None:
        return None
    controls.without(folder := models.resolve(name), target, option=f"--never {target}={name}")
    return folder


def subjects(args: argparse.Namespace, made: Setup, target: str) -> Iterator[Subject]:
    """One for each column. Raises what the methods raise for a request that they refuse."""
    sight, files = Sight(made.judge, target), dict(named(args.edit, "--edit NAME=FILE"))
    tried = attack.cases(target, attack.PROMPTS, args.cases)
    for name in columns(args, target):
        if name == NEVER:
            yield never(args, made, sight, tried)
        elif name == MILD:
            yield from weak(args, made, sight, tried)
        elif name != HIDDEN:
            file = Path(files[name]) if name in files else fitted(args, name, target)
            edit, about = io.load(file), {"edit_sha256": file_sha256(file), "scale": 1.0}
            yield Subject(name, target, about, lambda edit=edit: Victim(made.pipe, edit, sight, made.how), tried)


def never(args: argparse.Namespace, made: Setup, sight: Sight, tried: Sequence[Case]) -> Subject:
    """The model that never knew the target, as if it were an edit of the one that does."""
    folder = never_folder(args, sight.target)
    assert folder is not None, "there is a column for it"
    about = {"never_sha256": arms.model_sha256(folder)}
    return Subject(NEVER, sight.target, about, lambda: never_knew.beside(
        made.pipe, models.load(str(folder)), sight, made.how), tried, alone=True)  # fmt: skip


def weak(args: argparse.Namespace, made: Setup, sight: Sight, tried: Sequence[Case]) -> Iterator[Subject]:
    """ErasePro so weak that it hides next to nothing, then where it hides something; in what the unedited model shows."""
    target, file = sight.target, fitted(args, "erasepro", sight.target)
    edit, about = io.load(file), shared(args, made, target)
    own, sha256 = f"{slug(target)}-{digest([args.cases, args.seed])[:8]}", {"edit_sha256": file_sha256(file)}
    more: dict[str, Any] = {"seed": args.seed, "progress": None}
    plain = check.Subject(made.pipe, None, sight, made.how, about)
    known = _weak.shown(plain, tried, args.out / f"plain-{own}", "plain", **more)
    subject = check.Subject(made.pipe, edit, sight, made.how, about | sha256)
    strengths = args.out / f"strength-{own}"
    scale = checks_weak.mild(checks_weak.Weakened(subject, known, len(tried), strengths, "plain", more))
    at = _weak.strength(subject, known, strengths, "plain", scales=args.scale, **more)

    def one(name: str, scale: float, cases: Sequence[Case], says: str) -> Subject:
        return Subject(name, target, sha256 | {"scale": scale}, lambda: Victim(
            made.pipe, edit, sight, made.how, scale=scale, skip=False), cases, alone=True, says=says)  # fmt: skip

    hides = f"{HIDDEN}: {at.left} of the {at.of} that {at.scale:g} times ErasePro's edit hides"
    yield one(MILD, scale or 0.0, known if scale else (), f"{MILD}: {scale or 0:g} times ErasePro's edit")
    yield one(HIDDEN, at.scale, at.hidden, "; ".join(filter(None, [hides, at.short])))


def named(words: Sequence[str], what: str) -> list[tuple[str, str]]:
    """NAME=VALUE words as pairs."""
    pairs = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    if wrong := [word for word, (name, value) in zip(words, pairs, strict=True) if not (name and value)]:
        raise UsageError(f"{wrong[0]}: give {what}")
    return pairs


def fitted(args: argparse.Namespace, method: str, target: str) -> Path:
    """The file of the method's edit for the target; fitted once."""
    suite = load_suite(args.suite)
    anchor, method = str(suite.anchor(target)), trained_rule.for_suite(method, suite.kind)
    entry = Entry(f"{slug(method)}-{slug(target)}", method=method, targets=(target,), anchor=(anchor,),
                  parameters=trained_rule.Rule().parameters(method))  # fmt: skip
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


def shared(args: argparse.Namespace, made: Setup, target: str) -> dict[str, Any]:
    """What decides the outcomes of every column."""
    return {"target": target, "model": arms.model_sha256(models.resolve(args.model)), "judge": made.judge.weights_sha256,
            "sampling": vars(made.how), "versions": arms.versions()}  # fmt: skip


def run(args: argparse.Namespace, made: Setup, subject: Subject, rungs: Ladder) -> tuple[list[Climbed], Share]:
    """The rungs on one subject, and the worst case; kept in a folder of its own."""
    used = _weak.every(rungs.name, rungs.rungs) if subject.alone else rungs
    about = {"subject": subject.name, **shared(args, made, subject.target), **subject.about}
    own = digest([used.digest, args.cases, args.seed])[:8]
    place = args.out / f"{slug(subject.name)}-{slug(subject.target)}-{own}"
    with terminal.progress() as progress, subject.victim() as victim:
        done = ladder.climb(victim, subject.tried, used, place, about=about, seed=args.seed, progress=progress)
    done = [
        replace(one, rung=rung) for one, rung in zip(done, rungs.rungs, strict=True)
    ]  # they count as they do elsewhere
    return done, ladder.worst(subject.tried, done)


def main(words: Sequence[str] | None = None) -> None:
    args = options(words)
    if args.reprint:
        print(attack_page.reprint(args.results, args.page))
        return
    rungs, count = chosen(args), sum(len(columns(args, one)) for one in args.targets)  # what is wrong is refused here
    if args.estimate:
        print(attack_page.estimate(args, rungs, sampling(args), count))
        return
    made, kept = setup(args), []
    for target in args.targets:
        kept.append(measured(args, made, rungs, target))
        plain = (json.dumps(attack_page.whole(kept, args, rungs), indent=1) + "\n").encode()
        write_whole(args.out / "table.json", plain)
    text = attack_page.text(json.loads(plain))
    print("\n" + text)
    if args.docs:
        write_whole(args.results, plain)
        rewrite(args.page, {"table": text})


def measured(args: argparse.Namespace, made: Setup, rungs: Ladder, target: str) -> dict[str, Any]:
    """Every column of a target."""
    found: dict[str, tuple[list[Climbed], Share]] = {}
    says = []
    for subject in subjects(args, made, target):
        found[subject.name] = run(args, made, subject, rungs)
        says += [subject.says] if subject.says else []
        print(f"{subject.name}, {target}: done", flush=True)
    return attack_page.kept(target, found, rungs, says)


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
