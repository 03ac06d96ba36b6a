"""The numbers of closed_form.py as Markdown, and into docs/benchmarks.md.

    python benchmarks/closed_form_page.py [--results FILE] [--docs PAGE]

Reads the JSON that closed_form.py wrote; `closed_form.py --docs` does the same after measuring.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tasks import bars, basis, told

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
RESULTS = Path(__file__).parent / "results" / "closed_form.json"
PARTS = ("read", "encode", "solve", "fingerprint", "write")
RATIOS = ("as_released", "recomputed", "encoded_once", "after_encoding")
HEAD = ("task", "seconds", " / ".join(PARTS), "imports, s", "peak MB", "edit MB", "weights over edit")


def report(found: dict[str, Any]) -> str:
    """The tasks on SD 1.4's shapes, then the bars, what a command takes as typed, and what was run; imports stand beside the
    seconds, in which they are not counted."""
    runs = found["results"].get("sd14", {})
    lines = [*tasks(runs), ""]
    lines += [f"- {told(bar)}" for bar in bars(found["results"])]
    lines += [line for task, run in runs.items() for part in (_typed, _loop, _again) for line in part(task, run)]
    return "\n".join(lines + _speed(runs.get("speed", {})))


def tasks(runs: dict[str, Any]) -> list[str]:
    """The tasks on one shape as a table, with the columns that there are numbers for."""
    ratios = [ratio for ratio in RATIOS if any(ratio in run.get("ratios", {}) for run in runs.values())]
    apart = ["difference"] if ratios else []
    head = (*HEAD, *(f"x `{ratio}`" for ratio in ratios), *apart)
    rows = [_row(task, run, ratios)[: len(head)] for task, run in runs.items() if "ours" in run]
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows)]


def sdxl(found: dict[str, Any]) -> str:
    """The solves at SDXL's shapes."""
    head = ("case", "seconds", "of them the one solve", "edit MB", "x one inverse a matrix", "difference")
    lines = [_line(head), _line(["---"] * len(head))]
    for name, case in found["cases"].items():
        beside = [f"{case['ratio']:g}", f"{case['difference']:.0e}"] if "ratio" in case else ["", ""]
        lines.append(_line([name, f"{case['seconds']:.2f}", f"{case['shared_solve']:.2f}",
                            f"{case['edit_bytes'] / 1e6:.4g}", *beside]))  # fmt: skip
    return "\n".join([*lines, "", f"{found['matrices']} matrices; {found['peak_rss_mb']} MB at the peak, all cases together."])


def swept(points: list[dict[str, Any]]) -> str:
    """The sweep: a row for each line and number of targets, a column for each number of retained prompts; the points that
    took the most memory."""
    retained = sorted({point["retained"] for point in points})
    head = ("method", "targets", *(f"{kept:,} retained" for kept in retained))
    lines = [_line(head), _line(["---"] * len(head))]
    for line, count in sorted({(p["line"], p["targets"]) for p in points}):  # in whatever order they were measured
        own = {p["retained"]: p for p in points if (p["line"], p["targets"]) == (line, count)}
        lines.append(_line([f"`{line}`", f"{count:,}", *(_point(own.get(kept, {})) for kept in retained)]))
    return "\n".join([*lines, *_peaks(points)])


def _peaks(points: list[dict[str, Any]]) -> list[str]:
    """The largest peak of each line, over all its calls, the largest first."""
    most: dict[str, tuple[int, str]] = {}
    for point in points:
        for call, how in ((point, ""), (point.get("cached", {}), ", cached")):
            if "peak_rss_mb" in call:
                where = f"{point['targets']:,} targets, {point['retained']:,} retained{how}"
                most[point["line"]] = max(most.get(point["line"], (0, "")), (call["peak_rss_mb"], where))
    told = [f"`{line}` {peak:,} MB ({where})" for line, (peak, where) in sorted(most.items(), key=lambda one: -one[1][0])]
    return ["", f"The most memory of each: {'; '.join(told)}."] if told else []


def _point(point: dict[str, Any]) -> str:
    """Seconds, with the moment cached in brackets; why there are none."""
    cached = point.get("cached", {})
    plain = f"{point['seconds']:.2f}" if "seconds" in point else ("refused" if "error" in point else "–")
    return plain + (f" ({cached['seconds']:.2f})" if "seconds" in cached else "")


def _typed(task: str, run: dict[str, Any]) -> list[str]:
    """The command as typed, beside the bar for the seconds after the imports, which it does not replace."""
    if "seconds" not in run.get("typed", {}):  # not run as typed, or the command failed
        return []
    took, after = run["typed"], run["ours"]["seconds"]
    return ["", f"`{task}` as typed, `{took['command']}`: {took['seconds']:.2f} s from the start of the process to its end, "
            f"imports included, {took['peak_rss_mb']} MB at the peak. The bar is on the {after:.2f} s after the "
            "imports."]  # fmt: skip


