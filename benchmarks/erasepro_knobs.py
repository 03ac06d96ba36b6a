"""What each of ErasePro's knobs does, on the emoji model: the tables and curves of docs/erasepro.md.

    python benchmarks/erasepro_knobs.py [--out FILE] [--docs docs/erasepro.md] [--plots docs/erasepro] [--only many ...]
    python benchmarks/erasepro_knobs.py --estimate [--only many ...]          # pictures and minutes; measures nothing
    python benchmarks/erasepro_knobs.py --images [--again] ...                # judges pictures too; resumable
    python benchmarks/erasepro_knobs.py --again --docs docs/erasepro.md       # only writes what FILE holds

At every cross-attention key and value, mean over the targets (of one token, as their anchors), ± standard deviation:
gap      ||edited(target's sentence) - original(anchor's)|| / ||original(anchor's)||, in sentences that the fit never saw
drift    ||edited(other) - original(other)|| / ||original(other)||, for prompts of unrelated concepts
near     drift of the concepts nearest to the target · empty: of the empty prompt · kept: of what was retained, bare
update   ||dW|| / ||W_o||, root mean square over the matrices of the text encoder or of the cross-attention
residual the largest of all matrices, before the cast · rank: the largest · seconds: of `fit`, on one core
before   the gap of the unedited model · left: gap / before · distance: 1 - cosine of target and anchor
From pictures of the same edits, with 95 % intervals, beside the unedited model with the same prompts and seeds:
target found         in held-out sentences that ask for the target · unedited: before the edit
anchor in its place  in the same pictures · asked for: by the unedited model, where the sentences ask for the anchor
others right         other concepts that the judge names right · unedited: before the edit
Prints Markdown, writes JSON; with `--only` the other knobs' numbers stay as they were in FILE, which must be of the same
model and targets, as its judged points must be of what is judged now: else name another FILE. Every
picture is a row named by model, judge, sampling, versions, the knobs' values and what the edit changes, every judged
point is in FILE as soon as it is there: a run that is stopped goes on (with --again it leaves the features as FILE has
them), and what two knobs share is drawn once.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emoji_prompts import PAIRS
from emoji_rows import recorder
from knobs_measure import SENTENCES, Results
from knobs_pictures import Gallery, Point
from knobs_plan import Asked, estimate
from knobs_plots import svg
from knobs_settings import KNOBS
from knobs_tables import NOT_YET, blocks, judged, rewrite, with_plots
from knobs_world import UNRELATED, conflicts, spread

from erasekit import models
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation.arms import model_sha256
from erasekit.files import write_whole

RESULTS = Path(__file__).parent / "results"
COUNTS = (10, 50, 100)  # concepts, in the order of the world's table


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The chosen knobs' numbers."""
    start = time.perf_counter()
    results = Results(args.model, args.targets)
    chosen = {name: KNOBS[name] for name in args.only or KNOBS}
    results.run([setting for knob in chosen.values() for setting in knob.settings], args.workers)
    found = {
        "model": args.model, "model_sha256": _sha256(args.model),
        "targets": args.targets, "sentences": SENTENCES, "unrelated": UNRELATED,
        "pairs": _pairs(args.targets),
        "knobs": {name: [results.summary(s) for s in knob.settings] for name, knob in chosen.items()},
    }  # fmt: skip
    if "many" in chosen:
        found["conflicts"] = conflicts(results.world, COUNTS)
    return found | {"seconds": time.perf_counter() - start}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new numbers, and the old ones of knobs that were not measured now."""
    knobs = old.get("knobs", {}) | new["knobs"]
    return {**old, **new, "knobs": {name: knobs[name] for name in KNOBS if name in knobs}}


def _sha256(model: str) -> str:
    return model_sha256(models.resolve(model))


def comparable(old: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """What FILE holds that new numbers may stand beside: of other weights or targets nothing, as all is measured anew.
    `UsageError` for `--only` then, which would take the other knobs' numbers away."""
    if not old or (old.get("model_sha256") == _sha256(args.model) and old["pairs"] == _pairs(args.targets)):
        return old
    if args.only:
        raise UsageError(f"the numbers in {args.out} are of other weights or targets than these: leave --only out, which "
                         "measures all of them anew, or name another --out")  # fmt: skip
    return {}


