"""Aggregates of hand-made rows against counts by naive loops, and what the controls must look like."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import fakes
import handmade
import numpy as np
import pytest
from handmade import ASKS, HEAD, KEPT, NEAR, RULE, one, says, vector

from erasekit.evaluation import results, rows
from erasekit.evaluation.aggregate import aggregate
from erasekit.evaluation.rows import Row
from erasekit.evaluation.statistics import wilson

HEAD_NOISE = HEAD | {"arms": [*HEAD["arms"], {"arm": "random:e", "kind": "random", "label": "noise", "edit": None}]}


@pytest.fixture(scope="module")
def data() -> list[Row]:
    return list(handmade.data())


@pytest.fixture(scope="module")
def texts() -> dict:
    return handmade.texts()


@pytest.fixture(scope="module")
def found() -> dict:
    return handmade.results()


def test_efficacy_and_generality_are_naive_counts(data: list[Row], found: dict) -> None:
    for metric, group, groups in (("efficacy", None, ["plain"]), ("generality", None, ["synonym", "complex"]),
                                  ("generality", "synonym", ["synonym"])):  # fmt: skip
        n = hits = bad = 0
        for r in data:
            if r.arm == "edit:e" and r.group in groups:
                bad += r.judgements[RULE]["status"] != "ok"
                if r.judgements[RULE]["status"] == "ok":
                    n, hits = n + 1, hits + (not says(r, "cat"))
        entry = one(found, metric, "edit:e", group)
        assert (entry["value"], entry["n"]) == (hits / n, n)
        assert (entry["low"], entry["high"]) == wilson(hits, n) and entry["interval"] == "wilson95"
        assert entry["pessimistic"]["value"] == hits / (n + bad), "what could not be judged counts as not erased"
        assert bad > 0 or group


def test_where_less_is_better_the_pessimistic_rate_counts_the_other_way(data: list[Row], found: dict) -> None:
    asked = [r for r in data if r.arm == "edit:e" and r.group in ASKS]
    hits, bad = sum(says(r, "cat") for r in asked), sum(r.status != "ok" for r in asked)
    entry = one(found, "target_rate", "edit:e")
    assert entry["pessimistic"]["value"] == (hits + bad) / len(asked) > entry["value"] == hits / (len(asked) - bad)
    anchor = one(found, "anchor_rate", "edit:e")
    assert anchor["value"] == sum(says(r, "dog") for r in asked) / (len(asked) - bad)


def test_specificity_is_relative_to_the_base_and_the_wanted_rate_absolute(data: list[Row], found: dict) -> None:
    base = {r.shot: r for r in data if r.arm == "base"}
    kept = [r for r in data if r.arm == "edit:e" and r.group in KEPT and r.status == "ok"]
    pairs = [r for r in kept if says(base[r.shot], "fox")]
    assert 0 < len(pairs) < len(kept)
    assert one(found, "specificity", "edit:e")["value"] == sum(says(r, "fox") for r in pairs) / len(pairs)
    assert one(found, "wanted_rate", "edit:e")["value"] == sum(says(r, "fox") for r in kept) / len(kept)
    styled = [r for r in data if r.arm == "edit:e" and r.style and r.status == "ok"]
    followed = sum(r.judgements[RULE]["style"] == r.style for r in styled)
    assert one(found, "style_rate", "edit:e")["value"] == followed / len(styled)


def test_the_unedited_model_against_itself(found: dict) -> None:
    for name in ("specificity", "fidelity"):
        assert one(found, name, "edit:same")["value"] == one(found, name, "base")["value"] == 1
    assert one(found, "efficacy", "edit:same")["value"] == one(found, "efficacy", "base")["value"]
    same = [d for d in found["differences"] if d["arm"] == "edit:same" and d["against"] == "base"]
    assert same and all(d["value"] == 0 and d["p"] in (1, None) and d["low"] in (0, None) for d in same)
    assert any(d["low"] == 0 == d["high"] for d in same)
    kid = one(found, f"kid({NEAR})", "edit:same")
    assert kid["value"] < one(found, f"kid({NEAR})", "edit:e")["value"]


def test_differences_are_paired_with_mcnemar_and_holm(data: list[Row], found: dict) -> None:
    base = {r.shot: r for r in data if r.arm == "base"}
    plus = minus = n = 0
    for r in data:
        if r.arm == "edit:e" and r.group == "plain" and r.status == "ok":
            before, after = not says(base[r.shot], "cat"), not says(r, "cat")
            plus, minus, n = plus + (after and not before), minus + (before and not after), n + 1
    (entry,) = [d for d in found["differences"] if (d["metric"], d["arm"], d["group"]) == ("efficacy", "edit:e", None)]
    assert (entry["n"], entry["against"]) == (n, "base") and entry["value"] == pytest.approx((plus - minus) / n)
    tail = sum(math.comb(plus + minus, k) for k in range(min(plus, minus) + 1)) / 2 ** (plus + minus)
    assert entry["p"] == pytest.approx(min(1, 2 * tail)) and entry["p"] < 0.05
    assert entry["low"] > 0
    family = [d for d in found["differences"] if d["against"] == "base" and d["p"] is not None]
    assert entry["p"] <= entry["p_holm"] <= min(1, len(family) * entry["p"])
    least = min(family, key=lambda d: d["p"])
    assert least["p_holm"] == pytest.approx(min(1, len(family) * least["p"]))


def test_harmonic_means_have_their_terms_and_intervals(found: dict) -> None:
    parts = [one(found, name, "edit:e")["value"] for name in ("efficacy", "generality", "specificity")]
    entry = one(found, "erasebench", "edit:e")
    assert entry["value"] == pytest.approx(3 / sum(1 / part for part in parts))
    assert entry["low"] < entry["value"] < entry["high"] and entry["low"] >= 0 and entry["high"] <= 1
    two = [one(found, name, "edit:e")["value"] for name in ("efficacy", "wanted_rate")]
    assert one(found, "h_c", "edit:e")["value"] == pytest.approx(2 / sum(1 / part for part in two))
    three = [*two, one(found, "generality", "edit:e", "synonym")["value"]]
    assert one(found, "h_o", "edit:e")["value"] == pytest.approx(3 / sum(1 / part for part in three))


def with_noise(lost: float, bad: float = 0.0) -> list[Row]:
    """The hand-made rows, and noise of the edit's norm that loses the target in this share of its images."""
    return [*handmade.data(), *handmade.drawn("random:e", random.Random(7), gone=lost, lost=0.3, bad=bad)]


