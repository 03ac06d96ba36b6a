"""A plan: many edits, methods and suites in one YAML file, or the same from the command line; checked before any work.

An entry of `edits` is a file (`file: cat.safetensors`), or a request that is fitted first (`targets`, `anchor`,
`method`, `retain`, `parameters`, `seed`); a list of methods makes one entry a method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from erasekit.errors import UsageError
from erasekit.evaluation import named_files
from erasekit.evaluation.plan_fields import (
    beside,
    keys,
    named,
    never_beside,
    plain,
    prompts,
    published,
    real,
    texts,
    whole,
)
from erasekit.evaluation.shards import digest, slug

CONTROLS = ("random", "none")


@dataclass(frozen=True)
class Entry:
    """One edit: a file, or a request to fit. `name` is how the results call it; a request's seed is its own."""

    name: str
    file: Path | None = None
    method: str = "erasepro"
    targets: tuple[str, ...] = ()
    anchor: tuple[str, ...] | None = None
    retain: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def named(self) -> bool:
        """Whether a person chose the name: then it is what pages call the edit, too."""
        if self.file is None:
            return self.name != _name(replace(self, name=""), self.method, 1)
        return self.name not in (self.file.stem, f"{self.file.resolve().parent.name}-{self.file.stem}")

    @property
    def digest(self) -> str:
        """Of all that decides a fitted edit but the model and erasekit itself; of files that it names, their content."""
        settings = named_files.contents(self.parameters)
        return digest([self.method, self.targets, self.anchor, self.retain, settings, self.seed])


@dataclass(frozen=True)
class Plan:
    """What is evaluated, and how. `batch` is a shard's size: it belongs to the plan, as a batch's size changes float
    rounding; `jobs` and where the work is done do not."""

    suites: tuple[str, ...]
    model: str = "emoji"
    edits: tuple[Entry, ...] = ()
    targets: tuple[str, ...] = ()
    prompts: Path | Mapping[str, Path] | None = None  # of every suite, or by suite
    control: str = "random"
    never: tuple[str, ...] = ()
    batch: int = 16
    seed: int = 0
    device: str = "cpu"
    title: str = ""
    published: dict[str, Any] = field(default_factory=dict)  # what a paper reports, shown beside our numbers
    lpips: Path | None = None  # the weights of LPIPS's backbone, or torch hub's folder of them
    inception: Path | None = None  # the weights of FID's Inception
    real: str | None = None  # a folder of real images, or "emoji"; None: what a suite itself names, if it does
    sha256: str = ""  # of the file that it was read from; a command names that file only, and a file can change

    def __post_init__(self) -> None:
        if not self.suites:
            raise UsageError("no suite: give --suite NAME (`erasekit suites` lists them)")
        if len(set(self.suites)) != len(self.suites):
            raise UsageError("a suite is named twice: give each once")
        if self.control not in CONTROLS:
            raise UsageError(f"--control is one of {', '.join(CONTROLS)}, not {self.control!r}")
        if self.batch < 1:
            raise UsageError("--batch takes a number from 1 on")
        if self.real is not None:
            named(self.real)
        if isinstance(self.prompts, Mapping) and (odd := [name for name in self.prompts if name not in self.suites]):
            raise UsageError(f"prompts are given for {odd[0]}, which is no suite here: name {', '.join(self.suites)}")
        names = [slug(entry.name) for entry in self.edits]
        twice = next((entry.name for entry in self.edits if names.count(slug(entry.name)) > 1), None)
        if twice is not None:
            raise UsageError(f"two edits would be called {twice!r} in the results: rename a file, or give each a name")

    def prompts_of(self, suite: str) -> Path | None:
        """The prompt file of one of the suites; None where it is to do without."""
        return self.prompts.get(suite) if isinstance(self.prompts, Mapping) else self.prompts


