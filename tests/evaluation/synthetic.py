"""A made-up run: results, rows and drawn pictures, without a model, a judge or an edit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from erasekit.evaluation.grid import png
from erasekit.evaluation.statistics import wilson
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, names
from erasekit.worlds.emoji.scenes import Scene, render

JUDGE = "emoji-judge-v1[132]@0.5"
ARMS = {"base": "before", "edit:erasepro-cat": "ErasePro", "edit:uce-cat": "UCE", "random:erasepro-cat": "random control",
        "never:cat": "never knew cat"}  # fmt: skip
PROMPTS = [("plain", "a photo of a cat", "cat"), ("plain", "a cat in noto style", "cat"), ("synonym", "a kitten", "cat"),
           ("complex", "a scene with a cat next to a rocket in front of a blue background in noto style", "cat"),
           ("neighbour", "a photo of a fox", "fox"), ("neighbour", "a tiger, blob style", "tiger"),
           ("unrelated", "a photo of a castle", "castle")]  # fmt: skip
SHOWN = {"edit:erasepro-cat": "dog", "edit:uce-cat": "dog", "never:cat": "lion"}  # what is drawn instead of a cat
RATES = {"base": 58, "edit:erasepro-cat": 1, "edit:uce-cat": 9, "random:erasepro-cat": 55, "never:cat": 0}  # of 60
KEPT = {"base": 240, "edit:erasepro-cat": 231, "edit:uce-cat": 219, "random:erasepro-cat": 214, "never:cat": 226}
SITES = [{"site": f"t{i}", "group": "text.qkv", "depth": i, "residual": 1e-9, "residual_cast": 2e-7 * (i + 1),
          "relative_update": 0.02 + 0.013 * i} for i in range(6)]  # fmt: skip
SITES.append({"site": "c", "group": "cross.kv", "depth": 6, "residual": 1e-9, "residual_cast": 1e-7,
              "relative_update": 0.05})  # fmt: skip


def estimate(metric: str, arm: str, hits: int, n: int, **more: Any) -> dict[str, Any]:
    low, high = wilson(hits, n)
    return {"metric": metric, "arm": arm, "group": None, "target": None, "value": hits / n, "low": low, "high": high,
            "n": n, "interval": "wilson95", "unit": "share", "direction": "up", "judge": JUDGE, **more}  # fmt: skip


def metrics(rates: dict[str, int] = RATES) -> list[dict[str, Any]]:
    found = []
    for arm, shown in rates.items():
        found += [estimate("efficacy", arm, 60 - shown, 60), estimate("generality", arm, 116 - 2 * shown, 120),
                  estimate("specificity", arm, KEPT[arm], 240), estimate("fidelity", arm, KEPT[arm] - 4, 240),
                  estimate("target_rate", arm, shown, 60, target="cat", direction="down"),
                  estimate("efficacy", arm, 60 - shown, 60, group="plain"),
                  estimate("generality", arm, 58 - shown, 60, group="synonym"),
                  estimate("generality", arm, 58 - shown, 60, group="complex"),
                  estimate("specificity", arm, KEPT[arm] // 2 - 4, 120, group="neighbour"),
                  estimate("specificity", arm, KEPT[arm] // 2, 120, group="unrelated")]  # fmt: skip
        found.append({"metric": "clip_score", "arm": arm, "group": None, "target": None, "value": 0.61, "low": 0.6,
                      "high": 0.62, "n": 420, "interval": "bootstrap95 over prompts", "unit": "score", "direction": "up",
                      "judge": "clip[emoji]", "floor": 0.31, "ceiling": 0.72})  # fmt: skip
    return found


def edit(name: str, method: str) -> dict[str, Any]:
    return {"file": f"{name}.safetensors", "sha256": "ed" * 32, "method": method, "parameters": {"depth": 6},
            "targets": ["cat"], "anchors": ["dog"], "retain": ["fox", "a blue bird"], "seed": 7, "bytes": 80056,
            "self_check": {"modules": 20, "residual": 1.2e-6, "relative_update": 0.085, "sites": SITES}}  # fmt: skip


def arm(name: str) -> dict[str, Any]:
    kind, _, of = name.partition(":")
    made = edit(of, "erasepro" if "erasepro" in of else "uce") if kind == "edit" else None
    return {"arm": name, "kind": kind, "label": ARMS[name], "edit": made, "seconds": 71.3, "images": 420}


def results(**changes: Any) -> dict[str, Any]:
    """A valid document of schema version 1; top-level fields can be replaced."""
    return {
        "erasekit_results": 1,
        "created_by": {"erasekit": "0.1.0", "command": "erasekit evaluate --suite emoji/object --edit cat.safetensors "
                       "--out run", "versions": {"torch": "2.9.0", "diffusers": "0.41.0"}},
        "suite": {"name": "emoji/object", "version": 1, "digest": "5u" * 32, "title": "Objects of the emoji world",
                  "kind": "object",
                  "sampling": {"steps": 20, "guidance": 4.0, "scheduler": "DDIMScheduler", "eta": 0.0, "size": 64},
                  "judges": [{"name": JUDGE, "weights_sha256": "1a" * 32, "licence": "Apache-2.0",
                              "calibration": {"generated": {"recall": 0.94, "false_alarm": 0.0017}}},
                             {"name": "clip[emoji]", "weights_sha256": "2b" * 32, "licence": "Apache-2.0",
                              "calibration": {}}]},
        "model": {"id": "emoji", "sha256": "3c" * 32},
        "arms": [arm(name) for name in ARMS],
        "counts": {name: {"ok": 418, "failed": 2 * (name == "base"), "invalid": 2 * (name != "base")} for name in ARMS},
        "metrics": metrics(),
        "differences": [{"metric": "efficacy", "arm": "edit:erasepro-cat", "against": "base", "group": "plain",
                         "target": "cat", "value": 0.95, "low": 0.88, "high": 0.99, "n": 60, "p": 1e-12}],
        "rows": "rows.jsonl",
        "warnings": ["UCE was fitted with 20 retained concepts only."],
        **changes,
    }  # fmt: skip


def picture(word: str, seed: int) -> bytes:
    """A rendered scene as a PNG."""
    rng = np.random.default_rng(seed)
    place = (32 + 8 * int(rng.integers(-1, 2)), 32, 44)
    scene = Scene((names().index(word),), seed % len(STYLES), int(rng.integers(len(BACKGROUNDS))), (place,))
    return png(Image.fromarray((render(scene) * 255).astype(np.uint8)))


def rows(folder: Path, *, seeds: int = 4) -> list[dict[str, Any]]:
    """The rows of all arms; their pictures are written into the folder. One image failed, one is invalid."""
    found = []
    for name in ARMS:
        for number, (group, text, word) in enumerate(PROMPTS):
            for seed in range(seeds):
                found.append(_row(folder, name, f"{group}-{number}", group, text, word, seed))
    found[0] |= {"status": "failed", "judgements": {JUDGE: {"status": "failed", "reason": "the judge gave up"}}}
    found[-1] |= {"status": "invalid", "judgements": {JUDGE: {"status": "invalid", "reason": "constant image"}}}
    return found


def _row(folder: Path, arm: str, prompt: str, group: str, text: str, word: str, seed: int) -> dict[str, Any]:
    shown = SHOWN.get(arm, word) if word == "cat" else word
    image = f"images/{arm.replace(':', '-')}-{prompt}-{seed}.png"
    data = picture(shown, seed)
    (folder / image).parent.mkdir(exist_ok=True)
    (folder / image).write_bytes(data)
    said = {
        "status": "ok",
        "scores": {shown: 0.98},
        "found": [shown],
        "best": shown,
        "style": "noto",
        "background": "blue",
    }
    return {"arm": arm, "prompt": prompt, "group": group, "text": text, "target": "cat" if word == "cat" else "",
            "wanted": [word], "style": None, "background": None, "seed": seed, "image": image,
            "sha256": hashlib.sha256(data).hexdigest(), "status": "ok",
            "judgements": {JUDGE: said, "clip[emoji]": {"status": "ok", "embedding": "", "dim": 64}}}  # fmt: skip