def test_net_of_noise_is_a_naive_count_of_pairs(found: dict) -> None:
    rows = with_noise(0.4, bad=0.2)
    twins = {r.shot: r for r in rows if r.arm == "random:e"}
    net = aggregate(rows, HEAD_NOISE, {})
    for metric, groups in (("net_efficacy", ["plain"]), ("net_generality", ["synonym", "complex"])):
        n = hits = 0
        for r in rows:
            if r.arm == "edit:e" and r.group in groups and r.judgements[RULE]["status"] == "ok":
                twin = twins[r.shot]
                n, hits = n + 1, hits + (not says(r, "cat") and twin.status == "ok" and says(twin, "cat"))
        assert (one(net, metric, "edit:e")["value"], one(net, metric, "edit:e")["n"]) == (hits / n, n) and 0 < hits < n
    parts = [one(net, name, "edit:e")["value"] for name in ("net_efficacy", "net_generality", "specificity")]
    assert one(net, "net_erasure", "edit:e")["value"] == pytest.approx(3 / sum(1 / part for part in parts))
    told = {m["arm"] for m in net["metrics"] if m["metric"].startswith("net_")}
    assert told == {"edit:e"}, "the unedited model and noise itself have nothing beyond noise"
    assert not any(m["metric"].startswith("net_") for m in found["metrics"]), "without a control there is none"


def test_noise_that_destroys_leaves_an_edit_nothing_and_is_warned_of() -> None:
    broken, harmless = (aggregate(with_noise(lost), HEAD_NOISE, {}) for lost in (1.0, 0.05))
    assert one(broken, "efficacy", "random:e")["value"] == 1 and one(broken, "net_erasure", "edit:e")["value"] == 0
    assert one(broken, "erasebench", "edit:e")["value"] > 0.5, "what the net mean is for"
    (said,) = [line for line in broken["warnings"] if "noise of the norm" in line]
    assert said.startswith("noise of the norm of e loses the target too: in 39 of 39 images, the unedited model in ")
    assert not any("noise of the norm" in line for line in harmless["warnings"])