def files(paths: Sequence[Path]) -> tuple[Entry, ...]:
    """Entries of edit files, named after them; of one name, those after the first have their folder's name in front.

    So a file that is added behind the others changes no name, under which finished work is kept.
    """
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(slug(path.stem), path)
    return tuple(
        Entry(path.stem if path == first[slug(path.stem)] else f"{path.resolve().parent.name}-{path.stem}", file=path)
        for path in paths
    )


def read(path: Path) -> Plan:
    """The plan in a YAML file; paths in it are relative to the file. `UsageError` names the key that is wrong."""
    import yaml

    try:
        stored = path.read_bytes()
        data = yaml.safe_load(stored.decode("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"cannot read the plan {path} ({reason}): give a YAML file") from error
    known = {f.name for f in fields(Plan)} - {"sha256"}
    data = keys(data, {*known, "suite"}, f"the plan {path}")
    if "suite" in data:
        data["suites"] = [*texts("suite", data.pop("suite")), *texts("suites", data.get("suites", []))]
    values: dict[str, Any] = {key: value for key, value in data.items() if key != "edits"}
    for key in ("suites", "targets", "never"):
        values[key] = tuple(texts(key, values.get(key, [])))
    for key in ("batch", "seed"):
        values[key] = whole(key, values.get(key, getattr(Plan, key)))
    for key in ("model", "control", "device", "title"):
        values[key] = str(values.get(key, getattr(Plan, key)))
    values["published"] = published(values.get("published", {}))
    here = path.parent
    values["prompts"] = prompts(here, values.get("prompts"))
    for key in ("lpips", "inception"):
        values[key] = here / Path(str(values[key])).expanduser() if values.get(key) else None
    values["real"] = real(here, values.get("real"))
    values["model"] = beside(here, values["model"])
    values["suites"] = tuple(beside(here, name) for name in values["suites"])
    values["never"] = tuple(never_beside(here, spec) for spec in values["never"])
    edits = _entries(data.get("edits", []), here, values["seed"])
    return Plan(**values, edits=edits, sha256=hashlib.sha256(stored).hexdigest())


def _entries(value: Any, here: Path, seed: int) -> tuple[Entry, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(entry for i, item in enumerate(items) for entry in _expanded(item, here, seed, f"edits[{i}]"))


def _expanded(item: Any, here: Path, seed: int, where: str) -> list[Entry]:
    if isinstance(item, str):
        item = {"file": item}
    data = keys(item, {f.name for f in fields(Entry)}, where)
    if ("file" in data) == ("targets" in data):
        raise UsageError(f"{where} needs either file (an edit) or targets (an edit to fit)")
    if "file" in data:
        file = here / Path(str(keys(data, {"file", "name"}, f"{where}, an edit file,")["file"])).expanduser()
        return [Entry(str(data.get("name", file.stem)), file=file)]
    methods = texts(f"{where}.method", data.get("method", "erasepro"))
    if not methods:
        raise UsageError(f"{where}.method is empty: name one of `erasekit methods`, or leave it out")
    entry = Entry(
        str(data.get("name", "")),
        targets=tuple(texts(f"{where}.targets", data["targets"])),
        anchor=tuple(texts(f"{where}.anchor", data["anchor"])) if data.get("anchor") is not None else None,
        retain=tuple(texts(f"{where}.retain", data.get("retain", []))),
        parameters=_parameters(data.get("parameters", {}), here, f"{where}.parameters"),
        seed=whole(f"{where}.seed", data.get("seed", seed)),
    )
    if not entry.targets:
        raise UsageError(f"{where}.targets is empty: name at least one concept to erase")
    return [replace(entry, method=method, name=_name(entry, method, len(methods))) for method in methods]


def _parameters(value: Any, here: Path, where: str) -> dict[str, Any]:
    return named_files.beside(here, plain(where, keys(value, None, where)))


def _name(entry: Entry, method: str, methods: int) -> str:
    if not entry.name:
        first, *others = map(slug, entry.targets)
        return f"{method}-{first}" + (f"-and-{len(others)}-more" if others else "")
    return entry.name if methods == 1 else f"{entry.name}-{method}"
