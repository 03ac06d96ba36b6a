"""A method's parameters from text (`make_config(cls, {"ridge": "0.1"})`), as text (`describe_config`), and as an edit's
file says them (`recorded`)."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from erasekit.errors import UsageError

LocalPath = Annotated[str, "a file or folder of this machine"]
"""The type of a parameter that names a file or folder; among other texts, one that begins with @ names a file."""


class Configured(Protocol):
    """A method or an attack: a name, and a dataclass of its parameters."""

    name: ClassVar[str]
    Config: ClassVar[type[Any]]


def make_config(cls: type[Configured], values: Mapping[str, object]) -> Any:
    """The method's `Config` with `values`, text parsed by each field's type ("none", "true", "0.1", "a {};the {}").

    An unknown key or a value that does not fit raises `UsageError` naming the key and what it takes.
    """
    types_ = get_type_hints(cls.Config)
    known = [field.name for field in fields(cls.Config)]
    if unknown := [key for key in values if key not in known]:
        raise UsageError(f"{cls.name} has no parameter {', '.join(unknown)}: it takes {', '.join(known) or 'none'}")
    return cls.Config(**{key: _parse(cls.name, key, value, types_[key]) for key, value in values.items()})


def describe_config(cls: type[Configured]) -> dict[str, dict[str, Any]]:
    """Every parameter of the method: its type, default, and the documentation under the field."""
    assert is_dataclass(cls.Config)
    docs = _field_docs(cls.Config)
    return {
        field.name: {
            "type": str(field.type).replace("LocalPath", "str"),  # what a user gives is text
            "default": None if field.default is MISSING else field.default,
            "doc": docs.get(field.name, ""),
        }
        for field in fields(cls.Config)
    }


def recorded(config: Any) -> dict[str, Any]:
    """The parameters as an edit's file says them, tuples as lists: of files and folders the names, and not where they are on
    this machine."""
    kinds = get_type_hints(type(config), include_extras=True)
    return {key: _without_place(value, local=_is_local(kinds[key])) for key, value in asdict(config).items()}


def _is_local(kind: Any) -> bool:
    return kind == LocalPath or any(_is_local(option) for option in _options(kind) if option is not kind)


def _without_place(value: Any, *, local: bool) -> Any:
    if isinstance(value, tuple):
        return [_without_place(one, local=local) for one in value]
    if not isinstance(value, str) or not value:
        return value
    if value.startswith("@"):
        return "@" + _without_place(value[1:], local=True)
    return Path(value).absolute().name if local else value


def _parse(method: str, key: str, value: object, kind: Any) -> object:
    for option in _options(kind):
        try:
            return _PARSERS[get_origin(option) or option](value, option)
        except (ValueError, TypeError, KeyError):
            continue
    takes = " or ".join(getattr(o, "__name__", str(o)).replace("NoneType", "none") for o in _options(kind))
    raise UsageError(f"{method}: {key} takes {takes}, not {value!r}")


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _none(value: object, _: Any) -> None:
    if value is not None and str(value).lower() not in ("none", "null"):
        raise ValueError(value)


def _bool(value: object, _: Any) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]


def _int(value: object, _: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError(value)
    return int(value)  # pyright: ignore[reportArgumentType]


def _float(value: object, _: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)  # pyright: ignore[reportArgumentType]


def _str(value: object, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def _literal(value: object, kind: Any) -> object:
    return {str(choice): choice for choice in get_args(kind)}[str(value)]


def _callable(value: object, _: Any) -> object:
    if not callable(value):
        raise ValueError(value)
    return value


def _tuple(value: object, kind: Any) -> tuple[object, ...]:
    """Text is split at ";" (commas occur in prompts)."""
    items = [part.strip() for part in value.split(";")] if isinstance(value, str) else list(value)  # pyright: ignore
    inner = get_args(kind)[0]
    return tuple(_PARSERS[get_origin(inner) or inner](item, inner) for item in items)


_PARSERS: dict[Any, Callable[[object, Any], object]] = {
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    Literal: _literal,
    tuple: _tuple,
    Callable: _callable,
    get_origin(Callable[[], None]): _callable,
}


def _field_docs(config: type[Any]) -> dict[str, str]:
    """The string under each field, from the source of the class and of those that it inherits from."""
    parents = [base for base in reversed(config.__mro__) if is_dataclass(base)]
    return {name: doc for base in parents for name, doc in _own_docs(base).items()}


def _own_docs(config: type[Any]) -> dict[str, str]:
    """The string under each field of the class itself, from its source (as documentation tools read it)."""
    import ast
    import inspect
    import textwrap

    source = textwrap.dedent(inspect.getsource(config))
    found: dict[str, str] = {}
    field = ""
    for node in next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and field:
            found[field] = " ".join(str(node.value.value).split())
        target = node.target if isinstance(node, ast.AnnAssign) else None
        field = target.id if isinstance(target, ast.Name) else ""
    return found
