"""Results of an evaluation as one JSON document: read, checked, written. Every field is described in `docs/results.md`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erasekit.errors import EraseKitError
from erasekit.evaluation.results_fields import FIELDS, KINDS, SCHEMA, TYPES
from erasekit.files import write_whole

Fail = Callable[[str, str], EraseKitError]


def load(path: Path) -> dict[str, Any]:
    """The checked results in a file, or in the `results.json` of a folder; one clear line if they cannot be used."""
    file = path / "results.json" if path.is_dir() else path
    return validate(_json(_read(file, "`erasekit evaluate --out FOLDER` writes one"), str(file)), name=str(file))


def validate(results: object, *, name: str = "results") -> dict[str, Any]:
    """The same object, with every required field present, of its type and consistent with the others.

    Unknown fields are kept and ignored. Raises `EraseKitError` naming the field, or the version and its remedy.
    """
    if not isinstance(results, dict) or "erasekit_results" not in results:
        raise EraseKitError(f"{name} holds no results of erasekit: give the results.json of `erasekit evaluate`")
    _check_version(results["erasekit_results"], name)

    def fail(where: str, what: str) -> EraseKitError:
        return EraseKitError(
            f"{name}: {where} {what}: take the file as `erasekit evaluate` wrote it, or evaluate again"
        )

    _check_object(results, "results", "", fail)
    _check_arms(results, fail)
    return results


def to_bytes(results: Mapping[str, Any]) -> bytes:
    """The document as it is stored: the same content gives the same bytes. Raises like `validate`."""
    checked = validate(dict(results))
    return (json.dumps(checked, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `results.json` into the folder, whole or not at all, and return its path."""
    write_whole(folder / "results.json", to_bytes(results))
    return folder / "results.json"


def _check_version(version: object, name: str) -> None:
    if version == SCHEMA and not isinstance(version, bool):
        return
    newer = isinstance(version, int) and version > SCHEMA
    remedy = "update erasekit (pip install -U erasekit)" if newer else "evaluate again with this erasekit"
    raise EraseKitError(
        f"{name} has results schema version {version!r}, this erasekit reads version {SCHEMA}: {remedy}"
    )


def _check_object(value: Mapping[str, Any], table: str, where: str, fail: Fail) -> None:
    for key, field in FIELDS[table].items():
        place = f"{where}.{key}" if where else key
        if key not in value:
            if field.required:
                raise fail(place, "is missing")
        elif not (value[key] is None and field.null):
            _check_value(value[key], field.kind, place, fail)


def _check_value(value: Any, kind: str, where: str, fail: Fail) -> None:
    table = kind.removesuffix("*")
    words, accepts = TYPES[kind] if kind in TYPES else TYPES["list" if kind.endswith("*") else "object"]
    if not accepts(value):
        raise fail(where, f"must be {words}, not {str(value)[:40]!r}")
    if table not in FIELDS:
        return
    for place, item in [(f"{where}[{i}]", v) for i, v in enumerate(value)] if kind.endswith("*") else [(where, value)]:
        if not isinstance(item, dict):
            raise fail(place, "must be an object")
        _check_object(item, table, place, fail)


def _check_arms(results: Mapping[str, Any], fail: Fail) -> None:
    names = [arm["arm"] for arm in results["arms"]]
    if len(set(names)) != len(names):
        raise fail("arms", "names an arm twice")
    for i, arm in enumerate(results["arms"]):
        if arm["kind"] not in KINDS:
            raise fail(f"arms[{i}].kind", f"must be one of {', '.join(KINDS)}")
        _check_counts(results["counts"].get(arm["arm"]), f"counts.{arm['arm']}", fail)
    for part in ("metrics", "differences", "attacks"):
        _check_estimates(results.get(part, ()), names, part, fail)


def _check_counts(counts: object, where: str, fail: Fail) -> None:
    whole = TYPES["count"][1]
    if not isinstance(counts, dict) or not all(whole(counts.get(key)) for key in ("ok", "failed", "invalid")):
        raise fail(where, "must count ok, failed and invalid images")


def _check_estimates(entries: Sequence[Mapping[str, Any]], names: Sequence[str], part: str, fail: Fail) -> None:
    for i, entry in enumerate(entries):
        for key in ("arm", "against"):
            if key in entry and entry[key] not in names:
                raise fail(f"{part}[{i}].{key}", f"is {entry[key]!r}, which is no arm of these results")
        if (entry["low"] is None) != (entry["high"] is None):
            raise fail(f"{part}[{i}]", "has one end of its interval only")
        if entry["low"] is not None and entry["low"] > entry["high"]:
            raise fail(f"{part}[{i}]", "has its interval's ends the wrong way round")


def _read(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise EraseKitError(f"{path} does not exist: {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise EraseKitError(f"{path} cannot be read ({reason.lower()}): {remedy}") from error


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise EraseKitError(f"{name} is not whole JSON: it was cut or edited; run `erasekit evaluate` again") from error
