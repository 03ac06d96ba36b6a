"""Distances to real images: naive loops, a floor of real images among themselves, and names that never mix."""

from __future__ import annotations

import copy
import itertools
import json
from functools import cache

import handmade
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handmade import HEAD, NEAR, one, vector

from erasekit.errors import EraseKitError
from erasekit.evaluation import results as checked
from erasekit.evaluation.aggregate import aggregate
from erasekit.evaluation.judges.base import packed
from erasekit.evaluation.real_distances import SPLITS
from erasekit.evaluation.similarity import rng

SHA = "5a" * 32
ARMS = ("base", "edit:e", "edit:same")


def stored(count: int) -> list[str]:
    drawn = torch.rand(count, 6, generator=torch.Generator().manual_seed(7)) + torch.tensor([0.4, 0, 0, 0.2, 0, 0])
    return [packed(F.normalize(one, dim=0))["embedding"] for one in drawn]


def given(count: int = 40, **more) -> tuple[dict, dict]:
    """The head and `measures.json` of a run with so many real images."""
    facts = {"name": "coco", "sha256": SHA, "images": count}
    return {**HEAD, "real": facts}, {"real": {**facts, "parts": [], "spaces": {NEAR: stored(count)}, **more}}


@cache
def found(count: int = 40) -> dict:
    """Read it only."""
    return made(count)


def made(count: int = 40, rows=None, **more) -> dict:
    head, measures = given(count, **more)
    return checked.validate(aggregate(rows or handmade.data(), head, handmade.texts(), measures))


def real(count: int = 40) -> np.ndarray:
    rows = [handmade.row("", "plain", 0, 0, [], torch.zeros(6)) for _ in range(count)]
    for r, text in zip(rows, stored(count), strict=True):
        r.judgements[NEAR]["embedding"] = text
    return np.stack([vector(r) for r in rows])


def ours(arm: str) -> np.ndarray:
    return np.stack([vector(r) for r in handmade.data() if r.arm == arm and r.group in ("unrelated", "style")])


def kid(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    own = [np.mean([kernel(x, y) for x, y in itertools.permutations(part, 2)]) for part in (a, b)]
    return own[0] + own[1] - 2 * np.mean([kernel(x, y) for x in a for y in b])


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    s1, s2 = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(s1 @ s2).real, 0))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * roots.sum())


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    def mean(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.mean([np.exp(-((x - y) ** 2).sum() / 200) for x in p for y in q]))

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


NAIVE = {"kid": ("KID", kid), "frechet": ("Fréchet", frechet), "mmd": ("CMMD", mmd)}


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("arm", ARMS)
def test_every_arms_distance_against_loops(name: str, arm: str) -> None:
    entry, drawn = one(found(), f"{name}_real({NEAR})", arm), ours(arm)
    assert entry["value"] == pytest.approx(NAIVE[name][1](drawn, real()), abs=2e-9)
    assert (entry["n"], entry["real"], entry["judge"], entry["direction"]) == (len(drawn), SHA, NEAR, "down")
    assert (entry["low"], entry["high"], entry["interval"], entry["group"]) == (None, None, "", None)
    assert entry["note"].startswith("to 40 real images, coco; ") and ("sd" in entry) == (name == "kid")


@pytest.mark.parametrize("name", NAIVE)
def test_the_floor_is_of_real_images_among_themselves(name: str) -> None:
    kind, naive = NAIVE[name]
    values, n = real(), len(ours("edit:e"))
    orders = [rng("real", kind, n, split).permutation(len(values)) for split in range(SPLITS)]
    expected = np.mean([naive(values[order[:n]], values[order[n:]]) for order in orders])
    entry = one(found(), f"{name}_real({NEAR})", "edit:e")
    assert entry["floor"] == pytest.approx(expected, abs=2e-9) and abs(entry["floor"]) < entry["value"]
    halves = one(found(35), f"{name}_real({NEAR})", "edit:e")
    assert halves["floor"] is not None, "17 against 18: half, where there are no two sets as large as the arm's"
    assert one(found(31), f"{name}_real({NEAR})", "edit:e")["floor"] is None, "15 are too few for a distance"


