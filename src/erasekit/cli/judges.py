"""`erasekit judges`: what can decide, and how often it errs. Nothing heavy is imported until it runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from erasekit.errors import UsageError

TEXT = "list the judges, or measure a judge's own error rates (`judges calibrate SPEC --out F.json`)"


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command's grammar."""
    parser = commands.add_parser("judges", help=TEXT, description=TEXT[0].upper() + TEXT[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("action", nargs="?", choices=("calibrate",), help="nothing: list them")
    parser.add_argument("spec", nargs="?", metavar="SPEC", help="the judge, as `erasekit judges` lists them")
    parser.add_argument("--images", type=Path, metavar="FOLDER",
                        help="images in one subfolder a label (default: fresh renders of the emoji world)")  # fmt: skip
    parser.add_argument("--per-label", type=int, default=20, metavar="N", help="renders of each label (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the renders (default: 0)")
    parser.add_argument("--out", type=Path, metavar="F.json", help="where the error rates go")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> None:
    """`erasekit judges [calibrate]`."""
    if arguments.action == "calibrate":
        calibrate(arguments)
    else:
        listing(as_json=arguments.json)


def listing(*, as_json: bool) -> None:
    """Print every kind of judge: how to name it, what it gives, where its weights are from."""
    from erasekit.evaluation.judges import SUMMARIES

    if as_json:
        known = {name: {"spec": s.spec, "gives": s.gives, "weights": s.weights} for name, s in SUMMARIES.items()}
        print(json.dumps(known, indent=2))
        return
    for known in SUMMARIES.values():
        print(f"{known.spec}: {known.gives} (weights: {known.weights})")


def calibrate(arguments: argparse.Namespace) -> None:
    """Measure a judge's error rates, write them as JSON, print the totals."""
    if not arguments.spec or arguments.out is None:
        raise UsageError("calibrate needs a judge and a file: erasekit judges calibrate SPEC --out F.json")
    from erasekit.cli import terminal
    from erasekit.evaluation import judges
    from erasekit.evaluation.judges import calibrate as measure
    from erasekit.files import check_writable, write_whole

    check_writable(arguments.out)
    terminal.quiet()
    judge = judges.get(arguments.spec)
    with terminal.progress(quiet=arguments.json) as progress:
        if arguments.images is None:
            report = measure.renders(judge, per_label=arguments.per_label, seed=arguments.seed, progress=progress)
        else:
            report = measure.folder(judge, arguments.images, progress=progress)
    text = json.dumps(report, indent=1) + "\n"
    write_whole(arguments.out, text.encode())
    print(text.rstrip() if arguments.json else totals(report))
    if not arguments.json:
        print(f"wrote {arguments.out}")


def totals(report: dict[str, Any]) -> str:
    """A calibration's rates over all labels, as lines with their intervals."""
    from erasekit.cli.terminal import table

    rates = {key: value for key, value in report.items() if isinstance(value, dict) and "low" in value}
    rows = [["rate (95 % interval)", "value", "low", "high", "n"]]
    rows += [[key.replace("_", " "), *(f"{100 * r[k]:.1f} %" for k in ("value", "low", "high")), str(r["n"])]
             for key, r in rates.items()]  # fmt: skip
    counted = ", ".join(f"{count} {status}" for status, count in report["statuses"].items())
    return f"{report['judge']} on {report['images']} images ({report['images_from']}): {counted}\n{table(rows)}"
