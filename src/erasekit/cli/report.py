"""`erasekit report`: a run's page again from its stored numbers. `erasekit compare`: two runs side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasekit.evaluation.compare import Comparison
    from erasekit.evaluation.page_view import Tried


def add(commands: Any) -> None:
    """Add both commands to the parser's subcommands."""
    text = "write report.html again from a folder's results.json and its images"
    report = commands.add_parser("report", help=text, description=text[0].upper() + text[1:] + ".")
    report.add_argument("folder", type=Path, metavar="FOLDER", help="what `erasekit evaluate --out` wrote")
    report.add_argument("--attacks", nargs="+", action="extend", type=Path, default=[], metavar="FOLDER",
                        help="what `erasekit attack --out` wrote on the same edits and model: shown on the page")  # fmt: skip
    text = "set two results of the same suite side by side; clear differences are marked"
    compare = commands.add_parser("compare", help=text, description=text[0].upper() + text[1:] + ".")
    compare.add_argument("first", type=Path, metavar="A", help="a folder of `erasekit evaluate`, or its results.json")
    compare.add_argument("second", type=Path, metavar="B", help="another; differences are B minus A")
    compare.add_argument("--json", action="store_true", help="as JSON")
    compare.add_argument("--out", type=Path, metavar="F.html", help="write a page too")
    for parser in (report, compare):
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(arguments: argparse.Namespace) -> None:
    """Run the one of the two commands that was parsed."""
    {"report": report, "compare": compare}[arguments.command](arguments)


def report(arguments: argparse.Namespace) -> None:
    """`erasekit report`: nothing is drawn or judged, and no file but the page is written."""
    from erasekit.evaluation import results, rows
    from erasekit.evaluation.page import write_report

    folder = arguments.folder.parent if arguments.folder.is_file() else arguments.folder
    found = results.load(arguments.folder)
    ladders = attacked(arguments.attacks, found)
    seen = rows.read(folder / found["rows"])
    rows.check_counts(seen, found["counts"], source=folder / found["rows"])
    page = write_report(found, seen, folder, timing=timing(folder / "timing.json"), attacks=ladders)
    print(f"wrote {page}")


def attacked(folders: Sequence[Path], found: Mapping[str, Any]) -> list[Tried]:
    """The folders' attacks, each on a model and an edit of the results."""
    if not folders:
        return []
    from erasekit.attacks import folder

    return [folder.tried(folder.read(path), found["model"], found["arms"]) for path in folders]


def timing(path: Path) -> dict[str, Any] | None:
    """The run's times, where they are at hand: a page without them is still a page."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def compare(arguments: argparse.Namespace) -> None:
    """`erasekit compare`: a table, JSON, and on request a page."""
    from erasekit.evaluation import compare as comparing
    from erasekit.evaluation import page_compare, results

    first, second = results.load(arguments.first), results.load(arguments.second)
    found = comparing.compare(first, second, names=names(arguments.first, arguments.second))
    if arguments.out is not None:
        page_compare.write_comparison(found, first, second, arguments.out)
    print(json.dumps(found.as_json(), indent=2) if arguments.json else listing(found))
    if arguments.out is not None and not arguments.json:
        print(f"wrote {arguments.out}")


def names(first: Path, second: Path) -> tuple[str, str]:
    """Short names that tell the two apart: the folders' names, or the whole paths where these are the same."""
    one, two = ((path.parent if path.suffix == ".json" else path).resolve().name for path in (first, second))
    return (one, two) if one != two else (str(first), str(second))


def listing(found: Comparison) -> str:
    """The comparison as aligned text."""
    from erasekit.cli import terminal
    from erasekit.evaluation.page_compare import difference_text, mark
    from erasekit.evaluation.page_parts import interval, number

    def shown(entry: Any, unit: str) -> str:
        return f"{number(entry['value'], unit)} {interval(entry, unit)}".strip()

    one, two = found.names
    rows = [["metric, group, target", "arm", one, two, f"{two} - {one}", ""]]
    for d in found.differences:
        what = ", ".join(part for part in (d.metric, d.group or "all", d.target) if part)
        rows.append([what, " / ".join(dict.fromkeys(d.arms)), shown(d.first, d.unit), shown(d.second, d.unit),
                     difference_text(d), mark(d)])  # fmt: skip
    lines = [terminal.table(rows)] if len(rows) > 1 else ["nothing was measured in both"]
    return "\n".join([*lines, *found.notes])
