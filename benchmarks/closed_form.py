"""Seconds, memory and bytes of the closed-form edits on the shapes of SD 1.4, SD 2.1 and SDXL, with random weights.

    python benchmarks/closed_form.py [--shapes sd14 sd21 sdxl] [--only TASK ...] [--sweep [LINE ...]] [--full]
                                     [--cache FOLDER] [--small] [--repeat N] [--limit SECONDS] [--fill SECONDS]
                                     [--out FILE] [--docs [PAGE]]

A model folder (text encoder, the U-Net's cross-attention, tokenizer, scheduler) is written once for each shape to
--cache, by default a temporary folder that is removed. Every measurement runs in a fresh process (`measuring` says
what is measured). Files are read warm, imports are timed apart. `cpu_seconds` are summed over the threads: on a
machine that is busy with other work they say more than the clock. `erasepro` is run as a command too (`typed`). On SD 1.4's
shapes all tasks but `erasepro_large` and `crowd` run beside the textbook form of the method (`textbook`, `textbook_*`,
`comparing`), of which a part stands for the whole where the whole takes minutes. --full runs all of it, for UCE also the
released code's loop, which encodes every prompt again for every matrix: some 7 minutes with 100 retained prompts
(--only uce), over an hour with 1,000 (--only large); only of `mace`, with 6,000 sentences, the sums stay a part. SDXL has no
backbone yet: only the solves are run at its shapes, on random features (`solver_only`). --sweep adds 1 to 1,000 targets x 0
to 30,000 retained prompts on the first of the shapes; a point that takes over --limit seconds is skipped, and so are those
that ask for more. Where the cache of what is retained takes over --fill seconds to fill, points are not timed with it; those
are not tried again as long as the file says so. With --cache it is kept there too: a filling that was stopped goes on.
Prints the tasks and the bars, each met or missed (--small: none), and writes JSON after each number. Tasks that a call
leaves out stay as the file has them, and a sweep measures only the points that it lacks: delete it to begin anew.
benchmarks/plot_closed_form.py draws it; benchmarks/closed_form_page.py, or --docs, writes the table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import closed_form_page
import measuring
import sweep
from closed_form_kept import Kept
from shapes import build, folder_of
from tasks import TASKS, told

RESULTS = Path(__file__).parent / "results"


# -- what runs in a child ---------------------------------------------------------------------------------------


def run_child(asked: dict[str, Any]) -> dict[str, Any]:
    """What `asked["kind"]` says, in this process."""
    if asked["kind"] == "build":
        build(Path(asked["folder"]), asked["name"])
        measuring.warm(Path(asked["folder"]))
        return {}
    if asked["kind"] == "typed":
        import typed

        return typed.run(measuring.Work(**asked["work"]), Path(asked["folder"]))
    if asked["kind"] == "sdxl":
        import solver_only

        return solver_only.run(asked["small"])
    from erasekit.errors import EraseKitError

    try:
        return run_work(asked)
    except EraseKitError as error:
        return {"error": str(error)}


def run_work(asked: dict[str, Any]) -> dict[str, Any]:
    """One edit, alone or beside the textbook form."""
    work, folder = measuring.Work(**asked["work"]), Path(asked["folder"])
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "edit.safetensors"
        if asked.get("against"):
            from comparing import COMPARE

            return COMPARE[asked["against"]](work, folder, out, asked["full"])
        return {"ours": measuring.measured(work, folder, out)[0]}


def work_child(folder: Path, work: measuring.Work, limit: float | None = None, **options: Any) -> dict[str, Any]:
    asked = {"kind": "work", "folder": str(folder), "work": asdict(work), **options}
    return measuring.child(Path(__file__), asked, limit)


# -- the whole --------------------------------------------------------------------------------------------------


def known(method: str) -> bool:
    from erasekit.methods import METHODS

    return method.partition(":")[0] in METHODS


def run_tasks(name: str, folder: Path, options: argparse.Namespace, kept: Kept) -> list[dict[str, Any]]:
    """The tasks on one shape; the textbook forms run on SD 1.4's only. Of several runs the fastest of each side counts."""
    found: list[dict[str, Any]] = []
    for task in options.only:
        wanted = TASKS[task]
        if not known(wanted.method):
            found.append({"error": f"this version has no method {wanted.method}"})
        else:
            against = wanted.against if name == "sd14" else None
            work = wanted.work(options.small)
            runs = [work_child(folder, work, against=against, full=options.full) for _ in range(options.repeat)]
            found.append(fastest(runs))
            if wanted.typed and "ours" in found[-1]:
                found[-1]["typed"] = as_typed(folder, work, options.repeat)
        kept.task(name, task, found[-1])
        show(f"{name} {task}", found[-1])
    return found