def test_of_references_each_prompt_is_drawn_once_before_any_is_twice() -> None:
    """As an arm draws them: else the floor of references would lie above the distance of a perfect model."""
    values, n, parts = real(), len(ours("edit:e")), [i % 20 for i in range(40)]
    expected = []
    for split in range(SPLITS):
        order = list(rng("real", "CMMD", n, split).permutation(len(values)))
        first = [i for k, i in enumerate(order) if parts[i] not in {parts[j] for j in order[:k]}]
        assert len(first) == 20 > n
        expected.append(mmd(values[first[:n]], values[[i for i in order if i not in first[:n]]]))
    entry = one(made(parts=parts), f"mmd_real({NEAR})", "edit:e")
    assert entry["floor"] == pytest.approx(np.mean(expected), abs=2e-9)
    assert entry["floor"] != one(found(), f"mmd_real({NEAR})", "edit:e")["floor"]


def test_the_unedited_models_is_the_distance_of_what_changes_nothing() -> None:
    for name in NAIVE:
        same, base = (one(found(), f"{name}_real({NEAR})", arm) for arm in ("edit:same", "base"))
        assert {**same, "arm": "", "sd": 0} == {**base, "arm": "", "sd": 0}


def test_distances_to_the_unedited_model_stay_as_they_are() -> None:
    """The document without what is of real images is that of a run without them."""
    document = found()
    own = [m for m in document["metrics"] if m["metric"].partition("(")[0].endswith("_real")]
    assert len(own) == 3 * len(ARMS) and document["real"] == given()[0]["real"]
    rest = {**copy.deepcopy(document), "metrics": [m for m in document["metrics"] if m not in own]}
    del rest["real"]
    assert json.dumps(rest, sort_keys=True) == json.dumps(handmade.results(), sort_keys=True)
    assert not {m["metric"] for m in own} & {"fid_real", "kid_real", "cmmd_real"}, "bare names are Inception's and CLIP L's"


def test_too_few_of_either_are_omitted_and_said() -> None:
    few = [r for r in handmade.data() if r.group != "unrelated" or r.arm != "edit:e" or int(r.prompt[-1]) < 5]
    document = made(rows=few)
    assert {m["arm"] for m in document["metrics"] if m["metric"].startswith("kid_real")} == {"base", "edit:same"}
    own = [line for line in document["omitted"] if "_real" in line]
    assert own == [f"{name}_real({NEAR}) is not stated: 15 unrelated images, and 16 are needed"
                   for name in ("frechet", "kid", "mmd")]  # fmt: skip
    head, measures = given(9)
    assert aggregate(handmade.data(), head, handmade.texts(), measures)["omitted"] == [
        f"{name}_real({NEAR}) is not stated: 9 real images, and 16 are needed" for name in ("frechet", "kid", "mmd")
    ]


def test_where_nothing_embeds_images_that_is_said() -> None:
    head, measures = given()
    measures["real"]["spaces"] = {}
    alone = copy.deepcopy(head)
    alone["suite"]["judges"] = alone["suite"]["judges"][:1]
    said = aggregate(handmade.data(), alone, {}, measures)["omitted"]
    assert any("none of the suite's judges embeds images, and no weights of Inception" in line for line in said)


def test_inceptions_come_from_the_measures() -> None:
    line = {"arm": "base", "metric": "fid_real", "value": 14.04, "n": 30000, "sd": None, "note": "to 40 real images, coco",
            "floor": 1.5}  # fmt: skip
    document = made(inception={"name": "inception-2015", "weights_sha256": "1", "distances": [line],
                                "omitted": ["kid_real is not stated: few"]})  # fmt: skip
    entry = one(document, "fid_real", "base")
    assert (entry["value"], entry["n"], entry["floor"], entry["judge"]) == (14.04, 30000, 1.5, "inception-2015")
    assert entry["real"] == SHA and "kid_real is not stated: few" in document["omitted"]
    assert not [m for m in document["metrics"] if m["metric"] == "fid_real" and m["arm"] != "base"]


def test_measures_of_other_real_images_are_refused() -> None:
    head, measures = given()
    for wrong in ({}, {"real": {**measures["real"], "sha256": "0"}}, {"real": {**measures["real"], "spaces": {}}}):
        with pytest.raises(EraseKitError, match=r"measures.json is of other real images than run.json") as error:
            aggregate(handmade.data(), head, handmade.texts(), wrong)
        assert "\n" not in str(error.value)
