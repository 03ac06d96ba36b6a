"""Methods that train, on the emoji world's objects and styles, beside ErasePro, UCE, the unedited model and noise.

    python benchmarks/trained_table.py --estimate                         # images and hours, from a few timed passes
    python benchmarks/trained_table.py --docs                             # runs, writes the table of docs/training.md
    python benchmarks/trained_table.py --methods esd uce --targets cat "ink style"

The runner, suites, plans and pooled rates are those of `all_suites`; steps and rates are the notes' defaults scaled by
the one rule of `trained_rule`, and sentences are of the emoji world's words. On a suite whose kind ("object", "style") a
training method has a preset for, this is used. A run that was stopped goes on, a training in the middle too. What does
worse than noise of its own size is named, and below the table stands what the edits' self-checks warn of. --docs writes
benchmarks/results/trained_table.json, and the page from it (`trained_page`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import all_suites
import trained_page
import trained_rule
from all_suites import Part
from all_suites_table import pooled
from trained_rule import Rule

from erasekit import api, methods, models
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import arms
from erasekit.evaluation.plan import CONTROLS, Entry, Plan
from erasekit.evaluation.shards import slug
from erasekit.files import write_whole

BESIDE = ("erasepro", "uce")


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trained = [name for name in methods.METHODS if trained_rule.trains(name)]
    parser.add_argument("--methods", nargs="+", default=[*trained, *BESIDE], metavar="METHOD[:PRESET]")
    parser.add_argument("--suites", nargs="+", default=["emoji/object", "emoji/style"])
    parser.add_argument("--targets", nargs="+", default=[], help="these and no others, in the suites that have them")
    parser.add_argument("--limit-targets", type=int, default=2, metavar="N", help="targets a suite (default 2)")
    parser.add_argument("--retain", choices=("none", "others"), default="none", help="others: all that is no target")
    parser.add_argument("--scale-steps", type=float, default=trained_rule.STEPS, help="the rule's factor of the steps")
    parser.add_argument("--scale-rate", type=float, default=trained_rule.RATE, help="the rule's factor of the rate")
    parser.add_argument("--set", nargs="+", default=[], metavar="METHOD.KEY=VALUE", help="said below the table")
    parser.add_argument("--control", choices=CONTROLS, default="random")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--jobs", type=int, help="processes that draw (default: one a core)")
    parser.add_argument("--batch", type=int, default=16, help="images drawn together")
    parser.add_argument("--rate", type=float, default=2.7, help="images a second, for the estimate of the time")
    parser.add_argument("--estimate", action="store_true", help="say how long it takes, and stop")
    parser.add_argument("--docs", action="store_true", help="rewrite the table of docs/training.md")
    parser.add_argument("--page", type=Path, default=trained_page.PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=trained_page.RESULTS, help="what --docs writes besides")
    parser.add_argument("--out", type=Path, default=Path("build/trained"))
    return parser.parse_args(words, argparse.Namespace(never=[]))


# -- what is run --------------------------------------------------------------------------------------------------


def parts(args: argparse.Namespace, rule: Rule) -> list[Part]:
    """The suites with their edits; `UsageError` for a target that none of them has."""
    found = [part(name, args, rule) for name in args.suites]
    known = {target for one in found for entry in one.entries for target in entry.targets}
    if unknown := [target for target in args.targets if target not in known]:
        raise UsageError(f"no target {', '.join(unknown)} in {', '.join(args.suites)}: see `erasekit suites`")
    return [one for one in found if one.entries]


def part(name: str, args: argparse.Namespace, rule: Rule) -> Part:
    """One suite: every method on every target, with the rule's parameters."""
    kind = all_suites.load_suite(name).kind
    own = vars(args) | {"methods": [trained_rule.for_suite(method, kind) for method in args.methods]}
    if args.targets:
        own["limit_targets"] = sys.maxsize
    made = all_suites.part(name, argparse.Namespace(**own))
    wanted = [e for e in made.entries if not args.targets or set(e.targets) & set(args.targets)]
    return replace(made, entries=tuple(replace(e, parameters=rule.parameters(e.method, kind)) for e in wanted))