def as_typed(folder: Path, work: measuring.Work, repeat: int) -> dict[str, Any]:
    """The command of the same edit: the fastest of several runs; the first run that failed, if one did."""
    asked = {"kind": "typed", "folder": str(folder), "work": asdict(work)}
    runs = [measuring.child(Path(__file__), asked) for _ in range(repeat)]
    failed = next((run for run in runs if "seconds" not in run), None)
    return failed or min(runs, key=lambda run: run["seconds"])


def fastest(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the run in which erasekit took the least beside those of the run in which the textbook did; the first
    run that failed, if one did."""
    failed = next((run for run in runs if "ours" not in run), None)
    if failed or len(runs) == 1:
        return failed or runs[0]
    best = min((run["ours"] for run in runs), key=lambda ours: ours["seconds"])
    if "textbook" not in runs[0]:
        return {"ours": best}
    from beside import together

    plain = min(runs, key=lambda run: run["textbook_seconds"]["encoded_once"])
    return together(best, plain["textbook"], plain["relative_difference"])


def show(name: str, run: dict[str, Any]) -> None:
    if "ours" not in run:
        print(f"{name}: {sweep.reason(run)}", flush=True)
        return
    ours = run["ours"]
    print(f"{name}: {ours['seconds']} s {ours['parts']}, imports {ours['import_seconds']} s, peak {ours['peak_rss_mb']} MB, "
          f"edit {ours['edit_bytes']} bytes = 1/{ours['weights_over_edit']} of the edited weights", flush=True)  # fmt: skip
    for key in ("typed", "textbook", "textbook_seconds", "ratios", "relative_difference"):
        if key in run:
            print(f"  {key} {run[key]}", flush=True)


def whole(options: argparse.Namespace) -> None:
    out = options.out or RESULTS / f"closed_form{'_small' * options.small}.json"
    kept = Kept(out, measuring.environment(), small=options.small)
    new, swept = [], False
    with tempfile.TemporaryDirectory() as temporary:
        for shape in options.shapes:
            if shape == "sdxl":
                new.append(measuring.child(Path(__file__), {"kind": "sdxl", "small": options.small}))
                kept.results["sdxl"] = new[-1]
                print(json.dumps(new[-1], indent=1))
                continue
            folder = folder_of(options.cache or Path(temporary), shape, options.small)
            name = f"{shape}{'-small' * options.small}"
            built = measuring.child(Path(__file__), {"kind": "build", "folder": str(folder), "name": name})
            if built:
                raise SystemExit(f"{folder} could not be built: {built['failed']}")
            new += run_tasks(shape, folder, options, kept)
            if options.sweep is not None and not swept:
                new, swept = new + run_sweep(shape, folder, options, kept), True
    kept.write()
    print("\n".join([*map(told, kept.whole()["bars"]), str(out)]))
    if options.docs:
        closed_form_page.write(kept.whole(), options.docs)
    if '"failed": ' in json.dumps(new):
        raise SystemExit("a process failed: its error is above")


def run_sweep(shape: str, folder: Path, options: argparse.Namespace, kept: Kept) -> list[dict[str, Any]]:
    lines = [line for line in options.sweep or sweep.LINES if known(sweep.LINES[line].method)]
    run = partial(work_child, folder, limit=options.limit)
    retained = options.cache and options.cache / f"{folder.name}-retained"
    return sweep.sweep(lines, lambda work: (found := run(work)).get("ours", found), options.small, folder=retained,
                       fill=partial(work_child, folder, limit=options.fill),
                       known=kept.measured(shape, options.limit), keep=lambda p: kept.point({"shape": shape} | p))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="keep the model folders here")
    parser.add_argument("--small", action="store_true", help="tiny shapes, for the tests")
    parser.add_argument("--shapes", nargs="+", choices=("sd14", "sd21", "sdxl"), default=["sd14", "sd21", "sdxl"])
    parser.add_argument("--only", nargs="*", choices=tuple(TASKS), default=list(TASKS), help="the tasks")
    parser.add_argument("--sweep", nargs="*", choices=tuple(sweep.LINES), help="these lines, or all")
    parser.add_argument("--full", action="store_true", help="the textbook runs whole, UCE's loop as released too")
    parser.add_argument("--repeat", type=int, default=1, help="run every task so often, both sides; the fastest counts")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for a point of the sweep")
    parser.add_argument("--fill", type=float, default=300.0, help="seconds for filling the cache of a list")
    parser.add_argument("--out", type=Path, help="the JSON file (default: results/closed_form[_small].json)")
    parser.add_argument("--docs", type=Path, nargs="?", const=closed_form_page.PAGE, help="rewrite docs/benchmarks.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_child(measuring.given(options.child))))
        return
    if options.small and options.docs:
        parser.error("--docs is for the real shapes: leave out --small")
    from erasekit.errors import EraseKitError

    try:
        whole(options)
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
