"""How a plan's values are read: each mistake is a `UsageError` of one line that names the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasekit.errors import UsageError

EMOJI = "emoji"
"""As real images: the world's own reference pictures. A folder of that name is `./emoji`."""


def keys(value: Any, known: set[str] | None, where: str) -> dict[str, Any]:
    """The `name: value` lines; among known names, one that is left empty is as if it were not there."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a list of `name: value` lines, not {str(value)[:40]!r}")
    if known is not None and (unknown := sorted(str(key) for key in value if key not in known)):
        raise UsageError(f"{where} has {', '.join(unknown)}: its keys are {', '.join(sorted(known))}")
    return {str(key): item for key, item in value.items() if known is None or item is not None}


def texts(key: str, value: Any) -> list[str]:
    """One word or a list of words, as a list."""
    items = [value] if isinstance(value, str) else value
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        return items
    raise UsageError(f"{key} must be a word or a list of words, not {value!r}: put quotes around words such as no")


def whole(key: str, value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{key} must be a whole number, not {value!r}")
    return value


def plain(where: str, value: Any) -> Any:
    """The value, if JSON can hold it: YAML also knows dates, and numbers that are none."""
    if isinstance(value, Mapping):
        return {str(key): plain(f"{where}.{key}", item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(f"{where}[{i}]", item) for i, item in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise UsageError(f"{where} must be a text or a finite number, not {value}: put quotes around dates")


def published(value: Any) -> dict[str, Any]:
    """A paper's figures: each has a metric, a method and a number, and whatever else is said of them can be stored."""
    known = plain("published", keys(value, None, "published"))
    figures = known.get("figures") or []
    if not isinstance(figures, list):
        raise UsageError("published.figures must be a list of figures, each with metric, method and value")
    for i, figure in enumerate(figures):
        _figure(f"published.figures[{i}]", keys(figure, None, f"published.figures[{i}]"))
    return known


def beside(here: Path, name: str) -> str:
    """A path beside the plan, where there is one; a name otherwise."""
    path = here / Path(name).expanduser()
    return str(path) if path.exists() else name


def never_beside(here: Path, spec: str) -> str:
    """`[CONCEPT=]FOLDER` with the folder beside the plan."""
    name, sign, path = spec.partition("=")
    return f"{name}={beside(here, path)}" if sign else beside(here, spec)


def prompts(here: Path, value: Any) -> Path | dict[str, Path] | None:
    """The prompt file of every suite, or a file for each suite that needs one; paths are relative to the plan."""
    if value is None or isinstance(value, str):
        return _file(here, value) if value else None
    files = keys(value, None, "prompts")
    if wrong := [name for name, file in files.items() if not isinstance(file, str)]:
        raise UsageError(f"prompts.{wrong[0]} must be a file, not {files[wrong[0]]!r}")
    return {beside(here, name): _file(here, file) for name, file in files.items()}


def real(here: Path, value: Any) -> str | None:
    """The folder of real images, relative to the plan, or the word emoji as it is; None for none."""
    if value is None or value == EMOJI:
        return value
    return str(_file(here, named(value)))


def named(value: Any) -> str:
    """What names real images."""
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"real must be a folder of images, or the word {EMOJI}, not {value!r}")
    return value


def _file(here: Path, name: str) -> Path:
    return here / Path(name).expanduser()


def _figure(where: str, figure: Mapping[str, Any]) -> None:
    for key in ("metric", "method", "value"):
        if key not in figure:
            raise UsageError(f"{where} has no {key}: each figure needs metric, method and value")
    for key in ("metric", "method", "group"):
        if key in figure and not isinstance(figure[key], str):
            raise UsageError(f"{where}.{key} must be a word, not {figure[key]!r}")
    if isinstance(figure["value"], bool) or not isinstance(figure["value"], (int, float)):
        raise UsageError(f"{where}.value must be a number, not {figure['value']!r}")
