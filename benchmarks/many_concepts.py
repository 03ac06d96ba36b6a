"""1, 10, 50 and 100 concepts of the emoji world erased at once, everything else retained, by every method.

    python benchmarks/many_concepts.py                    # features and cost
    python benchmarks/many_concepts.py --images --docs    # judged pictures too; writes docs/many_concepts.md

Columns: gap, what is left between targets and anchors in held-out sentences, at every cross-attention key and value
(targets with as many tokens as their anchor); drift, how far retained concepts moved there (emoji_features.py); from
pictures, with 95 % intervals: efficacy (target not found), specificity (of the others that the unedited model shows,
still shown), others right (named right at all), H (MACE's two-term harmonic mean of efficacy and others right);
seconds of the fit on the loaded model; KiB of the edit's tensors. "noise of X": random changes of the norm of X's edit.

Pictures: 100 prompts for targets and 100 for others at each count, a seed each, in forms that training used and forms
that it never saw in turn. They are kept in rows.jsonl: a run that was stopped goes on, and what was drawn for a model
and an edit is not drawn again. Without --images the table shows those pictures that are there. results.json keeps the
rows of earlier runs on the same model and sets until they are measured again, so --counts and --methods can be run in parts;
a file of another model, other sets or an older layout is put aside as results-HASH.json.
MACE trains: its states are kept in --states, and a run that was stopped goes on with the LoRA that it was at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import many_images
import many_page
from many_fits import Arm, Probe, arms, record, specs
from many_images import Album
from many_sets import COUNTS, IMAGES, Work, work, works_sha256

import erasekit
from erasekit import models
from erasekit.errors import EraseKitError
from erasekit.evaluation.arms import model_sha256
from erasekit.evaluation.suites import Sampling
from erasekit.files import write_whole

PAGE = Path(__file__).parents[1] / "docs/many_concepts.md"
OUT = Path(__file__).parent / "results/many_concepts"
RESULTS = "results.json"
Keep = Callable[[list[dict[str, Any]]], object]


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD[:PRESET][:KEY=VALUE]", help="default: all, and presets for many"
    )
    parser.add_argument("--random", nargs="*", default=["uce"], metavar="METHOD", help="whose norm; or all")
    parser.add_argument("--images", action="store_true", help="draw and judge pictures")
    parser.add_argument("--rate", type=float, default=2.7, help="images a second, for the estimate of the time")
    parser.add_argument("--docs", action="store_true", help="rewrite the tables of docs/many_concepts.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--states", type=Path, default=Path("build/many_concepts"), help="of methods that train")
    return parser.parse_args(words)


def measure(pipe: Any, task: Work, args: argparse.Namespace, keep: Keep) -> tuple[list[Arm], list[dict[str, Any]]]:
    """One target count: its arms, and their rows as far as features tell; each is kept as soon as it is there."""
    probe, found, rows = Probe(pipe, task), [], []
    for arm in arms(pipe, task, args.methods or specs(task.count), args.random, states=args.states):
        found.append(arm)
        rows.append(record(pipe, task, arm, probe))
        keep(rows)
        gap = arm.refused or f"gap {rows[-1]['gap']:.3f}, drift {rows[-1]['drift']:.3f}, fit {arm.seconds or 0:.1f} s"
        print(f"{task.count:>4} {arm.name:<36} {gap}", flush=True)
    return found, rows


def earlier(path: Path, sha256: str) -> list[dict[str, Any]]:
    """The rows of a results file that were measured on this model and the sets of today; none where there is no such file."""
    found = json.loads(path.read_text()) if path.exists() else {}
    return found["rows"] if found.items() >= _of(sha256).items() else []


def put_aside(path: Path, sha256: str) -> None:
    """Copies a file of another model, other sets or an older layout beside itself, named by its hash: nothing else has its
    rows when it is replaced."""
    if not path.exists() or json.loads(data := path.read_bytes()).items() >= _of(sha256).items():
        return
    copy = path.with_name(f"{path.stem}-{hashlib.sha256(data).hexdigest()[:12]}{path.suffix}")
    write_whole(copy, data)
    print(f"{path} is of another model, other sets or an older layout: kept as {copy.name}", flush=True)


def _of(sha256: str) -> dict[str, str]:
    """What all rows of a results file have in common."""
    return {"model_sha256": sha256, "works_sha256": works_sha256()}


def save(rows: Sequence[Mapping[str, Any]], sha256: str, path: Path) -> list[Mapping[str, Any]]:
    """Writes the rows with the earlier ones of this model and these sets; returns them all. No earlier row is lost."""
    put_aside(path, sha256)
    together = many_page.merged(earlier(path, sha256), rows)
    write_whole(path, (json.dumps({**_of(sha256), "rows": together}, indent=1) + "\n").encode())
    return together


def named(count: int, args: argparse.Namespace) -> int:
    """How many arms a count has if no method refuses."""
    methods = len(args.methods or specs(count))
    return 1 + methods + (methods if "all" in args.random else len(args.random))


def say_cost(images: int, rate: float, *, most: bool) -> None:
    """How long the drawing takes."""
    print(f"{'at most ' if most else ''}{images} images to draw, about {images / rate / 60:.0f} min at {rate:g} images a "
          "second (--rate)", flush=True)  # fmt: skip


def main() -> None:
    args = options()
    args.out.mkdir(parents=True, exist_ok=True)
    works = [work(count) for count in args.counts]
    if args.images:
        say_cost(2 * IMAGES * sum(named(count, args) for count in args.counts), args.rate, most=True)
    folder = models.resolve(args.model)
    sha256, pipe, start = model_sha256(folder), erasekit.load(args.model), time.perf_counter()
    known, args.states = models.defaults(folder), args.states / sha256[:12]  # of another model, another's states
    album = Album(args.out / "rows.jsonl", sha256, Sampling(int(known["steps"]), float(known["guidance"])))
    fitted, rows = {}, []
    for each in works:
        fitted[each.count], found = measure(pipe, each, args, lambda part: save(part, sha256, args.out / RESULTS))
        rows += found
    print(f"features: {time.perf_counter() - start:.0f} s", flush=True)
    if args.images:
        say_cost(many_images.missing(album, works, fitted), args.rate, most=False)
        many_images.draw_all(pipe, album, works, fitted)
    measured = [(task, arm) for task in works for arm in fitted[task.count]]
    for row, (task, arm) in zip(rows, measured, strict=True):
        row |= many_images.rates(album, task, arm)
    finish(rows, sha256, args)


def finish(rows: Sequence[Mapping[str, Any]], sha256: str, args: argparse.Namespace) -> None:
    """Writes results.json, prints the table, and with --docs puts it into the page."""
    rows = save(rows, sha256, args.out / RESULTS)
    blocks = {"table": many_page.table(rows), "claims": many_page.claims(rows), "published": many_page.PUBLISHED}
    print("\n" + blocks["table"] + "\n\n" + blocks["claims"])
    if args.docs:
        many_page.rewrite(args.page, blocks)


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
