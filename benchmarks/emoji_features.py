"""What ErasePro's parameters and UCE do to features, without images: held-out gap and drift on the emoji world.

    python benchmarks/emoji_features.py [--model emoji] [--out FILE] [--docs [PAGE]]

For each pair of target and anchor, over 20 held-out complex prompts and plain prompts of 50 other concepts, at every
cross-attention key and value:
gap    ||edited(target prompt) - original(anchor prompt)|| / ||original(anchor prompt)||: what is left of the alignment
       in sentences that the edit never saw (the row "none" is the unedited model);
drift  ||edited(other) - original(other)|| / ||original(other)||: how far what should stay has moved.
Pairs of one token each, and, apart, pairs whose token counts differ. Prints, writes JSON; --docs writes README's table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from emoji_prompts import complex_prompts, other_prompts
from torch import Tensor

import erasekit
from erasekit import models
from erasekit.errors import EraseKitError, InfeasibleError
from erasekit.evaluation.arms import model_sha256
from erasekit.evaluation.shards import versions
from erasekit.files import write_whole

PAGE = Path(__file__).parents[1] / "README.md"
OUT = Path(__file__).parent / "results/emoji_features.json"
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
SETS = {"one token each": ALIKE, "unlike counts": UNLIKE}
SHOWN = {
    "no edit": "none", "ErasePro": "erasepro", "`erasepro:balanced`": "erasepro:balanced",
    "`erasepro:weighted`, `captions=emoji`": "erasepro:weighted, captions=emoji",
    "ErasePro, cross-attention alone (`sites=deep`)": "erasepro, deep only", "UCE": "uce",
}  # fmt: skip
"""The lines of README's table."""
Table = Mapping[str, Mapping[str, Any]]


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


def measure(pipe: Any, pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Variant -> mean gap, drift and KiB over the pairs (None where it refuses all); `refused`: how many it refuses."""
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


def _mean(rows: Sequence[tuple[float, float, int]], pairs: int) -> dict[str, Any]:
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)] if rows else [None] * 3
    found = dict(zip(("gap", "drift", "kib"), means, strict=True))
    return found | {"kib": means[2] / 1024 if rows else None, "refused": pairs - len(rows)}


def show(title: str, table: Table) -> None:
    """One set of pairs, a variant a line."""
    print(f"\n{title:<36}{'gap':>8}{'drift':>8}{'KiB':>8}{'refused':>9}")
    for name, row in table.items():
        cells = (_cell(row["gap"]), _cell(row["drift"]), _cell(row["kib"], 0))
        print(f"{name:<36}{''.join(f'{cell:>8}' for cell in cells)}{row['refused']:>9}")


def _cell(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def report(found: Mapping[str, Any]) -> str:
    """README's table, and what becomes of pairs whose token counts differ."""
    alike, unlike = (found["results"][title] for title in SETS)
    lines = ["| | gap | drift | tensors, KiB |", "|---|---|---|---|"]
    for title, name in SHOWN.items():
        row = alike[name]
        cells = ("0", "") if name == "none" else (_cell(row["drift"]), _cell(row["kib"], 0))
        lines.append(f"| {title} | {_cell(row['gap'])} | {' | '.join(cells)} |")
    pairs = ", ".join(f"{target} to {anchor}" for target, anchor in found["pairs"]["unlike counts"])
    own = unlike["erasepro"]
    return "\n".join([*lines, "", f"Between pairs whose token counts differ ({pairs}) ErasePro leaves a gap of "
                      f"{_cell(own['gap'])}, with a drift of {_cell(own['drift'])}."])  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Prints one table for pairs of one token each, one for pairs of unlike counts; both are in the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file (default: results/emoji_features.json)")
    parser.add_argument("--docs", type=Path, nargs="?", const=PAGE, metavar="PAGE", help="rewrite the table of README.md")
    args = parser.parse_args(words)
    made = {"model": args.model, "model_sha256": model_sha256(models.resolve(args.model)), "versions": versions()}
    pipe = erasekit.load(args.model)
    found = made | {"pairs": SETS, "results": {title: measure(pipe, pairs) for title, pairs in SETS.items()}}
    for title, table in found["results"].items():
        show(title, table)
    write_whole(args.out, (json.dumps(found, indent=1) + "\n").encode())
    if args.docs:
        from many_page import rewrite  # it reads this file

        rewrite(args.docs, {"features": report(found)})


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
