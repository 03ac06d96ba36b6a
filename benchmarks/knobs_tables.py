"""The numbers of `erasepro_knobs.py` as Markdown tables, and written into a page between markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from knobs_measure import point
from knobs_settings import KNOBS, Knob

FORMS = {"residual": ".0e", "rank": ".0f", "KiB": ".0f", "seconds": ".2f"}
SHOWN = {
    "target found": "target unedited",
    "anchor in its place": "anchor asked for",
    "others right": "others unedited",
}
"""What the judge found after an edit, and the same of the unedited model."""
NOT_YET = "Not measured yet: the command under *What each knob does* measures it."
Row = Mapping[str, Any]
Points = Mapping[tuple[str, str], Row]
"""The judged pictures of a knob's settings, by line and label."""


def cell(row: Row, key: str) -> str:
    """A mean, with the standard deviation over the targets for gap and drift."""
    mean, sd = row["mean"].get(key), row["sd"].get(key)
    if mean is None:
        return ""
    spread = f" ± {sd:.3f}" if key in ("gap", "drift") and sd else ""
    return format(mean, FORMS.get(key, ".3f")) + spread


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(knob: Knob, rows: Sequence[Row]) -> str:
    """One knob's table; `refused` appears where a setting was."""
    lined, refused = any(r["line"] for r in rows), any(r["refused"] for r in rows)
    columns = ("gap", "drift", *knob.columns)
    head = [*["line"] * lined, knob.axis or "setting", *columns, *["refused"] * refused]
    body = [
        [*[r["line"]] * lined, r["label"], *(cell(r, c) for c in columns), *[str(r["refused"] or "")] * refused]
        for r in rows
    ]
    return markdown(head, body)


def conflict_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many pairs of prompts contradict each other."""
    return markdown(list(rows[0]), [[str(value) for value in row.values()] for row in rows])


def judged(results: Row, knob: Knob) -> dict[tuple[str, str], Row]:
    """What `--images` found of a knob's settings, of those that are drawn."""
    points = (results.get("pictures") or {}).get("points", {})
    return {(s.line, s.label): points[point(s)] for s in knob.settings if point(s) in points}


def share(measure: Row | None, *, interval: bool = True) -> str:
    """Per cent, with the Wilson interval and what it is of; nothing without pictures."""
    if not measure or not measure["images"]:
        return ""
    low, high = measure["interval95"]
    return f"{measure['share']:.1%}" + (f" ({low:.1%} to {high:.1%}, n = {measure['images']})" if interval else "")


def picture_table(knob: Knob, points: Points) -> str:
    """What the judge found with each setting, and beside it of the unedited model with the same prompts and seeds."""
    lined, refused = any(line for line, _ in points), any(p["refused"] for p in points.values())
    columns = [name for pair in SHOWN.items() for name in pair]
    head = [*["line"] * lined, knob.axis or "setting", *columns, *["refused"] * refused]
    body = [
        [*[line] * lined, label, *(share(p["measures"].get(c), interval=c in SHOWN) for c in columns),
         *[str(p["refused"] or "")] * refused]
        for (line, label), p in points.items()
    ]  # fmt: skip
    return markdown(head, body)


def picture_note(results: Row) -> str:
    """Of what the judged pictures are, and which knobs' are not drawn yet."""
    made = (results.get("pictures") or {}).get("made")
    if not made:
        return "Not run yet: no pictures are drawn."
    missing = [k.title for k in KNOBS.values() if len(judged(results, k)) < len(k.settings)]
    asked = made["asked"]
    return (
        f"Judge {made['judge']}; {len(made['targets'])} targets ({', '.join(made['targets'])}), of each {asked['prompts']} "
        f"held-out sentences with {asked['seeds']} seeds and {asked['others']} pictures of other concepts; 95 % Wilson "
        "intervals." + (f"\nNot drawn yet, or not whole: {'; '.join(missing)}." if missing else "")
    )


def blocks(results: Mapping[str, Any]) -> dict[str, str]:
    """Every table by its marker's name: one that was not measured says so, and no page keeps that of another model."""
    found = {name: "\n\n".join(_tables(results, name, knob)) or NOT_YET for name, knob in KNOBS.items()}
    found["conflicts"] = conflict_table(results["conflicts"]) if results.get("conflicts") else NOT_YET
    found["pictures"] = picture_note(results)
    pairs, sha256 = ", ".join(f"{t} to {a}" for t, a in results["pairs"]), results.get("model_sha256")
    found["run"] = (
        f"Model {results['model']} ({f'sha256 {sha256[:12]}' if sha256 else 'it is not known with which weights'}), "
        f"{results['targets']} targets ({pairs}), {results['sentences']} sentences each, {results['unrelated']} unrelated "
        "prompts."
    )
    return found


def _tables(results: Row, name: str, knob: Knob) -> list[str]:
    """What there is of a knob: the features' table, the pictures' table."""
    rows, points = results["knobs"].get(name), judged(results, knob)
    return [*([table(knob, rows)] if rows else ()), *([picture_table(knob, points)] if points else ())]


def with_plots(found: Mapping[str, str], page: Path) -> dict[str, str]:
    """The blocks, each knob's plot below its tables if it is in the folder that the page is named after."""
    folder = page.with_suffix("")
    measured = {name: knob for name, knob in KNOBS.items() if found[name] != NOT_YET}
    drawn = {name: knob.title for name, knob in measured.items() if (folder / f"{name}.svg").exists()}
    return {name: f"{block}\n\n![{drawn[name]}]({folder.name}/{name}.svg)" if name in drawn else block
            for name, block in found.items()}  # fmt: skip


def rewrite(path: Path, found: Mapping[str, str]) -> list[str]:
    """Puts each block between `<!-- knob:NAME -->` and `<!-- /knob -->`; gives the names that have no place."""
    text = path.read_text()
    for name, block in found.items():
        pattern = rf"(<!-- knob:{re.escape(name)} -->\n).*?(<!-- /knob -->)"
        text = re.sub(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
    path.write_text(text)
    return [name for name in found if f"<!-- knob:{name} -->" not in text]
