"""A folder as `erasekit attack m-erasurebench` leaves it, made without a model: all rows, with every control."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import attacked
from PIL import Image

from erasekit.attacks import Case, Outcome, Spent, folder_bench, report_bench
from erasekit.attacks._bench_rates import counted, gap
from erasekit.attacks._bench_scenarios import (
    BEGIN,
    SCENARIOS,
    TEMPLATES,
    VERSION,
    MErasureBenchConfig,
    Scenario,
    part_of,
    place_of,
    store_of,
)
from erasekit.attacks.ladder import keep

STATUS = {"s": "success", "f": "failure", "i": "invalid"}
SOURCES = [Case(TEMPLATES["object"][i % 5].replace("{}", "cat"), 1_000_000 + i) for i in range(8)]
CASES = [Case(template.replace("{}", "cat"), 0) for template in TEMPLATES["object"]] + [
    Case("cat", i) for i in (1, 2, 3)
]
ENDS = {  # s(uccess), f(ailure), i(nvalid), a letter for each case
    "T": {"edited": "ffsffsff", "unedited": "ssssssss", "never-knew": "ffffffff"},
    "E": {"edited": "ssfssssi", "unedited": "ssssssss", "never-knew": "ssffffff"},
    "L": {"edited": "sssf", "unedited": "ssss", "scrambled": "ssff", "never-knew": "sssf"},
}
TWIN = "E-bb, which sees less, shows the target in 7 of the same 8 pictures, it in 6"
ABOUT: dict[str, Any] = {
    **attacked.ABOUT, "benchmark": VERSION, "config": asdict(MErasureBenchConfig(images=8, seeds=1)), "seed": 0,
    "templates": list(TEMPLATES["object"]), "others": ["a photo of dog", "a photo of <fox>"],
    "never_knew": {"model": "without-cat"},
}  # fmt: skip


def outcome(case: Case, end: str, shade: int) -> Outcome:
    image = Image.new("RGB", (32, 32), (shade, 40 * "sfi".index(end), 90))
    return Outcome(case, STATUS[end], 0.5, image, spent=Spent(1, 250, 2, 1))


def side(store: Path, part: str, cases: Sequence[Case], ends: str) -> list[Outcome]:
    """The outcomes of a part, kept where the benchmark keeps them; once where white-box and black-box are one."""
    found = [outcome(case, end, 20 * i) for i, (case, end) in enumerate(zip(cases, ends, strict=True))]
    if not place_of(store, part).exists():
        keep(place_of(store, part), found)
    return found


def row(folder: Path, scenario: Scenario, ends: dict[str, str]) -> dict[str, Any]:
    """A row of the results; its outcomes are kept in the folder."""
    cases = SOURCES[1::2] if scenario.key[0] == "L" else CASES
    shares = {name: counted(side(store_of(folder, name), part_of(scenario.row, name), cases, said))
              for name, said in ends.items()}  # fmt: skip
    crr = shares.pop("edited")
    return {**asdict(scenario), "crr": crr, "warnings": [TWIN] if scenario.row == "E-wb" else [],
            "spent": asdict(Spent(1, 250, 2, 1) * len(cases)),
            "controls": {name: one | {"gap": gap(crr, one)} for name, one in shares.items()}}  # fmt: skip


def folder(place: Path, *, only: str = "TEL", ends: dict[str, dict[str, str]] | None = None, **about: Any) -> Path:
    """The finished folder; `only`: letters of the rows that were run; `about` overrides what was attacked."""
    side(place, BEGIN, SOURCES, "s" * len(SOURCES))
    rows = [row(place, one, (ends or ENDS)[one.key[0]]) for one in SCENARIOS if one.key[0] in only]
    latent = {"autoencoder": counted([outcome(case, "s", 0) for case in SOURCES[1::2]])} if "L" in only else {}
    found = {**ABOUT, **about, "concept_images": {"kept": 8, "drawn": 11, "short": True},
             "false_positives": counted([outcome(case, "f", 0) for case in SOURCES]), "autoencoder": latent,
             "rows": rows}  # fmt: skip
    text = json.dumps(found)
    (place / "results.json").write_text(text)
    report_bench.write_report(folder_bench.read(place, json.loads(text)))
    return place