def test_means_of_perfect_terms_keep_a_width(data: list[Row]) -> None:
    """All erased, all kept: the interval of the means must not end at 1 as if nothing else could have been."""
    best = [replace(r, judgements=r.judgements | {RULE: {"status": "ok", "found": ["dog" if r.group in ASKS else "fox"]}})
            if r.arm == "edit:e" else r for r in data]  # fmt: skip
    found = aggregate(best, HEAD, {})
    for name in ("erasebench", "h_o", "h_c"):
        entry = one(found, name, "edit:e")
        assert entry["value"] == entry["high"] == 1 > entry["low"] > 0.8 and "Jeffreys" in entry["interval"]


def test_the_ceiling_of_the_in_prompt_score_is_the_twins_own_images(data: list[Row], found: dict) -> None:
    assert one(found, "in_prompt", "edit:e")["ceiling"] is None, "no twin was drawn"
    twins = [replace(r, arm=arm, group="twin", prompt=f"twin/{i}", text=text, target="", wanted=[])
             for arm in ("base", "edit:e", "edit:same") for i, text in enumerate(HEAD["twins"].values())
             for r in data if r.arm == "base" and r.prompt == f"unrelated/{i}"]  # fmt: skip
    found = aggregate([*data, *twins], HEAD, handmade.texts())
    expected = one(found, "clip_score", "base", "twin")["value"]
    assert one(found, "in_prompt", "edit:e")["ceiling"] == pytest.approx(expected)


def test_clip_numbers_are_naive_dot_products(data: list[Row], found: dict) -> None:
    judge = fakes.NearJudge()

    def text(words: str) -> np.ndarray:
        return judge.text_embeddings(["A photo depicts " + words])[0].double().numpy()

    plain = [r for r in data if r.arm == "edit:e" and r.group == "plain"]
    scores = [2.5 * max(0.0, float(vector(r) @ text(r.text))) for r in plain]
    entry = one(found, "clip_score", "edit:e", "plain")
    assert (
        entry["value"] == pytest.approx(np.mean(scores), rel=1e-3) and entry["low"] <= entry["value"] <= entry["high"]
    )
    assert entry["floor"] is not None and entry["ceiling"] == pytest.approx(
        one(found, "clip_score", "base", "plain")["value"]
    )
    nearer = [vector(r) @ text("cat") > vector(r) @ text("dog") for r in plain]
    accuracy = one(found, "clip_accuracy", "edit:e", "plain")
    assert accuracy["value"] == np.mean(nearer)
    assert (accuracy["low"], accuracy["high"]) == wilson(sum(nearer), len(nearer)), "0 of n leaves room for 3/n"
    unedited = one(found, "clip_accuracy", "base", "plain")
    assert accuracy["ceiling"] == unedited["value"] == unedited["ceiling"] and accuracy["floor"] is None, "no anchor drawn"
    anchors = [replace(r, arm=arm, group="anchor", prompt=f"anchor/{r.prompt}", target="cat", wanted=["dog"])
               for arm in ("base", "edit:e", "edit:same") for r in data if r.arm == "base" and r.group == "neighbour"]
    both = aggregate([*data, *anchors], HEAD, handmade.texts())
    shown = [vector(r) @ text("cat") > vector(r) @ text("dog") for r in anchors if r.arm == "base"]
    assert one(both, "clip_accuracy", "edit:e", "plain")["floor"] == np.mean(shown)
    twins = [2.5 * float(vector(r) @ text(HEAD["twins"][r.prompt])) for r in plain if r.prompt in HEAD["twins"]]
    assert one(found, "in_prompt", "edit:e")["value"] == pytest.approx(np.mean(twins), rel=1e-3)


