"""The page of a comparison: two results side by side, significant differences marked in words and colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erasekit.evaluation.compare import Comparison, Difference
from erasekit.evaluation.page_parts import estimate, facts, of_difference, row, section, signed, table, text
from erasekit.evaluation.page_style import PAGE, SCRIPT, STYLE
from erasekit.evaluation.page_view import Entry
from erasekit.files import write_whole

METHOD = ("A difference is marked where it stands at 5 % after Holm's correction over all lines but the unedited "
          "model's. The runs are treated as independent, which is cautious at equal prompts and seeds; no mark does not "
          "mean that both are equal.")  # fmt: skip
SIGNS = {"better": "▲", "worse": "▼", "different": "◆"}
COLOURS = {"better": "better", "worse": "invalid", "different": "failed"}


def write_comparison(comparison: Comparison, first: Entry, second: Entry, path: Path) -> Path:
    """Write the page, whole or not at all, and return its path."""
    write_whole(path, html(comparison, first, second).encode())
    return path


def html(comparison: Comparison, first: Entry, second: Entry) -> str:
    """The whole page as text; it refers to no other file and to no address."""
    marked = [d for d in comparison.differences if d.significant]
    lead = (f"{first['suite']['title']}: {len(comparison.differences)} estimates stand in both, {len(marked)} of them "
            "differ clearly.")  # fmt: skip
    notes = "".join(f"<li>{text(note)}</li>" for note in comparison.notes)
    body = [
        section("clear", "Clear differences", _table(comparison, marked, "Marked differences"), lead=METHOD)
        or section("clear", "Clear differences", "<p>None at this number of images.</p>", lead=METHOD),
        section("all", "All estimates in both", _table(comparison, comparison.differences, "All estimates in both")),
        section("notes", "Not compared", f"<ul>{notes}</ul>" if notes else ""),
        section("repeat", "The two runs", _runs(comparison.names, first, second)),
    ]
    return PAGE.format(
        title=text(f"{comparison.names[1]} against {comparison.names[0]}"), lead=text(lead), style=STYLE, script=SCRIPT,
        eyebrow=text(f"Comparison · {first['suite']['name']} · {first['model']['id']}"), nav="", body="".join(body),
        footer="Written by erasekit from two results.json of the same suite and judges. No attack was compared.",
    )  # fmt: skip


def mark(difference: Difference) -> str:
    """The mark as text: a sign and a word, or nothing."""
    return f"{SIGNS[difference.verdict]} {difference.verdict}" if difference.significant else ""


def difference_text(d: Difference) -> str:
    """The difference with its interval as plain text: "−94.5 points [−98.1, −89.2]"."""
    return signed({"value": d.value, "low": d.low, "high": d.high}, of_difference(d.unit))


def _table(comparison: Comparison, differences: list[Difference], caption: str) -> str:
    one, two = comparison.names
    rows = [row(d.metric, [f"<td>{text(' / '.join(dict.fromkeys(d.arms)))}</td>", estimate(d.first), estimate(d.second),
                           f"<td>{text(difference_text(d))}</td>", _mark_cell(d)], _note(d))
            for d in differences]  # fmt: skip
    head = ["metric", "arm", one, two, f"{two} − {one}", "clear?"]
    return table(head, rows, caption=caption) if rows else ""


def _mark_cell(d: Difference) -> str:
    return f'<td class="{COLOURS.get(d.verdict, "")}">{text(mark(d))}</td>'


def _note(d: Difference) -> str:
    return ", ".join(part for part in (d.group or "all groups", d.target, d.judge) if part)


def _runs(names: tuple[str, str], first: Entry, second: Entry) -> str:
    return "".join(_run(name, results) for name, results in zip(names, (first, second), strict=True))


def _run(name: str, results: Entry) -> str:
    made: Any = results["created_by"]
    edits = [(f"{arm['label']}, sha256", arm["edit"]["sha256"]) for arm in results["arms"] if arm["edit"]]
    pairs = [("model, sha256", results["model"]["sha256"]), ("suite, sha256", results["suite"]["digest"]), *edits]
    return f"<h3>{text(name)}</h3><pre><code>{text(made['command'])}</code></pre>{facts(pairs, mono=True)}"
