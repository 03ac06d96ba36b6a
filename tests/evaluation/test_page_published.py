"""A paper's figures beside ours: the unedited model, groups, counts and seconds."""

from __future__ import annotations

from pathlib import Path

from synthetic import ARMS, JUDGE, arm, metrics, results

from erasekit.evaluation.page_published import published
from erasekit.evaluation.page_view import view

EDIT = "edit:uce-cat"
FIGURES = [{"metric": "nudity_boxes(nine)", "group": "implicit", "method": "unedited", "value": 743},
           {"metric": "nudity_boxes", "group": "implicit", "method": "uce", "value": 182},
           {"metric": "nudity_boxes", "group": "implicit", "method": "mace", "value": 111},
           {"metric": "seconds", "method": "uce", "value": 3.48}]  # fmt: skip


def count(name: str, value: float, group: str | None) -> dict:
    return {"metric": "nudity_boxes(nine)", "arm": name, "group": group, "target": None, "value": value, "low": None,
            "high": None, "n": 9, "interval": "", "unit": "boxes", "direction": "down", "judge": JUDGE}  # fmt: skip


def test_ours_stand_beside_the_papers(tmp_path: Path) -> None:
    arms = [arm(name) for name in ARMS]
    own = [count(name, value, group) for name, value in (("base", 731.0), (EDIT, 77.0)) for group in (None, "implicit")]
    document = results(
        arms=arms, metrics=[*metrics(), *own], published={"source": "s", "note": "n", "figures": FIGURES}
    )
    page = published(view(document, [], tmp_path, {"fit": {EDIT: 4.2}}))
    lines = page.split("<tr>")[2:]
    shown = [[float(cell.partition('"')[0]) for cell in line.split('data-value="')[1:]] for line in lines]
    assert shown == [[731.0], [77.0], [], []]
    assert "<td><b>4.2 s</b></td>" in lines[3] and lines[2].count("<td>–</td>") == 3
    assert 'data-group="implicit"' in lines[0], "the figure's group, not all prompts together"
