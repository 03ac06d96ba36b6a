"""Picture grids: rows of images before and after an edit, with their prompts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

MARGIN, GAP, LABEL = 16, 4, 300
INK, MUTED, PAPER = (26, 28, 34), (104, 110, 122), (255, 255, 255)


@dataclass(frozen=True)
class GridRow:
    """A prompt and its images, the same seeds before and after."""

    title: str
    before: Sequence[Image.Image]
    after: Sequence[Image.Image]
    heading: str = ""  # set on the first row of a group


def grid(rows: Sequence[GridRow], *, title: str, tile: int = 80) -> Image.Image:
    """One RGB picture of all rows: prompt, images before, images after; each image `tile` pixels wide and high.

    Raises `ValueError` without rows or where a row's counts differ.
    """
    counts = {len(images) for row in rows for images in (row.before, row.after)}
    if len(counts) != 1 or not rows:
        raise ValueError(f"every row needs the same number of images before and after, not {sorted(counts)}")
    half = counts.pop() * (tile + GAP)
    width = MARGIN + LABEL + half + 2 * MARGIN + half + MARGIN
    height = 86 + sum(tile + GAP + 26 * bool(row.heading) for row in rows) + MARGIN
    canvas = Image.new("RGB", (width, height), PAPER)
    _draw_head(ImageDraw.Draw(canvas), title, MARGIN + LABEL, half)
    top = 86
    for row in rows:
        top = _draw_row(canvas, row, top, tile, half)
    return canvas


def png(image: Image.Image, info: PngInfo | None = None) -> bytes:
    """The image as the bytes of a PNG file; `info` holds text chunks."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, pnginfo=info)
    return buffer.getvalue()


def _draw_head(draw: ImageDraw.ImageDraw, title: str, left: int, half: int) -> None:
    draw.text((MARGIN, 14), title, INK, _font(22))
    draw.text((left, 58), "before", INK, _font(16))
    draw.text((left + half + 2 * MARGIN, 58), "after (same prompts, same seeds)", INK, _font(16))


def _draw_row(canvas: Image.Image, row: GridRow, top: int, tile: int, half: int) -> int:
    """The y below the row."""
    draw = ImageDraw.Draw(canvas)
    if row.heading:
        draw.text((MARGIN, top + 4), row.heading, MUTED, _font(14))
        top += 26
    lines = _wrap(row.title, _font(14), LABEL - 12)
    for i, line in enumerate(lines):
        draw.text((MARGIN, top + tile / 2 + (i - len(lines) / 2) * 18), line, INK, _font(14))
    for left, images in ((MARGIN + LABEL, row.before), (MARGIN + LABEL + half + 2 * MARGIN, row.after)):
        for i, image in enumerate(images):
            resized = image.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            canvas.paste(resized, (left + i * (tile + GAP), top))
    return top + tile + GAP


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines no wider than `width` pixels (a single longer word stays whole)."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
