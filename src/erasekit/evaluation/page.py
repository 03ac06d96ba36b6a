"""The report of an evaluation: one self-contained HTML file that refers to nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erasekit.evaluation import page_limits, page_pictures, page_published, page_record, page_summary, page_tables
from erasekit.evaluation.page_parts import listed, section, text
from erasekit.evaluation.page_style import PAGE, SCRIPT, STYLE
from erasekit.evaluation.page_view import Tried, View, view
from erasekit.evaluation.results import validate
from erasekit.files import write_whole


def write_report(results: Mapping[str, Any], rows: Iterable[Any], folder: Path, *,
                 timing: Mapping[str, Any] | None = None, attacks: Sequence[Tried] = ()) -> Path:  # fmt: skip
    """Write `report.html` into the folder, whole or not at all, and return its path.

    `rows` are `Row`s or mappings with a row's fields; their `image` is a path relative to `folder`. An image that is not
    there is said to be missing. `timing` is the content of a run's `timing.json`: without it the same results give the
    same bytes, and the cost is without times unless the arms have `seconds`. `attacks`: those in folders of their own
    (`attacks.folder`); without them the page has of attacks only the lines that the results hold.

    Raises `EraseKitError` if the results do not match the schema.
    """
    write_whole(folder / "report.html", html(results, rows, folder, timing=timing, attacks=attacks).encode())
    return folder / "report.html"


def html(results: Mapping[str, Any], rows: Iterable[Any], folder: Path, *,
         timing: Mapping[str, Any] | None = None, attacks: Sequence[Tried] = ()) -> str:  # fmt: skip
    """The whole page as text. Raises like `write_report`."""
    seen = view(validate(dict(results)), rows, folder, timing, attacks)
    parts = [(ident, title, section(ident, title, body, lead=lead)) for ident, title, lead, body in _sections(seen)]
    nav = "".join(f'<li><a href="#{ident}">{text(title)}</a></li>' for ident, title, body in parts if body)
    suite, model = results["suite"], results["model"]
    return PAGE.format(
        title=text(_title(seen)), style=STYLE, script=SCRIPT, lead=text(_lead(seen)),
        eyebrow=text(f"Evaluation · {suite['name']} · {model['id']}"),
        nav=f'<nav aria-label="contents"><ul>{nav}</ul></nav>',
        body=page_summary.outcomes(seen) + page_summary.warnings(seen) + "".join(body for _, _, body in parts),
        footer=text(f"Written by erasekit {results['created_by']['erasekit']} from results.json; the same results give "
                    "the same page."),
    )  # fmt: skip


def _sections(seen: View) -> list[tuple[str, str, str, str]]:
    """Identifier, title, lead and body of every section, in order."""
    limits = "".join(f"<li>{text(line)}</li>" for line in page_limits.limits(seen))
    shots = page_pictures.pictures(seen)
    return [
        ("pictures", "The same prompts and seeds", PICTURES, page_pictures.legend() + shots if shots else ""),
        ("plane", "Efficacy and specificity", PLANE, page_summary.plane(seen)),
        ("groups", "By kind of prompt", GROUPS, page_tables.group_bars(seen)),
        ("numbers", "All numbers", NUMBERS, page_tables.metrics(seen)),
        ("differences", "Differences", "", page_tables.differences(seen)),
        ("published", "What the paper reports", PUBLISHED, page_published.published(seen)),
        ("attacks", "Attacks", "", page_limits.attacks(seen)),
        ("edits", "The edits from inside", EDITS, page_record.edits(seen)),
        ("cost", "Cost", "", page_record.cost(seen)),
        ("judges", "The judges and their errors", JUDGES, page_record.judges(seen)),
        ("limits", "What this does not show", "", f'<ul class="limits">{limits}</ul>'),
        ("repeat", "How to repeat it", REPEAT, page_record.provenance(seen)),
    ]


PICTURES = "Columns differ only in the model. Under each image is what the judge says about it."
PLANE = ("The best place is the top right: the target gone, everything else kept. A random change of the same norm shows "
         "what mere damage earns.")  # fmt: skip
GROUPS = "Each bar with its 95 % interval. What is asked for differs by group, so compare bars within one."
NUMBERS = "In brackets the 95 % interval; n counts what the estimate is made of."
PUBLISHED = "Measured by others, on their model and with their judge: levels do not compare, directions may."
EDITS = "Measured when the edit was made, without any image."
JUDGES = "A rate on this page is only as good as the judge. These are the judges' own error rates, where measured."
REPEAT = "This command gives the same numbers on the same model, edits and suite; the hashes say which these were."


def _title(seen: View) -> str:
    targets = list(dict.fromkeys(t for arm in seen.edits if arm["edit"] for t in arm["edit"]["targets"]))
    if not targets:
        return f"{seen.results['suite']['title']}, without an edit"
    methods = list(dict.fromkeys(arm["edit"]["method"] for arm in seen.edits if arm["edit"]))
    named = listed(targets, most=3) if len(targets) <= 3 else f"{len(targets)} targets"
    return f"Suppressing {named} with {listed(methods, most=4)}"


def _lead(seen: View) -> str:
    prompts, seeds = {row.prompt for row in seen.rows}, {row.seed for row in seen.rows}
    return (f"{seen.results['suite']['title']}. {len(seen.arms)} models drew {len(prompts)} prompts with "
            f"{len(seeds)} seeds: {len(seen.rows)} images, judged by machine.")  # fmt: skip