def _pairs(targets: int) -> list[list[str]]:
    return [list(pair) for pair in spread(targets)]


def remembered(old: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """What FILE holds, for `--again`; `UsageError` where there is nothing, or where pictures of other weights would stand
    beside its numbers."""
    if not old:
        raise UsageError(f"there are no numbers in {args.out}: leave --again out")
    if args.images and old.get("model_sha256") != _sha256(args.model):
        raise UsageError(f"the numbers in {args.out} are not of this model {args.model}: give --images without --again")
    return old


def illustrate(results: dict[str, Any], asked: Asked, args: argparse.Namespace) -> None:
    """Judges the chosen knobs' pictures; FILE has each point as soon as it is there."""
    say_cost(asked, args)

    def keep(key: str, found: Point) -> None:
        asked.points[key] = found
        results["pictures"] = {"made": asked.made, "points": asked.points}
        save(results, args.out)

    gallery = Gallery(asked.plan, recorder(args.model, args.rows))
    gallery.run([s for name in args.only or KNOBS for s in KNOBS[name].settings], keep)


def say_cost(asked: Asked, args: argparse.Namespace) -> None:
    """Prints what `--images` draws and how long that takes."""
    print(estimate(asked.plan, args.only or list(KNOBS), asked.points, args.rate), flush=True)


def save(results: dict[str, Any], path: Path) -> None:
    """FILE, whole."""
    write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


def draw(results: dict[str, Any], folder: Path) -> None:
    """One SVG for each knob that anything was measured of."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, knob in KNOBS.items():
        rows, points = results["knobs"].get(name, []), judged(results, knob)
        if rows or points:
            (folder / f"{name}.svg").write_text(svg(knob, rows, points))


def show(results: dict[str, Any]) -> None:
    """Every table that there is, under its title."""
    titles = {name: knob.title for name, knob in KNOBS.items()} | {
        "conflicts": "Contradictions",
        "pictures": "Pictures",
    }
    for name, block in blocks(results).items():
        if block != NOT_YET:
            print(f"\n{titles.get(name, 'Run')}\n\n{block}")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a folder of the emoji world's model")
    parser.add_argument("--targets", type=int, default=10, choices=range(1, 13), metavar="N", help="1 to 12 targets")
    parser.add_argument(
        "--only", nargs="+", choices=list(KNOBS), metavar="KNOB",
        help=f"{', '.join(KNOBS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="measure nothing: print and write what --out holds")
    parser.add_argument("--images", action="store_true", help="judge pictures as well (--estimate says how many)")
    parser.add_argument("--estimate", action="store_true", help="only say how many pictures --images would draw")
    parser.add_argument("--rate", type=_rate, default=2.7, help="images a second, for the estimate of the time")
    parser.add_argument(
        "--image-targets", type=int, choices=range(1, len(PAIRS) + 1), metavar="N", help="pictures of N of them alone"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "erasepro_knobs.json")
    parser.add_argument("--rows", type=Path, default=RESULTS / "erasepro_knobs", help="folder of the judged pictures")
    parser.add_argument("--docs", type=Path, help="rewrite the tables of this page")
    parser.add_argument("--plots", type=Path, help="draw the curves into this folder")
    return parser.parse_args(words)


def _rate(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is no rate: give more than 0")
    return value


def main(words: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    args = arguments(words)
    old = json.loads(args.out.read_text()) if args.out.exists() else {}
    old = remembered(old, args) if args.again else comparable(old, args)
    planned = args.images or args.estimate  # before any work: what is wrong with it is said now
    asked = Asked.of(old, args.model, args.targets, args.image_targets) if planned else None
    if asked and args.estimate:
        say_cost(asked, args)
        return
    results = old if args.again else merged(old, measure(args))
    save(results, args.out)
    if asked:
        illustrate(results, asked, args)
    show(results)
    if args.plots:
        draw(results, args.plots)
    if args.docs:
        for name in rewrite(args.docs, with_plots(blocks(results), args.docs)):
            print(f"{args.docs} has no place for {name}")


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
