"""Seconds, memory and bytes of the closed-form edits on the shapes of SD 1.4, SD 2.1 and SDXL, with random weights.

    python benchmarks/closed_form.py [--shapes sd14 sd21 sdxl] [--only TASK ...] [--sweep [LINE ...]] [--full]
                                     [--cache FOLDER] [--small] [--repeat N] [--limit SECONDS] [--out FILE] [--docs [PAGE]]

A model folder (text encoder, the U-Net's cross-attention, tokenizer, scheduler) is written once for each shape to
--cache, by default a temporary folder that is removed. Every measurement runs in a fresh process (`measuring` says
what is measured). Files are read warm, imports are timed apart. `cpu_seconds` are summed over the threads: on a
machine that is busy with other work they say more than the clock. On SD 1.4's shapes the tasks of UCE, RECE and SPEED
run beside the textbook form of the method (`textbook`, `comparing`). SDXL has no backbone yet: only the solves are run
at its shapes, on random features (`solver_only`). --sweep adds 1 to 1,000 targets x 0 to 30,000 retained prompts on
the first of the shapes; a point that takes over --limit seconds is skipped, and so are those that ask for more.
Prints the tasks and the bars, each met or missed, and writes JSON (benchmarks/plot_closed_form.py draws it;
benchmarks/closed_form_page.py, or --docs, writes the table of docs/benchmarks.md).
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
from shapes import build, folder_of
from tasks import TASKS, bars

RESULTS = Path(__file__).parent / "results"


# -- what runs in a child ---------------------------------------------------------------------------------------


def run_child(asked: dict[str, Any]) -> dict[str, Any]:
    """What `asked["kind"]` says, in this process."""
    if asked["kind"] == "build":
        build(Path(asked["folder"]), asked["name"])
        measuring.warm(Path(asked["folder"]))
        return {}
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


def run_tasks(name: str, folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The tasks on one shape; the textbook forms run on SD 1.4's only. Of several runs the fastest counts."""
    found: dict[str, dict[str, Any]] = {}
    for task in options.only:
        wanted = TASKS[task]
        if not known(wanted.method):
            found[task] = {"error": f"this version has no method {wanted.method}"}
        else:
            against = wanted.against if name == "sd14" else None
            work = wanted.work(options.small)
            runs = [work_child(folder, work, against=against, full=options.full)]
            runs += [work_child(folder, work) for _ in range(options.repeat - 1)]
            found[task] = fastest(runs)
        show(f"{name} {task}", found[task])
    return found


def fastest(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The first run, with its comparison, and the numbers of the run that took the least."""
    done = [run["ours"] for run in runs if "ours" in run]
    if len(done) < 2 or "ours" not in runs[0]:
        return runs[0]
    best = min(done, key=lambda ours: ours["seconds"])
    if "textbook" not in runs[0]:
        return {"ours": best}
    from comparing import together

    return together(best, runs[0]["textbook"], runs[0]["relative_difference"])


def show(name: str, run: dict[str, Any]) -> None:
    if "ours" not in run:
        print(f"{name}: {sweep.reason(run)}", flush=True)
        return
    ours = run["ours"]
    print(f"{name}: {ours['seconds']} s {ours['parts']}, imports {ours['import_seconds']} s, peak {ours['peak_rss_mb']} MB, "
          f"edit {ours['edit_bytes']} bytes = 1/{ours['weights_over_edit']} of the edited weights", flush=True)  # fmt: skip
    for key in ("textbook", "textbook_seconds", "ratios", "relative_difference"):
        if key in run:
            print(f"  {key} {run[key]}", flush=True)


def whole(options: argparse.Namespace) -> None:
    results, points = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        for shape in options.shapes:
            if shape == "sdxl":
                results["sdxl"] = measuring.child(Path(__file__), {"kind": "sdxl", "small": options.small})
                print(json.dumps(results["sdxl"], indent=1))
                continue
            folder = folder_of(options.cache or Path(temporary), shape, options.small)
            name = f"{shape}{'-small' * options.small}"
            built = measuring.child(Path(__file__), {"kind": "build", "folder": str(folder), "name": name})
            if built:
                raise SystemExit(f"{folder} could not be built: {built['failed']}")
            results[shape] = run_tasks(shape, folder, options)
            if options.sweep is not None and not points:
                points = run_sweep(folder, options)
    found = bars(results)
    for bar in found:
        print(f"{bar['what']:<40}{bar['value']:>12.4g}{bar['bound']:>10.4g}  {'met' if bar['met'] else 'missed'}")
    everything = {"results": results, "bars": found, "sweep": points}
    write(options, everything)
    if options.docs:
        closed_form_page.write(everything, options.docs)
    if '"failed": ' in json.dumps([results, points]):
        raise SystemExit("a process failed: its error is above")


def run_sweep(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    lines = [line for line in options.sweep or sweep.LINES if known(sweep.LINES[line][0])]
    run = partial(work_child, folder, limit=options.limit)
    return sweep.sweep(lines, lambda work: (found := run(work)).get("ours", found), options.small)


def write(options: argparse.Namespace, found: dict[str, Any]) -> None:
    out = options.out or RESULTS / f"closed_form{'_small' * options.small}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"environment": measuring.environment(), **found}, indent=1) + "\n")
    print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="keep the model folders here")
    parser.add_argument("--small", action="store_true", help="tiny shapes, for the tests")
    parser.add_argument("--shapes", nargs="+", choices=("sd14", "sd21", "sdxl"), default=["sd14", "sd21", "sdxl"])
    parser.add_argument("--only", nargs="*", choices=tuple(TASKS), default=list(TASKS), help="the tasks")
    parser.add_argument("--sweep", nargs="*", choices=tuple(sweep.LINES), help="these lines, or all")
    parser.add_argument("--full", action="store_true", help="the textbook solves every matrix")
    parser.add_argument("--repeat", type=int, default=1, help="run every task so often, the fastest counts")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for a point of the sweep")
    parser.add_argument("--out", type=Path, help="the JSON file (default: results/closed_form[_small].json)")
    parser.add_argument("--docs", type=Path, nargs="?", const=closed_form_page.PAGE, help="rewrite docs/benchmarks.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_child(json.loads(options.child))))
    else:
        whole(options)


if __name__ == "__main__":
    main()
