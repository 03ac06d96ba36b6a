"""Distances to the unedited model's images: naive loops, what is refused, and names that never mix spaces."""

from __future__ import annotations

from dataclasses import replace

import handmade
import numpy as np
import pytest
from handmade import ASKS, HEAD, NEAR, one, vector

from erasekit.errors import EraseKitError
from erasekit.evaluation.aggregate import aggregate
from erasekit.evaluation.metrics import METRICS

BASE = {r.shot: r for r in handmade.data() if r.arm == "base"}
OURS = [r for r in handmade.data() if r.arm == "edit:e"]


def test_image_distance_is_one_minus_the_cosine_of_the_pair() -> None:
    for end, asks in (("e", True), ("u", False)):
        values = [1 - float(vector(r) @ vector(BASE[r.shot])) for r in OURS if (r.group in ASKS) == asks]
        entry = one(handmade.results(), f"image_distance_{end}({NEAR})", "edit:e")
        assert entry["value"] == pytest.approx(np.mean(values), rel=1e-9) and entry["n"] == len(values)
        assert entry["low"] < entry["value"] < entry["high"] and entry["judge"] == NEAR
        same = one(handmade.results(), f"image_distance_{end}({NEAR})", "edit:same")
        assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    plain = one(handmade.results(), f"image_distance_e({NEAR})", "edit:e", "plain")
    assert plain["n"] == sum(r.group == "plain" for r in OURS)


def test_image_distance_stands_beside_other_prompts_and_other_seeds() -> None:
    entry = one(handmade.results(), f"image_distance_u({NEAR})", "edit:e", "unrelated")
    by_prompt: dict[str, list[np.ndarray]] = {}
    for r in (r for r in OURS if r.group == "unrelated"):
        by_prompt.setdefault(r.prompt, []).append(vector(BASE[r.shot]))
    groups = list(by_prompt.values())
    apart = [np.mean([1 - float(x @ y) for x in a for y in b]) for a in groups for b in groups if a is not b]
    assert entry["floor"] == pytest.approx(np.mean(apart), abs=1e-8)
    halves = [(g[: len(g) // 2], g[len(g) // 2 :]) for g in groups]
    again = [np.mean([1 - float(x @ y) for x in a for y in b]) for a, b in halves]
    assert entry["ceiling"] == pytest.approx(np.mean(again), abs=1e-8)
    single = [r for r in handmade.data() if r.seed == 0]
    assert one(aggregate(single, HEAD, handmade.texts()), f"image_distance_u({NEAR})", "edit:e")["ceiling"] is None


def test_sets_are_those_of_unrelated_prompts() -> None:
    kept = [r for r in OURS if r.group in ("unrelated", "style")]
    a, b = (np.stack([vector(r) for r in rows]) for rows in (kept, [BASE[r.shot] for r in kept]))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([np.exp(-((p - q) ** 2).sum() / 200) for p in x for q in y]))

    mmd = one(handmade.results(), f"mmd({NEAR})", "edit:e")
    assert mmd["value"] == pytest.approx(1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)), abs=1e-8)
    assert (mmd["n"], mmd["low"], mmd["interval"]) == (len(kept), None, "")
    frechet = one(handmade.results(), f"frechet({NEAR})", "edit:e")
    assert frechet["value"] > 0 and "biased upward" in frechet["note"]
    assert one(handmade.results(), f"kid({NEAR})", "edit:e")["sd"] > 0
    for name in ("frechet", "mmd"):
        assert one(handmade.results(), f"{name}({NEAR})", "edit:same")["value"] == 0
    names = {m["metric"] for m in handmade.results()["metrics"]}
    assert not names & {"fid", "kid", "cmmd", "lpips_e", "lpips_u"}, "bare names belong to spaces that were not at hand"


def test_the_unedited_model_has_no_distance_to_itself() -> None:
    own = {m["metric"].partition("(")[0] for m in handmade.results()["metrics"] if m["arm"] == "base"}
    assert not own & {"image_distance_e", "image_distance_u", "frechet", "kid", "mmd"}


def test_too_few_images_are_omitted_and_said() -> None:
    few = [r for r in handmade.data() if r.group != "unrelated" or int(r.prompt[-1]) < 5]  # 15 pairs
    found = aggregate(few, HEAD, handmade.texts())
    assert not [m for m in found["metrics"] if m["metric"].startswith(("kid", "mmd", "frechet"))]
    assert found["omitted"] == [f"{name}({NEAR}) is not stated: 15 pairs of images, and 16 are needed"
                                for name in ("frechet", "kid", "mmd")]  # fmt: skip
    assert "omitted" not in handmade.results()


def measured() -> tuple[list, dict]:
    """Rows whose images have hashes of their own, and a distance for every pair."""
    rows = [replace(r, sha256=f"{i:064x}") for i, r in enumerate(handmade.data())]
    base = {r.shot: r for r in rows if r.arm == "base"}
    pairs = {
        f"{base[r.shot].sha256}-{r.sha256}": 0.25 + r.seed / 8 for r in rows if r.arm != "base" and r.status == "ok"
    }
    return rows, {"lpips": {"name": "LPIPS-alex-v0.1@64-short", "weights_sha256": "0", "pairs": pairs},
                  "inception": {"name": "inception-2015", "weights_sha256": "1", "omitted": ["kid is not stated: few"],
                                "distances": [{"arm": "edit:e", "metric": "fid", "value": 3.5, "n": 18, "sd": None,
                                               "note": "biased"}]}}  # fmt: skip


def test_lpips_and_fid_come_from_the_measures() -> None:
    rows, measures = measured()
    found = aggregate(rows, HEAD, handmade.texts(), measures)
    asked = [r for r in rows if r.arm == "edit:e" and r.group in ASKS and r.status == "ok"]
    entry = one(found, "lpips_e(alex-v0.1@64-short)", "edit:e")
    assert entry["value"] == pytest.approx(np.mean([0.25 + r.seed / 8 for r in asked])) and entry["n"] == len(asked)
    assert entry["judge"] == "LPIPS-alex-v0.1@64-short" and entry["direction"] == METRICS["lpips_e"].direction == "up"
    assert one(found, "lpips_u(alex-v0.1@64-short)", "edit:e")["direction"] == "down"
    fid = one(found, "fid", "edit:e")
    assert (fid["value"], fid["n"], fid["judge"], fid["note"]) == (3.5, 18, "inception-2015", "biased")
    assert found["omitted"] == ["kid is not stated: few"]


def test_measures_of_other_images_are_refused() -> None:
    rows, measures = measured()
    measures["lpips"]["pairs"].popitem()
    with pytest.raises(EraseKitError, match=r"measures.json is of other images"):
        aggregate(rows, HEAD, handmade.texts(), measures)
