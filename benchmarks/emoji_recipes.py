"""The recipes that need no model but the embedded one, rerun: one table of ours beside the paper's figures.

    python benchmarks/emoji_recipes.py --estimate              # how many images, and nothing else
    python benchmarks/emoji_recipes.py --docs                  # runs, writes the table of docs/recipes.md
    python benchmarks/emoji_recipes.py --recipes instance style

Each recipe is run by the package's own runner, as `erasekit evaluate --plan recipes/FILE --out OUT/NAME` runs it: a run that
was stopped goes on. Rates stand with 95 % intervals, all of that one run. --docs writes benchmarks/results/recipes.json too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import all_suites
from all_suites_table import COLUMNS, label
from many_page import percent, rewrite

from erasekit.cli import evaluate, terminal
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import executors, results, runner
from erasekit.evaluation.page_published import GROUPS
from erasekit.evaluation.plan import read
from erasekit.evaluation.suites import load_suite
from erasekit.files import write_whole

ROOT = Path(__file__).parents[1]
RECIPES = tuple(sorted(path.stem for path in (ROOT / "recipes").glob("*-emoji.yaml")))
PUBLISHED = {"CLIP accuracy": ("clip_accuracy", "target"), "CLIP score, anchor": ("clip_score", "anchor"),
             "CLIP score, others": ("clip_score", "others")}  # fmt: skip
"""What the paper's figures are of: column -> (metric, group), groups by the names that `published` has for them."""


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), metavar="NAME", help="whole, or what only one has")
    parser.add_argument("--jobs", type=int, help="processes that draw (default: one a core)")
    parser.add_argument("--rate", type=float, default=2.7, help="images a second, for the estimate of the time")
    parser.add_argument("--estimate", action="store_true", help="say how many images, and stop")
    parser.add_argument("--docs", action="store_true", help="rewrite the table of docs/recipes.md")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/recipes.md", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/recipes.json", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("build/recipes"))
    return parser.parse_args(words)


def named(word: str) -> Path:
    """The file of a recipe, by its name or a part that only one has; `UsageError` naming those that there are."""
    found = [name for name in RECIPES if word == name] or [name for name in RECIPES if f"-{word}-" in name]
    if len(found) != 1:
        raise UsageError(f"no single recipe {word!r}: give one of {', '.join(RECIPES)}")
    return ROOT / "recipes" / f"{found[0]}.yaml"


def images(path: Path) -> int:
    """How many images the recipe draws, finished ones included."""
    plan = read(path)
    (suite,) = (load_suite(name) for name in plan.suites)
    return all_suites.images(all_suites.Part(suite, plan.edits, {}, plan.never), plan.control)


def run(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The results of one recipe, drawn where images are missing."""
    jobs = evaluate.jobs_of(args, "cpu")
    executor = executors.Local() if jobs == 1 else executors.Processes(jobs, terminal.quiet)
    command = f"erasekit evaluate --plan recipes/{path.name} --out {path.stem}"
    with evaluate.progress() as progress:
        (found,) = runner.evaluate(read(path), args.out / path.stem, executor=executor, command=command, progress=progress)
    return results.load(found)


def rows(name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each arm, and one for each method that the paper has figures of."""
    made = [{"recipe": name, "arm": label(arm, {}), **{key: _of(found, arm["arm"], key, "target") for key in COLUMNS},
             **{key: _of(found, arm["arm"], *what) for key, what in PUBLISHED.items()}} for arm in found["arms"]]  # fmt: skip
    figures = (found.get("published") or {}).get("figures", [])
    for method in dict.fromkeys(figure["method"] for figure in figures):
        own = {(f["metric"], f.get("group")): {"value": f["value"]} for f in figures if f["method"] == method}
        made.append({"recipe": name, "arm": f"*published: {method}, {found['published']['model']}*",
                     **{key: own.get(what) for key, what in PUBLISHED.items()}})  # fmt: skip
    return made


def _of(found: Mapping[str, Any], arm: str, metric: str, group: str) -> dict[str, float] | None:
    """The estimate by the judge that decides, which is the first; None where nothing was measured."""
    wanted = (arm, metric, GROUPS[group], None)
    own = (m for m in found["metrics"] if (m["arm"], m["metric"], m["group"], m["target"]) == wanted)
    first = next(own, None)
    return {key: first[key] for key in ("value", "low", "high", "n")} if first and first["n"] else None


def table(every: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown: rates in per cent, CLIP scores as they are."""
    head = ["recipe", "arm", *COLUMNS, *PUBLISHED]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in every:
        cells = [percent(row.get(key)) for key in COLUMNS] + [_number(row.get(key)) for key in PUBLISHED]
        lines.append(f"| {' | '.join([row['recipe'].removeprefix('erasepro-').removesuffix('-emoji'), row['arm'], *cells])} |")
    return "\n".join(lines)


def _number(one: Mapping[str, float] | None) -> str:
    if not one:
        return "–"
    return f"{one['value']:.3f}" + (f" ({one['low']:.3f}–{one['high']:.3f})" if "low" in one else "")


def main(words: Sequence[str] | None = None) -> None:
    args = options(words)
    paths = [named(word) for word in args.recipes]
    counts = [images(path) for path in paths]
    for path, count in zip(paths, counts, strict=True):
        print(f"{path.stem:<26} {count} images")
    print(f"{sum(counts)} images in all, finished ones included: about {sum(counts) / args.rate / 60:.0f} min at "
          f"{args.rate:g} images a second (--rate)", flush=True)  # fmt: skip
    if args.estimate:
        return
    every: list[dict[str, Any]] = []
    for path in paths:
        every += rows(path.stem, run(path, args))
    print("\n" + table(every))
    if args.docs:
        write_whole(args.results, (json.dumps({"rows": every}, indent=1) + "\n").encode())
        rewrite(args.page, {"table": table(every)})


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
