"""Renders the concepts from the emoji sets into the five sprite sheets (extra `train-worlds`).

The sets are plain SVG data in npm packages. Get them into one folder with

    npm pack @iconify-json/{twemoji,noto,noto-v1,fluent-emoji-flat,fluent-emoji-high-contrast}

and run `python -m erasekit.worlds.emoji.train drawings --work FOLDER`; the sheets are written to `FOLDER/drawings`.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from ....errors import ModelError
from ..concepts import STYLES, concepts
from ..scenes import COLUMNS, TILE

PACKAGES = dict(
    zip(STYLES, ("twemoji", "noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji-high-contrast"), strict=True)
)


def icon_set(folder: Path, package: str) -> dict[str, Any]:
    """The `icons.json` inside the package's archive."""
    found = sorted(folder.glob(f"iconify-json-{package}-[0-9]*.tgz"))
    if not found:
        raise ModelError(
            f"no archive of @iconify-json/{package} in {folder}: run npm pack @iconify-json/{package} there"
        )
    with tarfile.open(found[-1]) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def svg(icons: dict[str, Any], name: str) -> str:
    """One icon as a whole SVG document, aliases followed; ink drawings are nearly black."""
    key = name if name in icons["icons"] else icons["aliases"][name]["parent"]
    icon = icons["icons"][key]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    size = f'width="{TILE}" height="{TILE}" color="#202020"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {size}>{icon["body"]}</svg>'


def tile(document: str) -> Image.Image:
    """The drawing, cut to its outline and scaled to fill a tile."""
    import resvg_py

    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document)))).convert("RGBA")
    drawn = drawn.crop(drawn.getbbox())
    scale = TILE / max(drawn.size)
    width, height = (max(1, round(side * scale)) for side in drawn.size)
    whole = Image.new("RGBA", (TILE, TILE))
    whole.paste(drawn.resize((width, height), Image.Resampling.LANCZOS), ((TILE - width) // 2, (TILE - height) // 2))
    return whole


def run(work: Path) -> None:
    """Writes one sheet for each style."""
    (work / "drawings").mkdir(exist_ok=True)
    rows = -(-len(concepts()) // COLUMNS)
    for style, package in PACKAGES.items():
        icons = icon_set(work, package)
        sheet = Image.new("RGBA", (COLUMNS * TILE, rows * TILE))
        for i, concept in enumerate(concepts()):
            sheet.paste(tile(svg(icons, concept.icon)), (i % COLUMNS * TILE, i // COLUMNS * TILE))
        sheet.save(work / "drawings" / f"{style}.png", optimize=True)
