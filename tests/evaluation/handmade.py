"""Hand-made rows of three arms with two judges, for the tests of the aggregates."""

from __future__ import annotations

import base64
import random
from dataclasses import replace
from functools import cache

import fakes
import numpy as np
import torch
import torch.nn.functional as F

from erasekit.evaluation import results as checked
from erasekit.evaluation.aggregate import aggregate
from erasekit.evaluation.judges.base import packed
from erasekit.evaluation.rows import Row

RULE, NEAR = "rule-v1[3]@0.5", "near-v1"
EDIT = {"file": "e.safetensors", "sha256": "0" * 64, "method": "uce", "parameters": {}, "targets": ["cat"],
        "anchors": ["dog"], "bytes": 1, "self_check": {}}  # fmt: skip
HEAD = {
    "created_by": {"erasekit": "0", "command": "", "versions": {}},
    "suite": {"name": "tiny", "version": 1, "digest": "d", "title": "", "kind": "object", "sampling": {}, "judges": [
        {"name": name, "weights_sha256": "0", "licence": "", "calibration": {}} for name in (RULE, NEAR)]},
    "model": {"id": "tiny", "sha256": "0"},
    "arms": [{"arm": "base", "kind": "base", "label": "base", "edit": None},
             {"arm": "edit:e", "kind": "edit", "label": "e", "edit": EDIT},
             {"arm": "edit:same", "kind": "edit", "label": "same", "edit": EDIT}],
    "labels": {"cat": ["cat"]},
    "anchors": {name: {"cat": {"name": "dog", "label": "dog"}} for name in ("edit:e", "edit:same")},
    "twins": {"plain/0": "a photo", "plain/1": "a picture"},
    "warnings": [],
}  # fmt: skip
ASKS = {"plain": 6, "synonym": 4, "complex": 3}
KEPT = {"neighbour": 4, "unrelated": 6}


def row(
    arm: str, group: str, number: int, seed: int, found: list[str], vector: torch.Tensor, status: str = "ok"
) -> Row:
    asks = group in ASKS
    style = random.Random(f"{arm}{number}").choice(["noto", "flat"])
    said = {"status": status, "found": found, "style": style, "background": "blue"}
    said = said if status == "ok" else {"status": status, "reason": "it is so"}
    return Row(arm, f"{group}/{number}", group, f"{group} text {number}", "cat" if asks else "", ["cat"] if asks else ["fox"],
               "noto" if number % 2 else None, None, seed, "x.png", "0", status,
               {RULE: said, NEAR: {"status": "ok", **packed(vector)}})  # fmt: skip


def drawn(arm: str, chance: random.Random, *, gone: float, lost: float, bad: float = 0.0) -> list[Row]:
    """Rows of an arm in which the target is found with rate 1 - gone, and what is to be kept is lost with rate lost."""
    made = []
    for group, prompts in {**ASKS, **KEPT}.items():
        for number in range(prompts):
            for seed in range(3):
                shown = "cat" if group in ASKS else "fox"
                missing = chance.random() < (gone if group in ASKS else lost)
                found = (["dog"] if group in ASKS and chance.random() < 0.7 else []) if missing else [shown]
                vector = F.normalize(torch.tensor([chance.random() + 0.1 for _ in range(6)]), dim=0)
                status = "ok" if chance.random() >= bad else chance.choice(["failed", "invalid"])
                made.append(row(arm, group, number, seed, found, vector, status))
    return made


@cache
def data() -> tuple[Row, ...]:
    """The unedited model, an edit that erases and loses much, and one that changes nothing."""
    base = drawn("base", random.Random(0), gone=0.2, lost=0.1)
    edited = drawn("edit:e", random.Random(1), gone=0.9, lost=0.3, bad=0.15)
    return (*base, *edited, *(replace(r, arm="edit:same") for r in base))


@cache
def texts() -> dict:
    words = {f"A photo depicts {w}" for w in [r.text for r in data()] + ["a photo", "a picture", "cat", "dog"]}
    vectors = fakes.NearJudge().text_embeddings(sorted(words))
    return {NEAR: {word: packed(v)["embedding"] for word, v in zip(sorted(words), vectors, strict=True)}}


@cache
def results() -> dict:
    """Read it only."""
    return checked.validate(aggregate(data(), HEAD, texts()))


def vector(r: Row) -> np.ndarray:
    """The unit vector that the CLIP judge stored, decoded without the code under test."""
    stored = np.frombuffer(base64.b64decode(r.judgements[NEAR]["embedding"]), "<f2").astype(float)
    return stored / np.linalg.norm(stored)


def one(found: dict, metric: str, arm: str, group: str | None = None, target: str | None = None) -> dict:
    (entry,) = [m for m in found["metrics"]
                if (m["metric"], m["arm"], m["group"], m["target"]) == (metric, arm, group, target)]  # fmt: skip
    return entry


def says(r: Row, word: str) -> bool:
    return word in r.judgements[RULE].get("found", [])
