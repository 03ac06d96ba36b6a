"""A picture of a hundred concepts erased at once: every tenth prompt of `many_concepts.py`, by its seed, edit by edit.

    python benchmarks/many_picture.py                            # writes docs/many_concepts.png, about 2 minutes
    python benchmarks/many_picture.py --count 50 --methods erasepro:weighted:captions=emoji speed --out speed.png

Left the targets, right what is retained; one row without an edit and one for each method. Nothing is picked: the prompts
are the first, the eleventh and so on of those that the table's rates are of.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from emoji_prompts import Prompt
from many_fits import Arm, fit
from many_sets import COUNTS, other_prompts, target_prompts, work
from PIL import Image, ImageDraw, ImageFont

import erasekit
from erasekit import models
from erasekit.errors import EraseKitError, InfeasibleError
from erasekit.evaluation import drawing
from erasekit.evaluation.grid import png
from erasekit.evaluation.suites import Sampling
from erasekit.files import write_whole

EVERY, TILE, GAP, HEAD = 10, 80, 14, 22
METHODS = ("erasepro:crowd:captions=emoji", "uce")


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, choices=COUNTS, default=100)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD[:PRESET][:KEY=VALUE]")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/many_concepts.png")
    return parser.parse_args(words)


def draw(pipe: Any, arm: Arm, prompts: Sequence[Prompt], sampling: Sampling) -> list[Image.Image]:
    """Every tenth prompt's image, with the seed that it has in the table."""
    texts, seeds = [p.text for p in prompts[::EVERY]], list(range(0, len(prompts), EVERY))
    with arm.edit.applied(pipe) if arm.edit is not None else nullcontext():
        return [Image.fromarray(pixels.numpy()) for pixels in drawing.draw(pipe, texts, seeds, sampling)]


def sheet(rows: Sequence[tuple[str, list[Image.Image], list[Image.Image]]], heads: tuple[str, str]) -> Image.Image:
    """Rows of (label, targets, others) under two heads."""
    width = len(rows[0][1]) * TILE
    canvas = Image.new("RGB", (2 * width + GAP, HEAD + len(rows) * (TILE + HEAD)), "white")
    pen = ImageDraw.Draw(canvas)
    for x, head in zip((0, width + GAP), heads, strict=True):
        pen.text((x + 2, 3), head, fill="black", font=ImageFont.load_default(14))
    for k, (label, *sides) in enumerate(rows):
        top = HEAD + k * (TILE + HEAD)
        pen.text((2, top + 3), label, fill="black", font=ImageFont.load_default(13))
        for x, images in zip((0, width + GAP), sides, strict=True):
            for i, image in enumerate(images):
                canvas.paste(image.resize((TILE, TILE), Image.Resampling.LANCZOS), (x + i * TILE, top + HEAD))
    return canvas


def main(words: Sequence[str] | None = None) -> None:
    args = options(words)
    task, pipe, known = work(args.count), erasekit.load(args.model), models.defaults(models.resolve(args.model))
    sampling = Sampling(int(known["steps"]), float(known["guidance"]))
    arms = [Arm("no edit"), *(fit(pipe, task, spec) for spec in args.methods)]
    if refused := [f"{arm.name}: {arm.refused}" for arm in arms if arm.refused]:
        raise InfeasibleError("; ".join(refused))
    rows = [(arm.name, draw(pipe, arm, target_prompts(task), sampling), draw(pipe, arm, other_prompts(task), sampling))
            for arm in arms]  # fmt: skip
    heads = (f"prompts for {len(rows[0][1])} of {args.count} targets", "prompts for what is retained")
    write_whole(args.out, png(sheet(rows, heads)))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
