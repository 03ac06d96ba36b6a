"""The numbers of `irece_cost` as Markdown, and the CLIP score of its pictures.

python benchmarks/irece_page.py --results irece_cost.json [--page PAGE]     # docs/irece.md again from the JSON
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

PAGE = Path(__file__).parents[1] / "docs/irece.md"
BLOCK = "irece cost"


def clip_score(pixels: Tensor, prompts: Sequence[str]) -> dict[str, float | int | None]:
    """The mean of 2.5 max(cos, 0) of each picture (n, h, w, 3) in 0..1 and its prompt, by the emoji world's CLIP, over the `of`
    pictures that it can judge; None without one."""
    from erasekit.evaluation import judges
    from erasekit.evaluation.metrics.clip import decode, score

    judge = judges.get("emoji-clip")
    judged = judge.judge(pixels.permute(0, 3, 1, 2), list(prompts))
    kept = [
        (decode(one.data["embedding"]), prompt)
        for one, prompt in zip(judged, prompts, strict=True)
        if one.status == "ok"
    ]
    if not kept:
        return {"mean": None, "of": 0}
    texts = judges.text_embeddings(judge, [prompt for _, prompt in kept]).numpy()
    return {"mean": float(score(np.stack([vector for vector, _ in kept]), texts).mean()), "of": len(kept)}


def table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """One line for each setting."""
    lines = ["| | s a picture | pixels of others | changed | CLIP score | asked for and found | target back by inversion |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, found in rows:
        changed, right, target = (_rate(found[key]) for key in ("changed", "right", "target"))
        mean = found.get("clip", {}).get("mean")  # results of before pictures had a score have none
        score = "-" if mean is None else f"{mean:.3f}"
        cells = [name, f"{found['seconds']:.3f}", f"{found['difference']:.4f}", changed, score, right, target]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rewrite_page(found: Mapping[str, Any], page: Path) -> None:
    """Puts the results' table, under what it was measured on, into the page's block."""
    from many_page import rewrite

    s = found["settings"]
    below = s["method"] if s["edit"] == "None" else Path(s["edit"]).name
    said = f"{s['model']}, {s['target']}, {s['images']} pictures of each kind; the edit below IRECE: {below}."
    said += f" The gate's margin is {s['margin']}." if s.get("margin") is not None else ""
    rewrite(page, {BLOCK: f"{said}\n\n{table(list(found['rows'].items()))}"})


def _rate(one: Mapping[str, Any]) -> str:
    return f"{one['hits']}/{one['of']} ({one['low']:.0%}–{one['high']:.0%})"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(words)
    rewrite_page(json.loads(options.results.read_text()), options.page)


if __name__ == "__main__":
    main()
