"""MACE's accuracy among names against numpy written out, and the means of it."""

from __future__ import annotations

import base64
from collections.abc import Collection
from dataclasses import replace

import fakes
import handmade
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handmade import HEAD, KEPT, NEAR, one, vector

from erasekit.evaluation import head
from erasekit.evaluation.aggregate import aggregate
from erasekit.evaluation.arms import Arm
from erasekit.evaluation.judges.base import packed
from erasekit.evaluation.statistics import wilson
from erasekit.evaluation.worker import Brush

NAMES = {"cat": "a photo of the cat", "dog": "a photo of the dog", "fox": "a photo of the fox"}
AXES = {
    "cat": [0.9, 0.2, 0.1, 0.3, 0.2, 0.1],
    "dog": [0.1, 0.9, 0.2, 0.1, 0.3, 0.2],
    "fox": [0.2, 0.1, 0.9, 0.2, 0.1, 0.3],
}


def texts() -> dict:
    own = {NAMES[name]: packed(F.normalize(torch.tensor(axis), dim=0))["embedding"]
           for name, axis in AXES.items()}  # fmt: skip
    return {NEAR: handmade.texts()[NEAR] | own}


def found(kind: str = "object") -> dict:
    """CLIP is the only judge, as in MACE's suites."""
    suite = HEAD["suite"] | {"kind": kind, "judges": HEAD["suite"]["judges"][1:]}
    return aggregate(handmade.data(), HEAD | {"suite": suite, "classes": NAMES}, texts())


def probability(groups: Collection[str], name: str, arm: str = "edit:e") -> tuple[list[float], list[bool]]:
    stored = [np.frombuffer(base64.b64decode(texts()[NEAR][text]), "<f2").astype(float) for text in NAMES.values()]
    axes = np.array([one / np.linalg.norm(one) for one in stored])
    own = [vector(r) for r in handmade.data() if r.arm == arm and r.group in groups]
    logits = 100 * np.array(own) @ axes.T
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    place = list(NAMES).index(name)
    return shares[:, place].tolist(), (logits.argmax(1) == place).tolist()


def test_accuracy_on_erased_and_kept_is_a_mean_probability_and_a_share() -> None:
    lines = found()
    for metric, groups, name in (("clip_accuracy", ["plain"], "cat"), ("clip_kept", ["unrelated"], "fox")):
        shares, tops = probability(groups, name)
        assert one(lines, f"{metric}_softmax", "edit:e", groups[0])["value"] == pytest.approx(np.mean(shares))
        top = one(lines, f"{metric}_top1", "edit:e", groups[0])
        assert top["value"] == np.mean(tops) and (top["low"], top["high"]) == wilson(sum(tops), len(tops))
        assert "3 names" in top["note"]


def test_means_are_of_the_papers_terms_though_nothing_decides() -> None:
    lines = found()
    acc = {name: one(lines, "clip_accuracy_softmax", "edit:e", name)["value"] for name in ("plain", "synonym")}
    kept = one(lines, "clip_kept_softmax", "edit:e")["value"]
    three = (1 - acc["plain"], kept, 1 - acc["synonym"])
    assert one(lines, "h_o", "edit:e")["value"] == pytest.approx(3 / sum(1 / term for term in three))
    two = one(lines, "h_c", "edit:e")
    assert (
        two["value"] == pytest.approx(2 / (1 / (1 - acc["plain"]) + 1 / kept))
        and two["low"] < two["value"] < two["high"]
    )
    assert two["terms"] == ["1 - clip_accuracy_softmax (plain)", "clip_kept_softmax"]
    people = one(found("person"), "h_c", "edit:e")
    tops = np.mean(probability(["plain"], "cat")[1]), np.mean(probability(KEPT, "fox")[1])
    assert people["value"] == pytest.approx(2 / (1 / (1 - tops[0]) + 1 / tops[1]) if tops[0] < 1 and tops[1] else 0)


def test_an_edits_names_are_its_own_whatever_else_is_in_the_run() -> None:
    alone = found()
    wide = HEAD | {"suite": HEAD["suite"] | {"judges": HEAD["suite"]["judges"][1:]}, "classes": NAMES,
                   "rivals": {"base": list(NAMES), "edit:e": ["cat", "fox"], "edit:same": list(NAMES)}}  # fmt: skip
    lines = aggregate(handmade.data(), wide, texts())
    names = {m["arm"]: m["names"] for m in lines["metrics"] if m["metric"] == "clip_accuracy_top1"}
    assert names == {"base": 3, "edit:e": 2, "edit:same": 3}
    assert [m for m in lines["metrics"] if m["arm"] != "edit:e"] == [m for m in alone["metrics"] if m["arm"] != "edit:e"]


def test_the_head_has_the_names_of_each_arm() -> None:
    own = replace(fakes.suite(), concepts=(), classes="a photo of the {}")
    one, two = ([replace(p, target=target, wanted=(target,)) if p.target and p.group == "plain" else p
                 for p in fakes.PROMPTS if p.group in ("plain", "unrelated")] for target in ("cat", "dog"))  # fmt: skip
    arms = [Arm(name, "edit", name, Brush("m"), tuple(prompts), "0", handmade.EDIT) for name, prompts in
            (("edit:one", one), ("edit:two", two))]  # fmt: skip
    for given in (arms, arms[:1]):
        about = head.head(own, given, [fakes.NearJudge()], model={"id": "m", "sha256": "0"}, command="")
        assert about["rivals"]["edit:one"] == ["cat", "fox"]
    assert list(head.classes(own, arms)) == ["cat", "dog", "fox"]


def test_nothing_kept_is_said() -> None:
    bare = [replace(r, wanted=[]) if r.group in KEPT else r for r in handmade.data()]
    suite = HEAD["suite"] | {"judges": HEAD["suite"]["judges"][1:]}
    lines = aggregate(bare, HEAD | {"suite": suite, "classes": NAMES}, texts())
    assert not [m for m in lines["metrics"] if m["metric"].startswith(("clip_kept", "h_"))]
    (said,) = [line for line in lines["omitted"] if line.startswith("clip_kept_softmax")]
    assert "the column wanted" in said and "h_o" in said
    assert not [line for line in found().get("omitted", []) if line.startswith("clip_kept")]


def test_without_names_there_is_none() -> None:
    assert not [m for m in handmade.results()["metrics"] if m["metric"].startswith(("clip_kept", "clip_accuracy_"))]
