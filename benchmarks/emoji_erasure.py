"""Erases concepts of the emoji world one at a time and judges what happened, for several methods on the same work.

    python benchmarks/emoji_erasure.py [--methods erasepro uce] [--targets 12] [--prompts 20] [--seeds 8] [--others 50]
    python benchmarks/emoji_erasure.py --docs           # writes the numbers into docs/erasepro.md and README.md too

For each target: held-out complex prompts (forms that training never saw, half of them with a second object) with the
same seeds before and after. Printed for each method, with 95 % Wilson intervals: the target found after the edit; the
anchor found after the edit against the unedited model asked for the anchor in the same prompts; style and background
followed; the object named right in other concepts' prompts. n counts pictures: those of the unedited model for other
concepts are the same for every target, and counted once. Then the bars (emoji_bars.py), each met or missed, and which
targets and which sentences, of one object or of two, miss them.

Every image is one line of `rows-NAME.jsonl`, named by the model's files, the judge and the sampling, its run by what the
edit changes: a run that was stopped continues, and pictures of another edit are never taken. `results.json` keeps the
other methods of earlier runs on the same model. A method may carry a preset and parameters:
`erasepro:weighted:captions=emoji`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import emoji_bars
import emoji_erasure_page
from emoji_prompts import PAIRS, Prompt, complex_prompts, other_prompts
from emoji_rows import BASE, Hits, Recorder, Row, counted, edit_digest, plain, recorder, run_of, together, total

import erasekit
from erasekit import methods
from erasekit.edit import Edit
from erasekit.errors import EraseKitError
from erasekit.evaluation.statistics import Share
from erasekit.files import write_whole

PLAN = ("prompts", "seeds", "base_seeds", "others", "other_seeds")
"""The options that a method's numbers depend on, besides its targets."""


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["erasepro", "uce"], metavar="METHOD[:PRESET][:KEY=VALUE]")
    parser.add_argument("--targets", type=int, default=len(PAIRS), choices=range(1, len(PAIRS) + 1), metavar="N")
    parser.add_argument("--prompts", type=_positive, default=20)
    parser.add_argument("--seeds", type=_positive, default=8)
    parser.add_argument("--base-seeds", type=_positive, help="seeds of the unedited target (default: --seeds)")
    parser.add_argument("--others", type=_positive, default=50)
    parser.add_argument("--other-seeds", type=_positive, default=2)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/emoji_erasure"))
    parser.add_argument("--docs", type=Path, nargs="*", metavar="PAGE", help="rewrite the numbers of these pages")
    args = parser.parse_args(words)
    args.base_seeds = args.base_seeds or args.seeds
    args.docs = list(emoji_erasure_page.PAGES) if args.docs == [] else args.docs or []
    return args


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few: give 1 or more")
    return value


def spec(text: str) -> tuple[str, dict[str, str]]:
    """`erasepro:weighted:captions=emoji` as a method's name, with its preset, and its parameters; `UsageError` for one
    that there is not, so that hours of drawing do not end in it."""
    name, *more = text.split(":")
    preset = [one for one in more if "=" not in one]
    method, parameters = ":".join((name, *preset)), dict(one.split("=", 1) for one in more if "=" in one)
    cls, known = methods.resolve(method)
    methods.make_config(cls, {**known.values, **parameters})
    return method, parameters


def one_target(draw: Recorder, method: str, edit: Edit, target: str, args: argparse.Namespace) -> dict[str, Hits]:
    """All measures of one method's edit on its target, picture by picture."""
    anchor, run, seeds = PAIRS[target], run_of(f"{method}|{target}", edit), range(args.seeds)
    asked = complex_prompts(target, anchor, target, args.prompts)
    replaced = complex_prompts(target, anchor, anchor, args.prompts)
    others = other_prompts(target, anchor, args.others)
    reference = draw.record(BASE, replaced, seeds)
    before = draw.record(BASE, asked, range(args.base_seeds))
    kept_before = draw.record(BASE, others, range(args.other_seeds))
    with edit.applied(draw.pipe):
        after = draw.record(run, asked, seeds)
        kept = draw.record(run, others, range(args.other_seeds))
    right = {p.text: p.wanted for p in others}
    return {
        "target before": counted(before, lambda r: target in r.found),
        "target after": counted(after, lambda r: target in r.found),
        "anchor asked for": counted(reference, lambda r: anchor in r.found),
        "anchor after": counted(after, lambda r: anchor in r.found),
        "others before": counted(kept_before, lambda r: r.best == right[r.text]),
        "others after": counted(kept, lambda r: r.best == right[r.text]),
        "style before": followed(before, asked, "style"),
        "style after": followed(after, asked, "style"),
        "background before": followed(before, asked, "background"),
        "background after": followed(after, asked, "background"),
    }


