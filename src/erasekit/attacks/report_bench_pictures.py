"""The pictures of M-ErasureBench's page: each row's examples, the attacked model's above the controls', with the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from erasekit.attacks._bench_scenarios import EDITED, NEVER
from erasekit.attacks.report import HARD, thumbnail
from erasekit.evaluation.page_parts import text
from erasekit.evaluation.page_pictures import WORDS, legend, under

if TYPE_CHECKING:
    from erasekit.attacks.base import Outcome
    from erasekit.attacks.folder_bench import Benched

Example = Mapping[str, "Outcome"]


def pictures(bench: Benched, *, opened: bool) -> str:
    """Each row's examples: a column for a case, a line for a side; each row folded into one element."""
    rows = [_row(bench.found, row, bench.examples[row["row"]], opened) for row in bench.found["rows"]]
    return legend() + "".join(rows)


def side_name(found: Mapping[str, Any], side: str) -> str:
    """The side's name for people; without an edit the attacked model is not an edited one."""
    return "never knew" if side == NEVER else "attacked" if side == EDITED and not found["edit"] else side


def _row(found: Mapping[str, Any], row: Mapping[str, Any], examples: Sequence[Example], opened: bool) -> str:
    crr = row["crr"]
    here = f"{crr['hits']} of {crr['of']} show {found['target']}, {len(examples)} of {crr['of'] + crr['invalid']} cases here"
    cases = [example[EDITED].case for example in examples]
    head = "".join(f'<th scope="col">{text(case.prompt)}, seed {case.seed}</th>' for case in cases)
    body = "".join(_side(found, side, examples) for side in examples[0])
    return (f'<details{" open" if opened else ""}><summary><h3>{text(row["row"])}</h3><small>{text(here)}</small></summary>'
            f'<div class="shots"{HARD}><div class="card" tabindex="0" role="group" aria-label="{text(row["row"])}"><table>'
            f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div></div></details>")  # fmt: skip


def _side(found: Mapping[str, Any], side: str, examples: Sequence[Example]) -> str:
    name = side_name(found, side)
    cells = "".join(_shot(name, found["target"], example[side]) for example in examples)
    return f'<tr><th scope="row">{text(name)}</th>{cells}</tr>'


def _shot(name: str, target: str, one: Outcome) -> str:
    kind = "invalid" if one.status == "invalid" else "found" if one.shown else "absent"
    said = text(f"{name}, {one.case.prompt}, seed {one.case.seed}. Judge: {target} {WORDS[kind]}.")
    if one.image is None:
        return f'<td><span class="gone" role="img" aria-label="{said}">file not there</span>{under(kind, target)}</td>'
    return f'<td><img alt="{said}" src="{thumbnail(one.image)}">{under(kind, target)}</td>'