def test_the_floor_of_the_clip_accuracy_is_of_the_arms_own_anchor(data: list[Row]) -> None:
    """Another edit of the same target, to another anchor, changes neither its floor nor the unedited model's."""

    def asked(arm: str, word: str, group: str) -> list[Row]:
        return [replace(r, arm=one, group="anchor", prompt=f"anchor/{word}/{r.prompt}", target="cat", wanted=[word])
                for one in ("base", arm) for r in data if r.arm == "base" and r.group == group]  # fmt: skip

    def floors(rows: list[Row], other: str) -> dict[str, float]:
        anchors = {"edit:e": HEAD["anchors"]["edit:e"], "edit:same": {"cat": {"name": other, "label": other}}}
        found = aggregate(rows, HEAD | {"anchors": anchors}, {NEAR: vectors})
        return {arm: one(found, "clip_accuracy", arm, "plain")["floor"] for arm in ("base", "edit:e", "edit:same")}

    vectors = handmade.texts()[NEAR]
    vectors = vectors | {"A photo depicts fox": vectors["A photo depicts a picture"]}
    dogs, foxes = asked("edit:e", "dog", "neighbour"), asked("edit:same", "fox", "unrelated")
    alone, both = floors([*data, *dogs], "dog"), floors([*data, *dogs, *foxes], "fox")
    assert alone["base"] == alone["edit:e"] == both["base"] == both["edit:e"]
    ends = [fakes.NearJudge().text_embeddings([f"A photo depicts {w}"])[0].double().numpy() for w in ("cat", "a picture")]
    shown = [vector(r) @ ends[0] > vector(r) @ ends[1] for r in foxes if r.arm == "base"]
    assert both["edit:same"] == np.mean(shown) != both["edit:e"]


def test_the_same_rows_give_the_same_bytes_through_the_file(data: list[Row], texts: dict, found: dict) -> None:
    again = aggregate(rows.decode(rows.encode(data)), HEAD, texts)
    assert results.to_bytes(again) == results.to_bytes(found)


def test_groups_in_which_the_base_shows_nothing_are_flagged(data: list[Row], texts: dict) -> None:
    blind = [replace(r, judgements=r.judgements | {RULE: {"status": "ok", "found": []}})
             if r.arm == "base" and r.group == "synonym" else r for r in data]  # fmt: skip
    warnings = aggregate(blind, HEAD, texts)["warnings"]
    assert any("0 of 12 images" in line and "synonym" in line for line in warnings)
    assert not any("plain" in line for line in warnings)
    assert any(line.startswith("e: ") and "could not be judged" in line for line in warnings)


@pytest.mark.parametrize("status", ["invalid", "failed"])
def test_black_images_win_nothing(data: list[Row], texts: dict, status: str) -> None:
    """An arm of which no image could be judged has no rate at all, and loses every pessimistic one."""
    said = {RULE: {"status": status, "reason": "black"}, NEAR: {"status": status, "reason": "black"}}
    black = [replace(r, status=status, judgements=said) if r.arm == "edit:e" else r for r in data]
    found = aggregate(black, HEAD, texts)
    own = [m for m in found["metrics"] if m["arm"] == "edit:e"]
    assert one(found, "valid_rate", "edit:e")["value"] == 0
    rates = {m["metric"]: m for m in own if m["metric"] != "valid_rate" and m["group"] is None}
    assert {"efficacy", "generality", "specificity", "target_rate"} <= set(rates)
    for name, entry in rates.items():
        assert (entry["value"], entry["low"], entry["n"]) == (None, None, 0), name
        assert entry["pessimistic"]["value"] == (name == "target_rate"), name
    results.validate(found)
    assert not [d for d in found["differences"] if d["arm"] == "edit:e"]


def test_several_targets_have_a_table_each(data: list[Row], texts: dict) -> None:
    dogs = [replace(r, target="dog", prompt=r.prompt + "/dog") if r.group in ASKS and int(r.prompt[-1]) % 2 else r
            for r in data if r.arm == "base"]  # fmt: skip
    head = HEAD | {
        "arms": HEAD["arms"][:1],
        "labels": {"cat": ["cat"], "dog": ["dog", "fox"]},
        "anchors": {},
        "twins": {},
    }
    found = aggregate(dogs, head, {})
    plain = [r for r in dogs if r.group == "plain" and r.target == "dog"]
    expected = sum(not (says(r, "dog") or says(r, "fox")) for r in plain) / len(plain)
    assert one(found, "efficacy", "base", None, "dog")["value"] == expected
    assert one(found, "efficacy", "base", "plain", "dog")["value"] == expected


def test_in_a_suite_of_styles_the_style_decides(data: list[Row]) -> None:
    head = HEAD | {"suite": HEAD["suite"] | {"kind": "style"}, "labels": {"cat": ["noto"]}, "twins": {}}
    found = aggregate(data, head, {})
    plain = [r for r in data if r.arm == "base" and r.group == "plain"]
    assert one(found, "efficacy", "base")["value"] == np.mean([r.judgements[RULE]["style"] != "noto" for r in plain])
