"""The fields of a suite's file, read and checked one by one: every mistake is a `UsageError` with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from erasekit.errors import UsageError
from erasekit.evaluation.suites import words
from erasekit.evaluation.suites.names import key, listed
from erasekit.evaluation.suites.parts import Sampling, Target

TARGET_FIELDS = ("anchor", "label", "synonyms", "implicit", "neighbours", "superset", "twins")


def sampling_of(value: Any, source: str) -> Sampling:
    """The `sampling` entry: steps and guidance at least."""
    known = [field.name for field in fields(Sampling)]
    if not isinstance(value, dict) or set(value) - set(known) or not {"steps", "guidance"} <= set(value):
        raise UsageError(
            f"the suite {source}: sampling needs steps and guidance, and has no keys but {', '.join(known)}"
        )
    whole(value["steps"], "sampling.steps", source)
    if value.get("size") is not None:
        whole(value["size"], "sampling.size", source)
    for name in ("guidance", "eta"):
        number = value.get(name)
        if not isinstance(number, (int, float)) and not (name == "eta" and number is None):
            raise UsageError(f"the suite {source}: sampling.{name} must be a number, not {number!r}")
    eta = value.get("eta")
    return Sampling(value["steps"], float(value["guidance"]), str(value.get("scheduler") or ""),
                    None if eta is None else float(eta), value.get("size"))  # fmt: skip


def judges_of(value: Any, source: str) -> tuple[str, ...]:
    """The `judges` entry: specs of known judges, at least one."""
    from erasekit.evaluation.judges import JUDGES, split

    specs = texts(value, "judges", source)
    for spec in specs:
        if split(spec)[0] not in JUDGES:
            raise UsageError(f"the suite {source}: unknown judge {spec!r}: choose from {', '.join(JUDGES)}")
    if not specs:
        raise UsageError(f"the suite {source} names no judge: choose from {', '.join(JUDGES)}")
    return specs


def targets_of(value: Any, world: str, kind: str, source: str) -> tuple[Target, ...]:
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


def others_of(value: Any, world: str, source: str) -> tuple[str, ...]:
    """The `unrelated` entry; in the emoji world all objects without one."""
    if value is None:
        return words.objects() if world == "emoji" else ()
    found = words.named(value) if world == "emoji" and isinstance(value, str) else None
    return found or texts(value, "unrelated", source)


def classes_of(value: Any, source: str) -> str:
    """The `classes` entry: a text with one {} for the name; "" without one."""
    if value is None:
        return ""
    if not isinstance(value, str) or value.count("{}") != 1 or value.count("{") + value.count("}") != 2:
        raise UsageError(f"the suite {source}: classes must be a text with {{}} once, for the name, not {value!r}: "
                         'write "a photo of the {}"')  # fmt: skip
    return value


def real_of(value: Any, world: str, source: str) -> str:
    """The `real` entry: the word emoji, in that world; "" without one."""
    if value is None or (value == "emoji" == world):
        return value or ""
    raise UsageError(f"the suite {source}: real {value!r} can only be emoji, in that world: give a folder of real images "
                     "with --real")  # fmt: skip


def seeds_of(value: Any, source: str) -> tuple[int, ...]:
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


def texts(value: Any, what: str, source: str) -> tuple[str, ...]:
    """A word or a list of words."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) and item.strip() for item in items):
        raise UsageError(f"the suite {source}: {what} must be a list of words, not {value!r}: put quotes around words")
    return tuple(items)


def choice(value: Any, allowed: Sequence[str], what: str, source: str) -> str:
    """The value, which is one of those allowed."""
    if value not in allowed:
        raise UsageError(f"the suite {source}: {what} {value!r} is none of {', '.join(allowed)}: choose one")
    return value


def whole(value: Any, what: str, source: str) -> int:
    """The value, which is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"the suite {source}: {what} must be a whole number from 1 on, not {value!r}")
    return value
