"""What `erasekit erase` was asked for: the command line over the --spec file over the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from erasekit.errors import UsageError

INSTEAD = {
    "model_or_pipe": "give --model",
    "targets": "name the targets behind `erasekit erase`",
    "anchor": "give --anchor",
    "retain": "give --retain",
    "method": "give --method",
    "seed": "give --seed",
    "retain_cache": "give --retain-cache",
    "checkpoint": "give --resume",
    "progress": "leave it out, progress is always shown",
}
"""What `api.erase` takes beside a method's parameters, and how the command line asks for it."""
SEEDS = 2**63
"""torch's generators take less."""


@dataclass(frozen=True)
class EraseSettings:
    """One erase job. The names are also the keys of a spec file."""

    targets: list[str]
    out: Path | None = None
    anchor: list[str] | None = None
    method: str = "erasepro"
    model: str = "emoji"
    retain: list[str] = field(default_factory=list)
    retain_file: Path | None = None
    retain_cache: Path | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    steps: int | None = None
    resume: Path | None = None
    dry_run: bool = False


def erase_settings(arguments: argparse.Namespace) -> EraseSettings:
    """The job; raises `UsageError` naming what is missing or wrong."""
    given = _spec(arguments.spec) if arguments.spec else {}
    for key in (f.name for f in fields(EraseSettings)):
        value = getattr(arguments, key, None)
        if key == "parameters" and value:
            given[key] = {**given.get(key, {}), **pairs(value)}
        elif value not in (None, []):
            given[key] = value
    if not given.get("targets"):
        raise UsageError("no target: name at least one concept to erase")
    if not given.get("out") and not given.get("dry_run"):
        raise UsageError("no output: give --out EDIT.safetensors")
    settings = EraseSettings(**{key: _typed(key, value) for key, value in given.items()})
    listed = read_lines(settings.retain_file) if settings.retain_file else []
    settings.retain.extend(listed)
    _check_names(settings.parameters)
    if settings.steps is not None:
        settings.parameters["steps"] = settings.steps
    return settings


def _spec(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the spec {path} ({_first(error)}): give a YAML file") from error
    known = [f.name for f in fields(EraseSettings)]
    if not isinstance(data, dict) or set(data) - set(known):
        unknown = sorted(map(str, set(data) - set(known))) if isinstance(data, dict) else ["no `name: value` lines"]
        raise UsageError(f"the spec {path} has {', '.join(unknown)}: its keys are {', '.join(known)}")
    return {key: _typed(key, value) for key, value in data.items() if value is not None}


def _check_names(parameters: dict[Any, Any]) -> None:
    """Refuse what cannot be a parameter of any method."""
    for name in parameters:
        if not isinstance(name, str):
            raise UsageError(f"parameters must be `name: value` lines, and {name!r} is no name: "
                             "`erasekit methods --json` lists the names")  # fmt: skip
        if name in INSTEAD:
            raise UsageError(f"{name} is not a parameter of a method: {INSTEAD[name]}")


def _typed(key: str, value: Any) -> Any:
    """A spec's value as the field wants it (one string is a list of one; a path is a path)."""
    if key in ("targets", "anchor", "retain"):
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return list(items)
        raise UsageError(f"{key} must be a word or a list of words, not {value!r}: put quotes around words such as no")
    if key in ("retain_file", "retain_cache", "out", "resume", "method", "model", "device"):
        if not isinstance(value, str | Path):
            raise UsageError(f"{key} must be text, not {value!r}: put quotes around it")
        return str(value) if key in ("method", "model", "device") else Path(value)
    if key == "parameters" and not isinstance(value, dict):
        raise UsageError(f"parameters must be a list of `name: value` lines, not {value!r}")
    if key in ("seed", "steps") and (isinstance(value, bool) or not isinstance(value, int)):
        raise UsageError(f"{key} must be a whole number, not {value!r}")
    if key == "dry_run" and not isinstance(value, bool):
        raise UsageError(f"dry_run must be true or false, not {value!r}")
    return value


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """`key=value` texts as a dict; the method parses the values by its parameters' types."""
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set takes KEY=VALUE, not {text!r}: `erasekit methods --json` lists the keys")
        found[key.strip()] = value
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file without blank ones and `#` comments; `UsageError` names another encoding."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path} ({_first(error)}): give a text file, one concept a line") from error
    lines = (line.strip() for line in _decoded(data, path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _decoded(data: bytes, path: Path) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:  # ASCII as UTF-16 is UTF-8 with zero bytes
        raise UsageError(f"{path} is not UTF-8 text (UTF-16, or no text at all): save it as UTF-8, "
                         "such as with iconv -f UTF-16 -t UTF-8")  # fmt: skip
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
        raise UsageError(f"{path} is not UTF-8 text (byte 0x{byte:02x} in line {line}; Latin-1 or Windows-1252?): "
                         "save it as UTF-8, such as with iconv -f WINDOWS-1252 -t UTF-8") from error  # fmt: skip


def seeds(text: str) -> list[int]:
    """The numbers of "7", "0-3" or "0,2,5-7", without repetition; each below `SEEDS`."""
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"--seeds takes numbers and ranges such as 0-3 or 0,2,5-7, not {text!r}")
        if int(last or first) >= SEEDS:
            raise UsageError(f"--seeds takes numbers below 2^63, not {last or first}")
        found |= dict.fromkeys(range(int(first), int(last or first) + 1))
    return list(found)


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
