"""What ErasePro's parameters and UCE do to features, without images: held-out gap and drift on the emoji world.

    python benchmarks/emoji_features.py [--model emoji] [--json FILE]

For each pair of target and anchor, over 20 held-out complex prompts and plain prompts of 50 other concepts, at every
cross-attention key and value:
gap    ||edited(target prompt) - original(anchor prompt)|| / ||original(anchor prompt)||: what is left of the alignment
       in sentences that the edit never saw (the row "none" is the unedited model);
drift  ||edited(other) - original(other)|| / ||original(other)||: how far what should stay has moved.
Pairs of one token each, and, apart, pairs whose token counts differ.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from emoji_prompts import complex_prompts, other_prompts
from torch import Tensor

import erasekit
from erasekit.errors import EraseKitError, InfeasibleError

ALIKE = (
    ("cat", "dog"),
    ("wolf", "rabbit"),
    ("apple", "lemon"),
    ("car", "bus"),
    ("rocket", "balloon"),
    ("santa", "baby"),
)
UNLIKE = (("castle", "house"), ("hot dog", "pizza"), ("fire engine", "bus"), ("guitar", "umbrella"))
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "erasepro": ("erasepro", {}),
    "erasepro, empty prompt kept": ("erasepro", {"keep_empty": True}),
    "erasepro, short templates": ("erasepro", {"templates": "short", "on_conflict": "average"}),
    "erasepro, covariance": ("erasepro", {"covariance": True}),
    "erasepro:balanced": ("erasepro:balanced", {}),
    "erasepro:weighted, captions=emoji": ("erasepro:weighted", {"captions": "emoji"}),
    "erasepro, ridge 1e-3": ("erasepro", {"ridge": 1e-3}),
    "erasepro, content positions": ("erasepro", {"positions": "content"}),
    "erasepro, deep only": ("erasepro", {"sites": "deep"}),
    "erasepro, text only": ("erasepro", {"sites": "text"}),
    "erasepro, cross V only": ("erasepro", {"sites": "v_only"}),
    "uce": ("uce", {}),
    "uce, last token": ("uce", {"tokens": "last"}),
}


@torch.no_grad()
def outputs(pipe: Any, prompts: Sequence[str]) -> list[Tensor]:
    """Every cross-attention key and value of the prompts, one tensor a matrix."""
    ids = pipe.tokenizer(list(prompts), padding="max_length", max_length=77, return_tensors="pt").input_ids
    text = pipe.text_encoder(input_ids=ids).last_hidden_state
    names = ("attn2.to_k", "attn2.to_v")
    return [module(text) for name, module in pipe.unet.named_modules() if name.endswith(names)]


def apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The relative distance over all matrices together."""
    difference = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    return (difference / sum(float(b.square().sum()) for b in wanted)) ** 0.5


def measure(pipe: Any, pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Variant -> mean gap, drift and bytes over the pairs; a pair that a variant refuses is counted in `refused`."""
    rows: dict[str, list[tuple[float, float, int]]] = {"none": []} | {name: [] for name in VARIANTS}
    for target, anchor in pairs:
        asked = [p.text for p in complex_prompts(target, anchor, target, 20)]
        wanted = outputs(pipe, [p.text for p in complex_prompts(target, anchor, anchor, 20)])
        others = [p.text for p in other_prompts(target, anchor, 50)]
        before = outputs(pipe, others)
        rows["none"].append((apart(outputs(pipe, asked), wanted), 0.0, 0))
        for name, (method, parameters) in VARIANTS.items():
            try:
                edit = erasekit.erase(pipe, target, anchor=anchor, method=method, **parameters)
            except InfeasibleError:
                continue
            with edit.applied(pipe):
                rows[name].append(
                    (apart(outputs(pipe, asked), wanted), apart(outputs(pipe, others), before), edit.nbytes)
                )
    return {name: _mean(found, len(pairs)) for name, found in rows.items()}


def _mean(rows: Sequence[tuple[float, float, int]], pairs: int) -> dict[str, float]:
    gap, drift, size = (sum(column) / len(rows) for column in zip(*rows, strict=True)) if rows else (float("nan"),) * 3
    return {"gap": gap, "drift": drift, "kib": size / 1024, "refused": pairs - len(rows)}


def main() -> None:
    """Prints one table for pairs of one token each, one for pairs of unlike counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pipe = erasekit.load(args.model)
    results = {"one token each": measure(pipe, ALIKE), "unlike counts": measure(pipe, UNLIKE)}
    for title, table in results.items():
        print(f"\n{title:<30}{'gap':>8}{'drift':>8}{'KiB':>8}{'refused':>9}")
        for name, row in table.items():
            print(f"{name:<30}{row['gap']:>8.3f}{row['drift']:>8.3f}{row['kib']:>8.0f}{row['refused']:>9}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
