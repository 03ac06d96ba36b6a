"""Parameters of methods that name files: found beside the plan that names them, and known by what the files hold.

A fitted edit is kept under the digest of its request. A file's name says nothing of its content, so in that digest the
content stands in the name's place: an edit of other captions or images is another edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from erasekit.evaluation.shards import digest
from erasekit.files import file_sha256

FILES = ("captions", "folder", "images", "masks", "on", "prior_file", "prompts", "template_file")
"""All parameters of methods that can name a file or a folder; `captions` does after an @, among other texts."""
LISTED = "captions"
NONE = ("", "none", "null")  # how a parameter says that there is no file


def beside(here: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the paths in them relative to `here`."""
    return _changed(parameters, lambda name: str(here / Path(name).expanduser()))


def contents(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with a hash of the content in the place of each path."""
    return _changed(parameters, _content)


def _changed(parameters: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    return {key: _value(key, value, change) if key in FILES else value for key, value in parameters.items()}


def _value(key: str, value: Any, change: Callable[[str], str]) -> Any:
    if key == LISTED and isinstance(value, (str, list, tuple)):
        items = value.split(";") if isinstance(value, str) else value
        return [_caption(item.strip(), change) if isinstance(item, str) else item for item in items]
    return change(value) if isinstance(value, str) and value.strip().lower() not in NONE else value


def _caption(item: str, change: Callable[[str], str]) -> str:
    return f"@{change(item[1:])}" if item.startswith("@") else item


def _content(name: str) -> str:
    """Of a folder, names and hashes of all files in it and below: methods go by their names, too."""
    place = Path(name).expanduser()
    try:
        files = [path for path in sorted(place.rglob("*")) if path.is_file()] if place.is_dir() else [place]
        return digest([[path.relative_to(place).as_posix(), file_sha256(path)] for path in files])
    except OSError:
        return "not there"  # the method itself says so, and nothing is kept