def followed(rows: Sequence[Row], prompts: Sequence[Prompt], what: str) -> Hits:
    """Whether the style or background that the prompt names was drawn."""
    asked = {p.text: getattr(p, what) for p in prompts if getattr(p, what) >= 0}
    return counted((r for r in rows if r.text in asked), lambda r: getattr(r, what) == asked[r.text])


def one_method(draw: Recorder, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """The method's shares over all targets and of each, printed, with the plan and the edits that they are of."""
    name, parameters = spec(method)
    each: dict[str, dict[str, Hits]] = {}
    edits: dict[str, str] = {}
    for target in list(PAIRS)[: args.targets]:
        edit = erasekit.erase(draw.pipe, target, anchor=PAIRS[target], method=name, **parameters)
        each[target], edits[target] = one_target(draw, method, edit, target, args), edit_digest(edit)
    found = {"plan": {key: getattr(args, key) for key in PLAN}, "edits": edits, **numbers(each, args.prompts)}
    show(method, total(list(each.values())))
    print(f"\n{emoji_erasure_page.bars(found['bars'])}\n\n{emoji_erasure_page.parts(found)}", flush=True)
    return found


def numbers(each: Mapping[str, Mapping[str, Hits]], prompts: int) -> dict[str, Any]:
    """Shares over all targets, of each, and of sentences of one and of two objects; the bars over all, and which of them
    each part misses."""
    whole, twins = together(each.values()), emoji_bars.twins(each, prompts)
    kinds = emoji_bars.kinds(whole, each, prompts)
    return {
        "all": plain(total([whole])), "bars": emoji_bars.judged(whole, twins),
        "targets": {target: plain(total([measures])) for target, measures in each.items()},
        "sentences": {kind: plain(total([measures])) for kind, measures in kinds.items()},
        "missed": {part: emoji_bars.missed(measures, twins) for part, measures in (*each.items(), *kinds.items())},
    }  # fmt: skip


def show(title: str, measures: Mapping[str, Share]) -> None:
    """A method's measures, one a line."""
    print(f"\n{title}")
    for name, s in measures.items():
        low, high = s.interval
        rate = f"{100 * s.value:6.2f} %   ({100 * low:5.2f} .. {100 * high:5.2f})" if s.trials else "not measured"
        print(f"  {name:<18} {rate}   n = {s.trials}", flush=True)


def save(method: str, found: Mapping[str, Any], made: Mapping[str, Any], path: Path) -> None:
    """Writes a method's numbers beside those of other methods that the same model, judge and sampling gave."""
    new = {"made": made, "methods": earlier(made, path) | {method: found}}
    write_whole(path, (json.dumps(new, indent=1) + "\n").encode())


def earlier(made: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The methods of a results file that the same model, judge and sampling gave; none where there is no such file."""
    old = json.loads(path.read_text()) if path.exists() else {}
    return old["methods"] if old.get("made") == made else {}


def main(words: Sequence[str] | None = None) -> None:
    """Runs the plan; each method's numbers are in `results.json` as soon as they are there, in the pages at the end."""
    args = options(words)
    for method in args.methods:
        spec(method)
    emoji_erasure_page.check(args.docs)
    draw, path = recorder(args.model, args.out), args.out / "results.json"
    if args.docs:  # what stays in the file is on the pages, too
        stays = {name: one for name, one in earlier(draw.made, path).items() if name not in args.methods}
        emoji_erasure_page.measured({"methods": stays})
    for method in args.methods:
        save(method, one_method(draw, method, args), draw.made, path)
    if args.docs:
        emoji_erasure_page.write(json.loads(path.read_text()), args.docs)


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