def _loop(task: str, run: dict[str, Any]) -> list[str]:
    """What `as_released` of a task is made of, where it has one."""
    if "as_released" not in run.get("ratios", {}):
        return []
    taken, ours = run["textbook"], run["ours"]["seconds"]
    seconds, (different, prompts), count = run["textbook_seconds"]["as_released"], taken["prompts"], taken["encodings"]
    if basis("as_released", taken) == "run":
        return ["", f"`as_released` of `{task}` was run: for each of {count} matrices {prompts} prompts were encoded one at a "
                f"time and one inverse was taken, {seconds:.0f} s by the clock, in the process that took {ours:.2f} s for "
                "erasekit's edit."]  # fmt: skip
    rounds = f" and for each of {taken['rounds']} rounds" if taken.get("rounds") else ""
    return ["", f"`as_released` of `{task}` was not run: its {seconds:.0f} s are computed from the {taken['encode']:.3g} s of "
            f"encoding {different} different prompts once, as if for each of {count} matrices{rounds} {prompts} were "
            f"encoded, and {taken['solve']:.3g} s for the rest."]  # fmt: skip


def _again(task: str, run: dict[str, Any]) -> list[str]:
    """What `recomputed` of a task is made of, where it has one."""
    if "recomputed" not in run.get("ratios", {}):
        return []
    taken, seconds = run["textbook"], run["textbook_seconds"]["recomputed"]
    targets, (solved, matrices) = taken["prompts"][1] // 2, taken["matrices"]
    edit = f"In float32, as the edit was timed, it is {run['relative_difference']['float32']:.0e} from the loop in float64."
    each = f"encoding {targets} target prompts again at each of {taken['levels']} levels, and their anchors once"
    if basis("recomputed", taken) == "run":
        return ["", f"`recomputed` of `{task}` was run: {seconds:.1f} s, {taken['restarts']:.3g} s of them for {each}; "
                f"{taken['solve']:.3g} s for {matrices} pseudo-inverses. {edit}"]  # fmt: skip
    return ["", f"`recomputed` of `{task}` was not run: of its {seconds:.0f} s {taken['restarts']:.3g} s are computed for "
            f"{each}, from the {taken['encode']:.3g} s of encoding all once, and {taken['solve']:.3g} s for {matrices} "
            f"pseudo-inverses from {solved} of them. {edit}"]  # fmt: skip


def _speed(run: dict[str, Any]) -> list[str]:
    """What SPEED's ratio is made of: a single number would be taken for that of the solves."""
    if "textbook" not in run:
        return []
    encode, once = run["textbook"]["encode"], run["textbook_seconds"]["encoded_once"]
    after = run["ratios"]["after_encoding"]
    return ["", f"SPEED's ratio is mostly the encoding: {encode:.0f} of the textbook form's {once:.0f} s go to encoding "
            f"one prompt at a time, and after encoding the ratio is {after:g}."]  # fmt: skip


def _row(task: str, run: dict[str, Any], columns: list[str]) -> list[str]:
    ours, ratios = run["ours"], run.get("ratios", {})
    apart = run.get("relative_difference", {}).get("weight")
    return [
        f"`{task}`", f"{ours['seconds']:.2f}", " / ".join(f"{ours['parts'][part]:.2f}" for part in PARTS),
        f"{ours['import_seconds']:.2f}", str(ours["peak_rss_mb"]), f"{ours['edit_bytes'] / 1e6:.3g}",
        f"{ours['weights_over_edit']:g}",
        *(f"{ratios[ratio]:g} ({basis(ratio, run['textbook'])})" if ratio in ratios else "" for ratio in columns),
        "" if apart is None else f"{apart:.0e}",
    ]  # fmt: skip


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def write(found: dict[str, Any], page: Path) -> None:
    """Puts the reports into the page: what was not measured leaves what stands there."""
    from many_page import rewrite

    results, points = found["results"], [one for one in found["sweep"] if one.get("shape", "sd14") == "sd14"]
    rewrite(page, {"closed_form": report(found)})
    if "sd21" in results:
        rewrite(page, {"closed_form_sd21": "\n".join(tasks(results["sd21"]))})
    if "cases" in results.get("sdxl", {}):
        rewrite(page, {"closed_form_sdxl": sdxl(results["sdxl"])})
    if points:
        rewrite(page, {"closed_form_sweep": swept(points)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=PAGE)
    options = parser.parse_args()
    write(json.loads(options.results.read_text()), options.docs)


if __name__ == "__main__":
    main()
