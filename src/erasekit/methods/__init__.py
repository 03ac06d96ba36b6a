"""The methods by name: `get("erasepro")`, with a preset `resolve("rece:nudity")`; what every method is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from erasekit.errors import UsageError
from erasekit.methods._parameters import LocalPath, describe_config, make_config, recorded

if TYPE_CHECKING:
    from erasekit.backbones.base import Backbone
    from erasekit.concept import EraseRequest
    from erasekit.edit import Edit
    from erasekit.training.plan import Plan

__all__ = [
    "CACHING", "METHODS", "LocalPath", "Method", "Preset", "Progress", "TrainingMethod", "check_choice", "check_family",
    "check_range", "describe_config", "get", "make_config", "recorded", "resolve", "trains",
]  # fmt: skip

METHODS: dict[str, str] = {
    "erasepro": "erasekit.methods.erasepro:ErasePro",
    "uce": "erasekit.methods.uce:UCE",
    "rece": "erasekit.methods.rece:RECE",
    "speed": "erasekit.methods.speed:SPEED",
    "mace-refine": "erasekit.methods.mace_refine:MACERefine",
    "trce-text": "erasekit.methods.trce_text:TRCEText",
    "realera-text": "erasekit.methods.realera_text:RealEraText",
    "esd": "erasekit.methods.esd:ESD",
    "mace": "erasekit.methods.mace:MACE",
    "spm": "erasekit.methods.spm:SPM",
    "receler": "erasekit.methods.receler:Receler",
    "ac": "erasekit.methods.ac:AC",
    "irece": "erasekit.methods.irece:IRECE",
}

CACHING = frozenset({"uce", "rece", "speed", "mace-refine", "trce-text", "realera-text", "mace"})
"""The methods that keep what they compute from the retained prompts (`retain_cache`); the others have nothing to keep."""

Progress = Callable[[int, int, str], None]
"""What long work reports to: steps done, steps in all, and what is being done now."""


@dataclass(frozen=True)
class Preset:
    """A named setting of a method, used as `method:name`: which parameters it sets, and its own default anchor."""

    doc: str
    """When to use it and where its values are from."""
    values: Mapping[str, object] = field(default_factory=dict)
    anchor: str | None = None
    """Instead of the method's default anchor."""


class Method(Protocol):
    """One system of the field. `fit` leaves the model bitwise as it was."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    families: ClassVar[tuple[str, ...]]
    Config: ClassVar[type[Any]]
    default_anchor: ClassVar[str]
    presets: ClassVar[Mapping[str, Preset]]

    def fit(self, backbone: Backbone, request: EraseRequest, config: Any, *, progress: Progress | None = None) -> Edit:
        """The edit that does what `request` asks; raises `InfeasibleError` where the method cannot."""
        ...


class TrainingMethod(Method, Protocol):
    """A method that trains: it can go on from a checkpoint, and say beforehand what a run will take."""

    def fit(self, backbone: Backbone, request: EraseRequest, config: Any, *, progress: Progress | None = None,
            checkpoint: Path | None = None) -> Edit:  # fmt: skip
        """As `Method.fit`. `checkpoint`: a file (or a folder for one) that is kept up to date while training, and
        gone on from where it exists; that of another run raises `TrainingError`."""
        ...

    def plan(self, backbone: Backbone, request: EraseRequest, config: Any) -> Plan:
        """What a run would train and need, from a few timed passes; writes nothing and changes nothing."""
        ...


def get(name: str) -> type[Method]:
    """The method's class; an unknown name raises `UsageError` that lists the known ones."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}: use one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)


def resolve(name: str) -> tuple[type[Method], Preset]:
    """The class and the preset of "method" or "method:preset"; unknown names raise `UsageError` listing the known."""
    base, colon, wanted = name.partition(":")
    cls = get(base)
    if not colon:
        return cls, Preset("")
    if wanted not in cls.presets:
        raise UsageError(f"{base} has no preset {wanted!r}: it has {', '.join(cls.presets) or 'none'}")
    return cls, cls.presets[wanted]


def trains(cls: type[Method]) -> bool:
    """Whether the method trains: then it is a `TrainingMethod`, with a checkpoint and a plan."""
    return hasattr(cls, "plan")


def check_family(cls: type[Method], backbone: Backbone) -> None:
    """Raises `UsageError` naming the families that the method is verified on, unless the backbone's is one."""
    if backbone.family not in cls.families:
        raise UsageError(
            f"{cls.name} is not verified on family {backbone.family}: it works on {', '.join(cls.families)}"
        )


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises `UsageError` naming the choices unless `value` is one of them."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")


def check_range(name: str, value: float, *, low: float = 0.0, high: float = float("inf")) -> None:
    """Raises `UsageError` naming the bounds unless low <= value <= high (NaN never is)."""
    if not low <= value <= high:
        raise UsageError(f"{name} must be between {low:g} and {high:g}, not {value!r}")
