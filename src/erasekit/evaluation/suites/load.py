"""Suites from their files: every mistake in one is a `UsageError` that names the file and the remedy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from erasekit.errors import UsageError
from erasekit.evaluation.suites import words
from erasekit.evaluation.suites.blocks import read_blocks
from erasekit.evaluation.suites.promptfile import Columns, read_rows
from erasekit.evaluation.suites.suite import Block, Sampling, Suite, Target, key, listed

FILES = Path(__file__).parent / "files"
EXPANSION = 1  # counted up when the same file gives other prompts than before
KINDS = ("object", "style", "person", "unsafe")
KEYS = ("name", "version", "title", "note", "world", "kind", "sampling", "judges", "seeds", "targets", "whole",
        "unrelated", "styles", "backgrounds", "templates", "groups", "prompt_file")  # fmt: skip
NEEDED = ("name", "version", "title", "world", "sampling", "judges", "seeds", "targets")
TARGET_FIELDS = ("anchor", "label", "synonyms", "implicit", "neighbours", "superset", "twins")


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
    document = json.dumps({"expansion": EXPANSION, "suite": content, "prompt_file": prompt_file}, sort_keys=True)
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
        raise UsageError(f"the suite {path} is no mapping: its keys are {', '.join(KEYS)}")
    unknown = sorted(map(str, set(data) - set(KEYS)))
    if unknown:
        raise UsageError(f"the suite {path} has unknown keys {', '.join(unknown)}: its keys are {', '.join(KEYS)}")
    missing = [name for name in NEEDED if data.get(name) is None]
    if missing:
        raise UsageError(f"the suite {path} lacks {', '.join(missing)}: add it (docs/suites.md shows how)")
    return data


def _suite(data: dict[str, Any], source: str) -> Suite:
    world = _choice(data["world"], ("emoji", "any"), "world", source)
    kind = _choice(data.get("kind", "object"), KINDS, "kind", source)
    emoji = world == "emoji"
    suite = Suite(
        name=str(data["name"]), version=_whole(data["version"], "version", source), title=str(data["title"]),
        world=world, kind=kind, note=" ".join(str(data.get("note") or "").split()),
        sampling=_sampling(data["sampling"], source), judges=_judges(data["judges"], source), digest="",
        concepts=_targets(data["targets"], world, kind, source), whole=bool(data.get("whole", False)), blocks=(),
        others=_others(data.get("unrelated"), world, source),
        styles=texts(data.get("styles", words.styles if emoji else ()), "styles", source),
        backgrounds=texts(data.get("backgrounds", words.backgrounds if emoji else ()), "backgrounds", source),
        seeds=_seeds(data["seeds"], source), source=source,
    )  # fmt: skip
    blocks = read_blocks(data.get("groups") or [], data.get("templates") or {}, suite)
    if not blocks and not data.get("prompt_file"):
        raise UsageError(f"the suite {source} has no prompts: give `groups` or a `prompt_file`")
    return replace(suite, blocks=blocks)


def _sampling(value: Any, source: str) -> Sampling:
    known = [field.name for field in fields(Sampling)]
    if not isinstance(value, dict) or set(value) - set(known) or not {"steps", "guidance"} <= set(value):
        raise UsageError(
            f"the suite {source}: sampling needs steps and guidance, and has no keys but {', '.join(known)}"
        )
    _whole(value["steps"], "sampling.steps", source)
    if value.get("size") is not None:
        _whole(value["size"], "sampling.size", source)
    for name in ("guidance", "eta"):
        number = value.get(name)
        if not isinstance(number, (int, float)) and not (name == "eta" and number is None):
            raise UsageError(f"the suite {source}: sampling.{name} must be a number, not {number!r}")
    eta = value.get("eta")
    return Sampling(value["steps"], float(value["guidance"]), str(value.get("scheduler") or ""),
                    None if eta is None else float(eta), value.get("size"))  # fmt: skip


def _judges(value: Any, source: str) -> tuple[str, ...]:
    from erasekit.evaluation.judges import JUDGES, split

    specs = texts(value, "judges", source)
    for spec in specs:
        if split(spec)[0] not in JUDGES:
            raise UsageError(f"the suite {source}: unknown judge {spec!r}: choose from {', '.join(JUDGES)}")
    if not specs:
        raise UsageError(f"the suite {source} names no judge: choose from {', '.join(JUDGES)}")
    return specs


def _targets(value: Any, world: str, kind: str, source: str) -> tuple[Target, ...]:
    """ "any", a word of the emoji world (objects, weapons, styles), a list of names, or names with their fields."""
    if value == "any":
        return ()
    if isinstance(value, str):
        found = words.named(value) if world == "emoji" else None
        if found is None:
            known = ", ".join(("any", "objects", "styles", *words.CATEGORIES))
            raise UsageError(f"the suite {source}: targets {value!r} is none of {known}: list them by name")
        value = found
    given = value if isinstance(value, dict) else dict.fromkeys(texts(value, "targets", source))
    found = tuple(_target(name, entry or {}, world, kind, source) for name, entry in given.items())
    if not found or len({key(target.name) for target in found}) < len(found):
        raise UsageError(f"the suite {source}: name at least one target, and each once (any: write `targets: any`)")
    return found


def _target(name: Any, entry: Any, world: str, kind: str, source: str) -> Target:
    if not isinstance(name, str) or not isinstance(entry, dict) or set(entry) - set(TARGET_FIELDS):
        raise UsageError(
            f"the suite {source}: the target {name!r} must be a word with fields of {listed(TARGET_FIELDS)}"
        )
    base = words.about(name, kind) if world == "emoji" else {"label": name}
    if base is None:
        raise UsageError(f"the suite {source}: the emoji world has no {kind} {name!r}: choose one of its own names")
    data = {**base, **entry}
    single = {field: data.get(field) for field in ("label", "anchor")}
    if not all(value is None or isinstance(value, str) for value in single.values()):
        raise UsageError(f"the suite {source}: label and anchor of {name!r} must each be one word: put it in quotes")
    many = {field: texts(data.get(field, ()), f"{field} of {name!r}", source) for field in TARGET_FIELDS[2:]}
    return Target(name, single["label"] or name, single["anchor"], **many)


def _others(value: Any, world: str, source: str) -> tuple[str, ...]:
    if value is None:
        return words.objects() if world == "emoji" else ()
    found = words.named(value) if world == "emoji" and isinstance(value, str) else None
    return found or texts(value, "unrelated", source)


def _seeds(value: Any, source: str) -> tuple[int, ...]:
    """A list of seeds, or a range as text: "0-4"."""
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        if first.isdecimal() and (last.isdecimal() if dash else True):
            value = list(range(int(first), int(last or first) + 1))
    numbers: list[Any] = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise UsageError(f"the suite {source}: seeds must be numbers such as [0, 1, 2] or 0-4, not {value!r}")
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"the suite {source}: a seed is listed twice: list each once")
    return tuple(numbers)


def _columns(data: dict[str, Any], suite: Suite) -> Columns | None:
    return Columns.read(data["prompt_file"], suite) if data.get("prompt_file") else None


def texts(value: Any, what: str, source: str) -> tuple[str, ...]:
    """A word or a list of words."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) and item.strip() for item in items):
        raise UsageError(f"the suite {source}: {what} must be a list of words, not {value!r}: put quotes around words")
    return tuple(items)


def _choice(value: Any, allowed: Sequence[str], what: str, source: str) -> str:
    if value not in allowed:
        raise UsageError(f"the suite {source}: {what} {value!r} is none of {', '.join(allowed)}: choose one")
    return value


def _whole(value: Any, what: str, source: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"the suite {source}: {what} must be a whole number from 1 on, not {value!r}")
    return value