def training_seconds(one: Part, model: str) -> dict[str, float]:
    """What each method that trains will take on all of its targets, from its own plan for the first."""
    found: dict[str, float] = {}
    for entry in (e for e in one.entries if trained_rule.trains(e.method)):
        if entry.method not in found:
            count = sum(e.method == entry.method for e in one.entries)
            found[entry.method] = count * _plan(entry, model).seconds
    return found


def _plan(entry: Entry, model: str) -> Any:
    return api.plan(model, list(entry.targets), anchor=list(entry.anchor or ()) or None, retain=entry.retain,
                    method=entry.method, seed=entry.seed, **entry.parameters)  # fmt: skip


def estimate(found: Sequence[Part], args: argparse.Namespace) -> str:
    """Lines: what is trained and drawn in each suite, and how long all of it takes here."""
    lines, total = [], 0.0
    for one in found:
        images = all_suites.images(one, args.control)
        total += images / args.rate
        lines.append(f"{one.suite.name}: {len(one.entries)} edits, {images} images, {_minutes(images / args.rate)} at "
                     f"{args.rate:g} images a second (--rate)")  # fmt: skip
        for method, seconds in training_seconds(one, args.model).items():
            total += seconds
            lines.append(f"  training {method}: {_minutes(seconds)}")
    return "\n".join([*lines, f"in all {_minutes(total)}, finished work included"])


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.1f} min"


# -- running it ---------------------------------------------------------------------------------------------------


def fitted(one: Part, args: argparse.Namespace) -> tuple[Part, list[str], list[str]]:
    """The part without what methods refuse, in their own words, and what the others' self-checks say; these edits then
    lie where the runner looks."""
    out, kept, refused, said = args.out / slug(one.suite.name), [], [], []
    plan, sha256 = Plan((one.suite.name,), model=args.model), arms.model_sha256(models.resolve(args.model))
    for entry in one.entries:
        began = time.perf_counter()
        try:
            (edit,) = arms.load_edits(replace(plan, edits=(entry,)), out, sha256)
        except EraseKitError as error:
            refused.append(f"{entry.method} on {one.suite.name}, {', '.join(entry.targets)}: {error}")
            print(f"refused: {refused[-1]}", flush=True)
            continue
        kept.append(entry)
        name = f"{entry.method} on {one.suite.name}, {', '.join(entry.targets)}"
        said += trained_page.said(name, edit.about["self_check"] or {})
        print(f"{one.suite.name}, {entry.name}: fitted, {time.perf_counter() - began:.0f} s", flush=True)
    return replace(one, entries=tuple(kept)), refused, said


def main(words: Sequence[str] | None = None) -> None:
    args = options(words)
    rule = trained_rule.rule(args.scale_steps, args.scale_rate, args.set)
    found = parts(args, rule)
    if args.estimate:
        print(estimate(found, args))
        return
    used = [(entry.method, one.suite.kind) for one in found for entry in one.entries]
    whole: dict[str, Any] = {
        "model_sha256": arms.model_sha256(models.resolve(args.model)), "steps": rule.steps, "rate": rule.rate,
        "trained": trained_rule.settings(used, rule), "methods": list(dict.fromkeys(method for method, _ in used)),
        "rows": [], "refused": [], "said": [],
    }  # fmt: skip
    for one in found:
        ready, lines, said = fitted(one, args)
        results, more = all_suites.run(ready, args)
        whole["refused"] += lines + more
        whole["said"] += said
        whole["rows"] += pooled(one.suite.name, one.labels, results) if results is not None else []
        _write(whole, args.out / "table.json")
    print("\n" + trained_page.page(whole))
    if args.docs:
        _write(whole, args.results)
        trained_page.main(["--results", str(args.results), "--page", str(args.page)])


def _write(whole: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(whole, indent=1) + "\n").encode())


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
