"""Seconds that `import erasekit` and `erasekit --help` take in a fresh interpreter, beside the interpreter alone.

    python benchmarks/startup.py [--runs 7] [--out FILE]

Every figure is the least and the median of several runs, interpreter start included. Prints and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import erasekit": ["-c", "import erasekit"],
    "erasekit --help": ["-m", "erasekit", "--help"],
}


def seconds(arguments: list[str], runs: int) -> dict[str, float]:
    """The least and the median of `runs` runs, after one that warms the file cache."""
    taken = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - started)
    return {"min": round(min(taken[1:]), 3), "median": round(statistics.median(taken[1:]), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="one run each, for the tests")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup.json")
    options = parser.parse_args()
    results = {name: seconds(command, 1 if options.small else options.runs) for name, command in COMMANDS.items()}
    for name, taken in results.items():
        print(f"{name}: min {taken['min']} s, median {taken['median']} s")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"python": platform.python_version(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
