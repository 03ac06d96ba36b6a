"""Which parts of ErasePro's walk carry the edit: residual and update norm by layer, one column a variant.

    python benchmarks/ablation_erasepro.py --model emoji --target cat --anchor dog

progressive: text q, k, v from shallow to deep, then cross-attention K, V · deep: cross-attention alone · text: the
text encoder alone · kv: k and v alone on both sides · v_only: text, then cross-attention V alone. `text layer i` and
`cross` print the mean over the level's matrices; "last gap" is how far the K, V inputs of the target still are from
the anchor's, over all positions, before the cross-attention is edited.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.errors import EraseKitError
from erasekit.methods import make_config
from erasekit.methods.erasepro import SITES, ErasePro, align

MEASURES = ("residual_cast", "relative_update", "rank")


def level(depth: int, layers: int) -> str:
    return "cross" if depth == layers else f"text layer {depth}"


def levels(records: list[dict[str, Any]], layers: int) -> dict[str, dict[str, float]]:
    """Level -> the mean of each measure over its matrices."""
    return {
        level(depth, layers): {key: mean(r[key] for r in records if r["depth"] == depth) for key in MEASURES}
        for depth in sorted({r["depth"] for r in records})
    }


def last_gap(model: Any, walk: Any) -> float:
    """||X - Y|| / ||Y|| of the text output over the target's rows, at every position."""
    found, wanted = (model.tower.output(stream) for stream in (walk.source[: walk.count], walk.reference))
    return float((found - wanted).norm() / wanted.norm())


def run(model: Any, request: EraseRequest, parameters: dict[str, str]) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        walk = align(model, request, make_config(ErasePro, parameters))
    except EraseKitError as error:
        return {"error": str(error)}
    return {
        "levels": levels(walk.records, model.tower.depth),
        "last_gap": last_gap(model, walk),
        "seconds": time.perf_counter() - start,
        "warnings": walk.warnings,
    }


def table(results: dict[str, dict[str, Any]], key: str) -> str:
    names = list(dict.fromkeys(name for result in results.values() for name in result.get("levels", {})))
    names.sort(key=lambda name: (name == "cross", len(name), name))
    lines = [f"{key:<16}" + "".join(f"{variant:>13}" for variant in results)]
    for name in names:
        cells = [result.get("levels", {}).get(name, {}).get(key) for result in results.values()]
        lines.append(f"{name:<16}" + "".join(f"{'-' if cell is None else format(cell, '.2e'):>13}" for cell in cells))
    return "\n".join(lines)


def summary(results: dict[str, dict[str, Any]]) -> str:
    lines = []
    for key, form in (("last_gap", ".2e"), ("seconds", ".2f")):
        cells = (format(r[key], form) if key in r else "-" for r in results.values())
        lines.append(f"{key.replace('_', ' '):<16}" + "".join(f"{cell:>13}" for cell in cells))
    lines += [f"{name}: {line}" for name, r in results.items() for line in r.get("warnings", [])]
    lines += [f"{name}: {r['error']}" for name, r in results.items() if "error" in r]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji", help="emoji, a diffusers folder or a hub id")
    parser.add_argument("--target", nargs="+", default=["cat"])
    parser.add_argument("--anchor", nargs="+", default=["dog"])
    parser.add_argument("--retain", nargs="*", default=[])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters for every variant")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    model = backbone(options.model)
    request = EraseRequest.build(options.target, anchor=options.anchor, retain=options.retain)
    parameters = dict(item.split("=", 1) for item in options.set)
    results = {sites: run(model, request, parameters | {"sites": sites}) for sites in SITES}
    print("\n\n".join([*(table(results, key) for key in MEASURES), summary(results)]))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
