"""Edit against edit: every pair once, on common prompts and seeds, with a correction of its own."""

from __future__ import annotations

import random
from dataclasses import replace

import handmade
import pytest
from handmade import ASKS, EDIT, HEAD, KEPT, drawn, says

from erasekit.evaluation import results
from erasekit.evaluation.aggregate import aggregate
from erasekit.evaluation.statistics import holm, mcnemar_exact


def between(found: dict) -> list[dict]:
    return [d for d in found["differences"] if d["against"] != "base"]


def pick(found: dict, metric: str, group: str | None = None) -> dict:
    (entry,) = [d for d in between(found) if (d["metric"], d["group"]) == (metric, group)]
    return entry


def test_two_edits_against_a_naive_count() -> None:
    found, rows = handmade.results(), handmade.data()
    first, second = ({r.shot: r for r in rows if r.arm == arm} for arm in ("edit:e", "edit:same"))
    base = {r.shot: r for r in rows if r.arm == "base"}
    assert {(d["arm"], d["against"]) for d in between(found)} == {("edit:same", "edit:e")}
    plus = minus = n = 0
    for shot, r in second.items():
        if r.group == "plain" and r.status == first[shot].status == "ok":
            n += 1
            plus += says(first[shot], "cat") and not says(r, "cat")
            minus += says(r, "cat") and not says(first[shot], "cat")
    entry = pick(found, "efficacy")
    assert (entry["value"], entry["n"]) == (pytest.approx((plus - minus) / n), n)
    assert entry["p"] == pytest.approx(mcnemar_exact(plus, minus)) and entry["low"] <= entry["value"] <= entry["high"]
    kept = [
        r for r in second.values() if r.group in KEPT and first[r.shot].status == "ok" and says(base[r.shot], "fox")
    ]
    lost = sum(says(r, "fox") - says(first[r.shot], "fox") for r in kept)
    assert pick(found, "specificity")["value"] == pytest.approx(lost / len(kept)) and lost > 0
    assert pick(found, "generality", "complex") and pick(found, "clip_score", "plain")
    assert not [d for d in found["differences"] if d["metric"] == "specificity" and d["against"] == "base"]


def test_each_family_is_corrected_for_itself() -> None:
    found = handmade.results()
    for family in (between(found), [d for d in found["differences"] if d["against"] == "base"]):
        tested = [d for d in family if d["p"] is not None]
        assert [d["p_holm"] for d in tested] == pytest.approx(holm([d["p"] for d in tested])), "one prompt tests nothing"


def test_seeds_of_one_prompt_give_no_p() -> None:
    """Imagenette asks for its target in one prompt: 50 seeds of it are no 50 independent pairs."""
    rows = [r for r in handmade.data() if r.group != "plain" or r.prompt == "plain/0"]
    found = aggregate(rows, HEAD, {})["differences"]
    plain = [d for d in found if d["metric"] == "efficacy"]
    assert plain and all((d["p"], d["p_holm"], d["low"]) == (None, None, None) for d in plain)
    assert all(d["p_holm"] is not None for d in found if d["metric"] == "generality" and d["group"] is None)


def test_a_difference_that_is_the_same_in_every_pair_keeps_a_width() -> None:
    seen = {"base": ["cat"], "edit:e": ["dog"]}
    rows = [replace(r, status="ok", judgements=r.judgements | {handmade.RULE: {"status": "ok", "found": seen[r.arm]}})
            for r in handmade.data() if r.arm in seen and r.group in ASKS]  # fmt: skip
    (entry,) = [d for d in aggregate(rows, HEAD | {"arms": HEAD["arms"][:2]}, {})["differences"]
                if (d["metric"], d["group"]) == ("efficacy", None)]  # fmt: skip
    assert entry["value"] == entry["high"] == 1 > entry["low"] > 0.7 and entry["p"] < 0.001


def test_an_anchor_is_compared_only_where_both_edits_have_it() -> None:
    assert pick(handmade.results(), "anchor_rate")
    other = HEAD | {"anchors": HEAD["anchors"] | {"edit:e": {"cat": {"name": "fox", "label": "fox"}}}}
    assert "anchor_rate" not in {d["metric"] for d in between(aggregate(handmade.data(), other, {}))}


def test_edits_of_other_targets_share_what_both_drew() -> None:
    rows = [
        replace(r, prompt=f"other/{r.prompt}") if r.arm == "edit:same" and r.group in ASKS else r
        for r in handmade.data()
    ]
    names = {d["metric"] for d in between(aggregate(rows, HEAD, {}))}
    assert "specificity" in names and not names & {"efficacy", "generality", "target_rate"}


def test_many_edits_are_compared_on_whole_rates_only() -> None:
    names = [f"edit:{i}" for i in range(4)]
    arms = HEAD["arms"][:1] + [{"arm": n, "kind": "edit", "label": n, "edit": EDIT} for n in names]
    rows = [r for r in handmade.data() if r.arm == "base"]
    rows += [r for i, n in enumerate(names) for r in drawn(n, random.Random(i), gone=0.5, lost=0.2)]
    found = results.validate(aggregate(rows, HEAD | {"arms": arms, "anchors": {}}, {}))
    assert len({(d["arm"], d["against"]) for d in between(found)}) == 6 and {d["group"] for d in between(found)} == {
        None
    }


def test_one_edit_has_nobody_to_be_compared_with() -> None:
    head = HEAD | {"arms": HEAD["arms"][:2]}
    assert not between(aggregate([r for r in handmade.data() if r.arm != "edit:same"], head, {}))
