"""What a newcomer waits for, each against its bar: starting, drawing eight pictures, and how large the demo's edit is.

    python benchmarks/startup.py [--runs 7] [--out FILE] [--docs [PAGE]]

`import erasekit` and `erasekit --help` run in fresh interpreters, beside the interpreter alone: the least and the median of
several runs, interpreter start included. One more process loads the embedded model, draws 8 images of 20 steps in one batch
(loading apart) and saves the edit of `cat` to `dog`. Prints, writes JSON; --docs writes the table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import erasekit": ["-c", "import erasekit"],
    "erasekit --help": ["-m", "erasekit", "--help"],
}
IMAGES, STEPS = 8, 20
DRAWING = f"{IMAGES} images of {STEPS} steps"
SHARE = "one-concept edit file over the edited weights"
BARS = {"import erasekit": 0.3, "erasekit --help": 0.5, DRAWING: 10.0, SHARE: 1 / 100}


def seconds(arguments: list[str], runs: int) -> dict[str, float]:
    """The least and the median of `runs` runs, after one that warms the file cache."""
    taken = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - started)
    return {"min": round(min(taken[1:]), 3), "median": round(statistics.median(taken[1:]), 3)}


def run_child(asked: dict[str, Any]) -> dict[str, Any]:
    """The embedded model in this process: seconds of loading and of drawing, bytes of the edit and of what it changes."""
    import erasekit
    from erasekit import models
    from erasekit.evaluation.sampler import sample, shots

    started = time.perf_counter()
    pipe = erasekit.load("emoji")
    loaded = time.perf_counter()
    guidance = models.defaults(models.resolve("emoji"))["guidance"]
    work = shots(["a photo of a cat"], range(asked["images"]))
    drawn = list(sample(pipe, work, steps=asked["steps"], guidance=guidance, batch=asked["images"]))
    done = time.perf_counter()
    edit = erasekit.erase(pipe, "cat", anchor="dog")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        edit.save(path)
        size = path.stat().st_size
    return {"images": len(drawn), "steps": asked["steps"], "load_seconds": round(loaded - started, 2),
            "seconds": round(done - loaded, 2), "edit_bytes": size, "tensor_bytes": edit.nbytes,
            "weight_bytes": sum(map(measuring.weight_bytes, edit.ops)),
            "environment": measuring.environment()}  # fmt: skip


def bars(results: dict[str, dict[str, float]], world: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached, and whether it was. Starting is judged by the median."""
    values = {name: results[name]["median"] for name in BARS if name in results}
    values |= {DRAWING: world["seconds"], SHARE: world["edit_bytes"] / world["weight_bytes"]}
    return [{"what": what, "value": values[what], "bound": bound, "met": values[what] <= bound}
            for what, bound in BARS.items()]  # fmt: skip


def report(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    world, machine = found["emoji"], found["environment"]
    alone = found["results"]["python -c pass"]
    lines = [f"{machine['cpus']} cores, {machine['threads']} threads; the interpreter alone takes {alone['median']} s.", "",
             "| | measured | bar | |", "|---|---|---|---|"]  # fmt: skip
    for bar in found["bars"]:
        value, bound = f"{bar['value']:.3g} s", f"{bar['bound']:g} s"
        if bar["what"] == SHARE:
            value, bound = f"1/{1 / bar['value']:.0f}", f"1/{1 / bar['bound']:.0f}"
        lines.append(f"| {bar['what']} | {value} | {bound} | {'met' if bar['met'] else 'missed'} |")
    tensors, header = world["tensor_bytes"], world["edit_bytes"] - world["tensor_bytes"]
    lines += ["", f"Loading the model before drawing took {world['load_seconds']} s. The edit file has {world['edit_bytes']:,} "
              f"bytes, {tensors:,} of them its tensors (1/{world['weight_bytes'] / tensors:.0f} of the edited weights in "
              f"float32) and {header:,} what it says of itself."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument(
        "--small", action="store_true", help="one run each, one image of one step, no bars: for the tests"
    )
    parser.add_argument("--out", type=Path, help="the JSON file (default: results/startup[_small].json)")
    parser.add_argument("--docs", type=Path, nargs="?", const=PAGE, help="rewrite the table of docs/benchmarks.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_child(measuring.given(options.child))))
        return
    small = options.small
    if small and options.docs:
        parser.error("--docs is for the real sizes: leave out --small")
    results = {name: seconds(command, 1 if small else options.runs) for name, command in COMMANDS.items()}
    world = measuring.child(Path(__file__), {"images": 1 if small else IMAGES, "steps": 1 if small else STEPS})
    if "failed" in world:
        raise SystemExit(f"the embedded model could not be measured: {world['failed']}")
    found = {"environment": world.pop("environment"), "results": results, "emoji": world,
             "bars": [] if small else bars(results, world)}  # fmt: skip
    print(report(found))
    out = options.out or Path(__file__).parent / "results" / f"startup{'_small' * small}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    if options.docs:
        from many_page import rewrite

        rewrite(options.docs, {"startup": report(found)})


if __name__ == "__main__":
    main()
