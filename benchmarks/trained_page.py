"""What `trained_table` found, as the page has it: the table, each method beside noise, warnings, settings.

python benchmarks/trained_page.py [--results FILE] [--page PAGE]     # docs/training.md again from the JSON
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from all_suites_table import table
from many_page import rewrite
from trained_verdicts import verdicts

PAGE = Path(__file__).parents[1] / "docs/training.md"
RESULTS = Path(__file__).parent / "results" / "trained_table.json"


def said(name: str, check: Mapping[str, Any]) -> list[str]:
    """What an edit's self-check warns of, and what the attack that it was trained against came to (Receler), as lines."""
    lines = [f"{name}: {warning}" for warning in check.get("warnings") or ()]
    for one in check.get("attack") or ():
        loss = f"its loss {one['loss']:.2g}, {one['loss_without']:.2g} without it"
        lines.append(f"{name}: the attack on {one['target']}, learned prompt of size {one['size']:.2g}: {loss}; "
                     f"residual under it {one['residual']:.2g}")  # fmt: skip
    return lines


def page(found: Mapping[str, Any]) -> str:
    """The Markdown of a results file."""
    scaled = f"Steps times {found['steps']:g}, rate times {found['rate']:g}, for every method:"
    parts = [table(found["rows"], found["refused"]), verdicts(found["rows"], found["methods"]),
             _listed("What the edits' own self-checks say:", found["said"]), scaled, _settings(found["trained"])]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def _listed(head: str, lines: Sequence[str]) -> str:
    return "\n".join([head, "", *(f"- {line}" for line in lines)]) if lines else ""


def _settings(trained: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| method | steps: paper | here | rate: paper | here | batch | set besides |", "|" + "---|" * 7]
    for row in trained:
        (steps, ours), (rate, own) = row["steps"], row["rate"]
        besides = ", ".join(f"{key}={value}" for key, value in row["besides"].items())
        lines.append(f"| {row['method']} | {steps} | {ours} | {rate:g} | {own:g} | {row['batch']} | {besides} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(words)
    rewrite(options.page, {"table": page(json.loads(options.results.read_text()))})


if __name__ == "__main__":
    main()
