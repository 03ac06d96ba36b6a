"""The bars of `training_speed`, each met or missed, and its numbers as Markdown.

python benchmarks/training_report.py [--results FILE] [--page PAGE]     # docs/training.md again from the JSON
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FASTER, MEMORY = 1.5, 1.4
EXPECTED = ("esd", "ac", "concept-inversion")
PAGE = Path(__file__).parents[1] / "docs/training.md"
RESULTS = Path(__file__).parent / "results" / "training_speed_emoji.json"


def own_peaks(found: dict[str, Any]) -> dict[str, float]:
    """The peaks that are compared: without the imports, which are most of a small model's process, where that is known."""
    key = "own_mb" if all("own_mb" in peak for peak in found["memory"].values()) else "peak_mb"
    return {what: peak[key] for what, peak in found["memory"].items()}


def bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was promised, and whether it holds here."""
    peaks = own_peaks(found)
    rows = [(f"{method}: times faster than the plain loop", run["ratio"], FASTER, run["ratio"] >= FASTER)
            for method, run in found["speed"].items()]  # fmt: skip
    for what in ("training", "training, recompute") if peaks else ():
        ratio = peaks[what] / peaks["inference"]
        rows.append((f"esd: peak memory over inference, {what}", ratio, MEMORY, ratio <= MEMORY))
    return [dict(zip(("what", "value", "bound", "met"), row, strict=True)) for row in rows]


def report(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    s = found["settings"]
    machine = found["environment"]
    where = "" if s["device"] == "cpu" else f", {s['device']}"
    lines = [f"{s['model']}, batch {s['batch']}, {s['sampling_steps']} sampling steps, {machine['cpus']} cores{where}.",
             "", "| method | seconds a step | plain loop | times faster | losses apart by |", "|" + "---|" * 5]  # fmt: skip
    lines += [f"| {name} | {run['seconds']:.3g} | {run['plain_seconds']:.3g} | {run['ratio']:.2f} | "
              f"{run['difference']:.1g} |" for name, run in found["speed"].items()]  # fmt: skip
    peaks = own_peaks(found)
    if peaks:
        lines += ["", "| ESD-x, batch as above | peak MB | after the imports, MB | over inference |", "|" + "---|" * 4]
    for what, peak in found["memory"].items():
        own = f"{peak['own_mb']:.0f}" if "own_mb" in peak else "–"
        lines.append(f"| {what} | {peak['peak_mb']:.0f} | {own} | {peaks[what] / peaks['inference']:.2f} |")
    if missing := [name for name in EXPECTED if name not in found["speed"]]:
        commands = " ".join(missing)
        lines += ["", f"Not measured yet: `python benchmarks/training_speed.py --methods {commands} --docs`."]
    lines += ["", *(f"- {bar['what']}: {bar['value']:.2f}, bar {bar['bound']:g}: {'met' if bar['met'] else 'missed'}"
                    for bar in found["bars"])]  # fmt: skip
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(words)
    from many_page import rewrite

    found = json.loads(options.results.read_text())
    rewrite(options.page, {"speed": report(found | {"bars": bars(found)})})


if __name__ == "__main__":
    main()
