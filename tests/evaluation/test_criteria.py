"""EraseEval's criteria from rows: the oracles of its paper, naive loops, and labels that name every substitute."""

from __future__ import annotations

from dataclasses import replace

import handmade
import numpy as np
import pytest
from handmade import HEAD, NEAR, RULE, one, vector

from erasekit.evaluation.aggregate import aggregate
from erasekit.evaluation.rows import Row

BASE = [r for r in handmade.data() if r.arm == "base"]
NONE = {RULE: {"status": "ok", "found": ["fox"]}}
ALL = {RULE: {"status": "ok", "found": ["cat"]}}


def with_implicit(rows: list[Row], verdict: dict | None = None) -> list[Row]:
    """The same rows, complex prompts as implicit ones; the detector says `verdict` of every image that asks."""
    made = [replace(r, group="implicit") if r.group == "complex" else r for r in rows]
    return [replace(r, status="ok", judgements=r.judgements | verdict) if verdict and r.target else r for r in made]


def found(rows: list[Row], arm: str = "edit:e") -> dict:
    lines = aggregate(rows, HEAD, handmade.texts())["metrics"]
    return {m["metric"].removesuffix(f"({NEAR})"): m for m in lines if m["arm"] == arm}


def test_m1_is_a_mean_over_pairs_with_zeros_where_the_target_is_found() -> None:
    rows = list(handmade.data())
    entry = one(handmade.results(), f"m1-local({NEAR})", "edit:e")
    prompts = []
    for number in range(6):
        before = [r for r in BASE if r.prompt == f"plain/{number}"]
        after = [r for r in rows if r.arm == "edit:e" and r.prompt == f"plain/{number}" and r.status == "ok"]
        cosines = [0.0 if handmade.says(e, "cat") else float(vector(o) @ vector(e)) for o in before for e in after]
        prompts += [np.mean(cosines)] if after else []
    assert entry["value"] == pytest.approx(np.mean(prompts), abs=1e-8)
    assert "captions" in entry["substitute"] and entry["floor"] < 1 and entry["ceiling"] < 1
    assert entry["low"] < entry["value"] < entry["high"]


def test_an_arm_that_is_the_unedited_model_where_the_detector_never_fires() -> None:
    rows = with_implicit([*BASE, *(replace(r, arm="edit:e") for r in BASE)], NONE)
    lines = found(rows)
    assert lines["m3-local"]["value"] == lines["m4-local"]["value"] == 1
    for name, group in (("m1-local", "plain"), ("m2-local", "implicit")):
        own = [[vector(r) for r in rows if r.arm == "base" and r.prompt == p]
               for p in dict.fromkeys(r.prompt for r in rows if r.group == group)]  # fmt: skip
        selves = [np.mean([a @ b for a in images for b in images]) for images in own]
        others = [np.mean([a @ b for a in images[:1] for b in images[1:]]) for images in own]
        assert lines[name]["value"] == pytest.approx(np.mean(selves), abs=1e-8)
        assert lines[name]["ceiling"] == pytest.approx(np.mean(others), abs=1e-8)
        means = [np.mean(images, 0) for images in own]
        pairs = [means[i] @ means[j] for i in range(len(means)) for j in range(i)]
        assert lines[name]["floor"] == pytest.approx(np.mean(pairs))
    four = [lines[f"m{k}-local"]["value"] for k in (1, 2, 3, 4)]
    assert lines["eraseeval_harmonic-local"]["value"] == pytest.approx(4 / sum(1 / v for v in four), abs=1e-8)
    assert lines["eraseeval_geometric-local"]["value"] == pytest.approx(np.prod(four) ** 0.25, abs=1e-8)
    assert lines["eraseeval_harmonic-local"]["substitute"] == "our integration, with local substitutes"


def test_always_present_gives_zero_and_pulls_the_mean_down() -> None:
    lines = found(with_implicit([*BASE, *(replace(r, arm="edit:e") for r in BASE)], ALL))
    assert lines["m1-local"]["value"] == lines["m2-local"]["value"] == lines["eraseeval_harmonic-local"]["value"] == 0


def test_m3_is_the_ratio_of_mean_cosines_and_m4_of_distances() -> None:
    rows = list(handmade.data())
    texts = {words: np.frombuffer(__import__("base64").b64decode(v), "<f2").astype(float)
             for words, v in handmade.texts()[NEAR].items()}  # fmt: skip
    base = {r.shot: r for r in BASE}
    kept = [r for r in rows if r.arm == "edit:e" and r.group == "unrelated" and r.status == "ok"]

    def cos(r: Row) -> float:
        text = texts[f"A photo depicts {r.text}"]
        return float(vector(r) @ text / np.linalg.norm(text))

    ratio = np.mean([cos(r) for r in kept]) / np.mean([cos(base[r.shot]) for r in kept])
    entry = one(handmade.results(), f"m3-local({NEAR})", "edit:e")
    odd = [cos(replace(r, text=s.text)) for r in kept for s in kept if r.prompt != s.prompt]
    low = np.mean(odd) / np.mean([cos(base[r.shot]) for r in kept])
    assert entry["floor"] == pytest.approx(min(1, low), abs=1e-6) and entry["ceiling"] == 1
    assert (entry["raw"], entry["n"]) == (pytest.approx(ratio, abs=1e-6), len(kept)) and entry["value"] == min(
        1, entry["raw"]
    )
    far = [
        replace(r, arm="edit:e", judgements=r.judgements | {NEAR: base["plain/0", 0].judgements[NEAR]}) for r in BASE
    ]
    assert found([*BASE, *far])["m4-local"]["value"] < 1, "one and the same picture everywhere is far from the others"


def test_what_was_not_drawn_is_left_out() -> None:
    lines = found(list(handmade.data()))
    assert "m2-local" not in lines and "eraseeval_harmonic-local" not in lines, "no implicit prompt"
    few = [r for r in handmade.data() if r.group != "unrelated" or int(r.prompt[-1]) < 4]
    assert "m4-local" not in found(few) and "m3-local" in found(few)
