"""How long one edit's evaluation takes as a person types it: cold, with the baseline cached, and again.

    python benchmarks/evaluate_time.py --docs        # runs, writes the table of docs/evaluate.md
    python benchmarks/evaluate_time.py --suite emoji/style --target "ink style"

Each row is one `erasekit evaluate` in a process of its own, from its start to its end, with everything that it does by
default (the noise control, the judges, the page). `cold`: an empty folder. `baseline cached`: another edit of the same target
beside the first one's folder, so that the unedited model's images are there. `again`: the same command, all images there;
the results must be the same bytes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from many_page import rewrite

from erasekit import __version__

PAGE = Path(__file__).parents[1] / "docs/evaluate.md"
HEAD = ("| run | images drawn | seconds |", "|---|---|---|")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="emoji/object")
    parser.add_argument("--target", default="cat")
    parser.add_argument("--anchor", default="dog")
    parser.add_argument("--methods", nargs=2, default=["erasepro", "uce"], help="the cold run's, and the other's")
    parser.add_argument("--docs", action="store_true", help="write the table of docs/evaluate.md")
    return parser.parse_args()


def typed(*words: str | Path) -> float:
    """Seconds of one erasekit command."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "erasekit", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def images(runs: Path) -> int:
    """The images under all runs, each once: the baseline's are linked into every run."""
    return len({path.stat().st_ino for path in runs.rglob("*.png")})


def measure(args: argparse.Namespace, place: Path) -> list[tuple[str, int, float]]:
    """One row for each run: its name, the images that it drew, its seconds."""
    files = [place / f"{method}.safetensors" for method in args.methods]
    for method, file in zip(args.methods, files, strict=True):
        typed("erase", args.target, "--anchor", args.anchor, "--method", method, "--out", file)
    runs, rows, before = place / "runs", [], 0
    plan = [("cold", files[0], "first"), ("baseline cached", files[1], "second"), ("again", files[1], "second")]
    kept = b""
    for name, file, folder in plan:
        out = runs / folder
        seconds = typed("evaluate", "--suite", args.suite, "--edit", file, "--out", out)
        now = images(runs)
        rows.append((name, now - before, seconds))
        before, found = now, (out / "results.json").read_bytes()
        if name == "again" and found != kept:
            raise SystemExit("the repeated run gave other results")
        kept = found
    return rows


def table(rows: list[tuple[str, int, float]], args: argparse.Namespace) -> str:
    lines = [f"| {name} | {count} | {seconds:.0f} |" for name, count, seconds in rows]
    said = (f"`{args.suite}`, {args.target} to {args.anchor}, {args.methods[0]} and then {args.methods[1]}, erasekit "
            f"{__version__}, {os.cpu_count()} cores: `python benchmarks/evaluate_time.py --docs`.")  # fmt: skip
    return "\n".join([*HEAD, *lines, "", said])


def main() -> None:
    args = options()
    with tempfile.TemporaryDirectory() as folder:
        text = table(measure(args, Path(folder)), args)
    print(text)
    if args.docs:
        rewrite(PAGE, {"time": text})


if __name__ == "__main__":
    main()
