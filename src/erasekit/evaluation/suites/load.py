"""Suites from their files: every mistake in one is a `UsageError` that names the file and the remedy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from erasekit.errors import UsageError
from erasekit.evaluation.suites import words
from erasekit.evaluation.suites.blocks import read_blocks
from erasekit.evaluation.suites.columns import Columns
from erasekit.evaluation.suites.fields import (
    choice,
    classes_of,
    judges_of,
    others_of,
    real_of,
    sampling_of,
    seeds_of,
    targets_of,
    texts,
    whole,
)
from erasekit.evaluation.suites.parts import Block
from erasekit.evaluation.suites.promptfile import read_rows
from erasekit.evaluation.suites.suite import Suite

FILES = Path(__file__).parent / "files"
EXPANSION = 1  # counted up when the same file gives other prompts than before
ROWS = 2  # the same for a prompt file
KINDS = ("object", "style", "person", "unsafe")
KEYS = ("name", "version", "title", "note", "world", "kind", "sampling", "judges", "seeds", "targets", "whole",
        "unrelated", "styles", "backgrounds", "templates", "groups", "prompt_file", "classes", "real")  # fmt: skip
LATER = ("classes", "real")  # a suite without one of these has the digest that it had before there was such a key
NEEDED = ("name", "version", "title", "world", "sampling", "judges", "seeds", "targets")


def suite_names() -> list[str]:
    """The names of the suites that ship with erasekit, in order."""
    return sorted(path.relative_to(FILES).with_suffix("").as_posix() for path in FILES.rglob("*.yaml"))


def load_suite(name_or_path: str, *, prompts: Path | None = None) -> Suite:
    """The suite of that name, or in that YAML file, with the rows of a prompt file where it takes one.

    Its digest covers all that decides its prompts and how they are drawn and judged, the prompt file's bytes included.
    Raises `UsageError` for an unknown suite, a mistake in its file, and a prompt file that is missing or wrong.
    """
    data, suite = _opened(name_or_path)
    columns = _columns(data, suite)
    if prompts is None:
        if columns is not None and columns.required:
            raise UsageError(f"the suite {suite.name} needs a prompt file: {columns.what}")
        return replace(suite, digest=digest(suite, ""))
    if columns is None:
        raise UsageError(f"the suite {suite.name} takes no prompt file: its prompts are in {suite.source}")
    rows = read_rows(prompts, columns, suite)
    blocks = tuple(block for block in suite.blocks if block.group not in {row.group for row in rows.prompts})
    suite = replace(suite, rows=rows.prompts, notes=rows.notes, blocks=_sourced(blocks))
    return replace(suite, digest=digest(suite, rows.sha256))


def peek(name_or_path: str) -> Suite:
    """The suite as far as its own file tells; without digest and prompts where it waits for a prompt file."""
    data, suite = _opened(name_or_path)
    columns = _columns(data, suite)
    return suite if columns is not None and columns.required else replace(suite, digest=digest(suite, ""))


def needs_file(name_or_path: str) -> str | None:
    """What prompt file a suite cannot do without; None for nothing."""
    data, suite = _opened(name_or_path)
    columns = _columns(data, suite)
    return columns.what if columns is not None and columns.required else None


def _opened(name: str) -> tuple[dict[str, Any], Suite]:
    path = _path(name)
    data = _read(path)
    return data, _suite(data, name if name in suite_names() else str(path))


def _sourced(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The blocks whose source (`of`) the prompt file has not replaced."""
    groups = {block.group for block in blocks}
    return tuple(block for block in blocks if not block.of or block.of in groups)


def digest(suite: Suite, prompt_file: str) -> str:
    """sha256 over the suite's content in canonical form; where its file lies and what is remarked do not count."""
    content = {
        name: value for name, value in asdict(suite).items() if name not in ("digest", "source", "notes", "rows")
    }
    for name in LATER:
        if not content[name]:
            del content[name]
    expansion = [EXPANSION, ROWS] if prompt_file else EXPANSION
    document = json.dumps({"expansion": expansion, "suite": content, "prompt_file": prompt_file}, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()


def _path(name: str) -> Path:
    if name in suite_names():
        return FILES / f"{name}.yaml"
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    raise UsageError(f"no suite {name!r}: give a YAML file, or one of {', '.join(suite_names())}")


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"cannot read the suite {path} ({reason}): give a YAML file") from error
    if not isinstance(data, dict):
        raise UsageError(f"the suite {path} is no list of `name: value` lines: its keys are {', '.join(KEYS)}")
    unknown = sorted(map(str, set(data) - set(KEYS)))
    if unknown:
        raise UsageError(f"the suite {path} has unknown keys {', '.join(unknown)}: its keys are {', '.join(KEYS)}")
    missing = [name for name in NEEDED if data.get(name) is None]
    if missing:
        raise UsageError(f"the suite {path} lacks {', '.join(missing)}: add it (docs/suites.md shows how)")
    return data


def _suite(data: dict[str, Any], source: str) -> Suite:
    world = choice(data["world"], ("emoji", "any"), "world", source)
    kind = choice(data.get("kind", "object"), KINDS, "kind", source)
    emoji = world == "emoji"
    suite = Suite(
        name=str(data["name"]), version=whole(data["version"], "version", source), title=str(data["title"]),
        world=world, kind=kind, note=" ".join(str(data.get("note") or "").split()),
        sampling=sampling_of(data["sampling"], source), judges=judges_of(data["judges"], source), digest="",
        concepts=targets_of(data["targets"], world, kind, source), whole=bool(data.get("whole", False)), blocks=(),
        others=others_of(data.get("unrelated"), world, source),
        styles=texts(data.get("styles", words.styles if emoji else ()), "styles", source),
        backgrounds=texts(data.get("backgrounds", words.backgrounds if emoji else ()), "backgrounds", source),
        seeds=seeds_of(data["seeds"], source), source=source, classes=classes_of(data.get("classes"), source),
        real=real_of(data.get("real"), world, source),
    )  # fmt: skip
    blocks = read_blocks(data.get("groups") or [], data.get("templates") or {}, suite)
    if not blocks and not data.get("prompt_file"):
        raise UsageError(f"the suite {source} has no prompts: give `groups` or a `prompt_file`")
    return replace(suite, blocks=blocks)


def _columns(data: dict[str, Any], suite: Suite) -> Columns | None:
    return Columns.read(data["prompt_file"], suite) if data.get("prompt_file") else None
