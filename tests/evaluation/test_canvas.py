"""UA, IRA and CRA: naive counts over the rows that ask for one object in one style, and when there are none."""

from __future__ import annotations

import random

from erasekit.evaluation.canvas import canvas
from erasekit.evaluation.rates import Side
from erasekit.evaluation.rows import Row
from erasekit.evaluation.statistics import wilson
from erasekit.evaluation.verdicts import Reading

JUDGE = "rule"
OBJECTS, STYLES = ("cat", "dog", "fox", "car"), ("noto", "flat", "ink")


def rows(*, targets: tuple[str, ...] = ("cat",), kind: str = "object", seed: int = 0) -> list[Row]:
    """Every object in every style, three times; a judge that is right four times in five."""
    chance, found = random.Random(seed), []
    for i in range(3):
        for thing in OBJECTS:
            for style in STYLES:
                target = next((t for t in targets if t in (thing, f"{style} style")), "")
                said = {"status": "ok" if chance.random() < 0.9 else "failed",
                        "best": thing if chance.random() < 0.8 else chance.choice(OBJECTS),
                        "style": style if chance.random() < 0.8 else chance.choice(STYLES)}  # fmt: skip
                group = "plain" if target else "unrelated"
                wanted = [thing] if chance.random() < 0.9 else [thing, "tree"]
                found.append(Row("edit:e", f"{thing}-{style}-{i}", group, "", target, wanted, style, None, i, "", "",
                                 said["status"], {JUDGE: said}))  # fmt: skip
    return found


def lines(made: list[Row], labels: dict, kind: str = "object") -> dict:
    side = Side("edit:e", made, {}, Reading(JUDGE, labels, kind))
    return {(one["metric"], one["target"]): one for one in canvas(side)}


def good(made: list[Row]) -> list[tuple[Row, dict]]:
    return [(r, r.judgements[JUDGE]) for r in made if r.status == "ok" and len(r.wanted) == 1]


def test_an_erased_object() -> None:
    made = rows()
    found = lines(made, {"cat": ["cat"]})
    gone = [said["best"] != "cat" for r, said in good(made) if r.group == "plain"]
    kept = [said["best"] == r.wanted[0] for r, said in good(made) if r.group != "plain"]
    other = [said["style"] == r.style for r, said in good(made)]
    for name, hits in (("ua", gone), ("ira", kept), ("cra", other)):
        entry = found[name, None]
        assert (entry["value"], entry["n"]) == (sum(hits) / len(hits), len(hits)), name
        assert (entry["low"], entry["high"]) == wilson(sum(hits), len(hits)) and "not UnlearnCanvas's own" in entry[
            "note"
        ]
    assert len(found) == 3, "one target needs no line of its own"


def test_an_erased_style_swaps_the_kinds() -> None:
    made = rows(targets=("ink style",), kind="style")
    found = lines(made, {"ink style": ["ink"]}, "style")
    assert found["ua", None]["value"] == _share(said["style"] != "ink" for r, said in good(made) if r.style == "ink")
    assert found["ira", None]["value"] == _share(said["style"] == r.style for r, said in good(made) if r.style != "ink")
    assert found["cra", None]["value"] == _share(said["best"] == r.wanted[0] for r, said in good(made))


def test_several_targets_have_a_line_each_and_one_together() -> None:
    made = rows(targets=("cat", "dog"))
    found = lines(made, {"cat": ["cat"], "dog": ["dog"]})
    assert set(found) == {(name, target) for name in ("ua", "ira", "cra") for target in (None, "cat", "dog")}
    whole = [said["best"] != r.target for r, said in good(made) if r.target]
    assert found["ua", None]["value"] == sum(whole) / len(whole)
    assert found["ira", "cat"]["value"] == found["ira", "dog"]["value"] == found["ira", None]["value"]
    assert found["ua", "dog"]["n"] == sum(r.target == "dog" for r, _ in good(made))


def test_without_styles_or_a_judge_of_both_there_is_nothing() -> None:
    made = rows()
    assert not lines([r for r in made if r.style == "ink"], {"cat": ["cat"]}), "one style is no canvas"
    assert not lines([r for r in made if not r.target], {"cat": ["cat"]}), "nothing was erased"
    blind = [Row(**{**vars(r), "judgements": {JUDGE: {"status": "ok", "found": []}}}) for r in made]
    assert not lines(blind, {"cat": ["cat"]})


def _share(hits) -> float:
    hits = list(hits)
    return sum(hits) / len(hits)
