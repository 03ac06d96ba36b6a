"""ErasePro's parameters (`erasepro`), and the templates and sites that they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from erasekit.errors import UsageError
from erasekit.methods import check_choice, check_range
from erasekit.methods._captions import written_out

TEMPLATES: dict[str, tuple[str, ...]] = {
    "bare": ("{}",),
    "short": ("{}", "a {}", "the {}", "a photo of a {}", "a picture of {}"),
    "complex": (
        "{}", "a {}", "a photo of a {}", "a {} and a tree", "a house next to a {}",
        "a painting of a {} in the rain", "two people look at a {} on a blue background",
    ),
}  # fmt: skip
SITES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # (groups in each text layer, groups of the denoiser)
    "progressive": (("text.q", "text.k", "text.v"), ("cross.k", "cross.v")),
    "text": (("text.q", "text.k", "text.v"), ()),
    "deep": ((), ("cross.k", "cross.v")),
    "kv": (("text.k", "text.v"), ("cross.k", "cross.v")),
    "v_only": (("text.q", "text.k", "text.v"), ("cross.v",)),
}


@dataclass(frozen=True)
class EraseProConfig:
    """Parameters of ErasePro; the defaults are the paper's method. A wrong value raises `UsageError`."""

    templates: tuple[str, ...] = ("bare",)
    """Prompts with {} for the concept, or the names bare, short, complex; separated by ";"."""
    positions: Literal["all", "content", "concept"] = "all"
    """all of the encoder's positions; content: BOS, first differing position to first EOS, last padding; concept:
    BOS and the positions whose tokens differ."""
    sites: Literal["progressive", "text", "deep", "kv", "v_only"] = "progressive"
    """progressive: text q, k, v, then cross k, v; text or deep: one of the parts; kv: no q; v_only: no cross k."""
    layers: int | None = None
    """How many text layers are aligned, counted from the shallowest; none: all."""
    tolerance: float | None = None
    """Singular values below this fraction of the largest are dropped; none: 1e-10 (exact) for one template, 1e-2 for
    several, whose columns at layer 0 nearly contradict each other."""
    ridge: float = 0.0
    """Softens the constraint: mu as a fraction of sigma_1^2 of the inputs, to which every padding column adds: for one
    prompt 1e-2 is about a column's own square. 0 is exact; 1e-3 is usual, or 1e-3 / eps with covariance or soft
    retention, which count ridge * eps in directions that they do not protect."""
    covariance: bool = False
    """Weight changes by the second moment of captions: the same residual, less drift on prompts like these."""
    captions: tuple[str, ...] = ()
    """The captions for `covariance`, separated by ";", @FILE with one a line, or a name: generic (two dozen, as people
    write for photos; also where none are given), emoji (400 of the embedded model's kind)."""
    eps: float = 1e-2
    """The multiple of I added to a second moment of mean diagonal 1 (covariance, soft retention)."""
    retain_mode: Literal["none", "exact", "soft"] = "exact"
    """exact: retained prompts do not change at any constrained position (softly where they exceed the width, or
    would make a change as large as the weights); soft: weighted by their second moment; none: measured only."""
    keep_empty: bool = False
    """Retain the empty prompt too, which classifier-free guidance reads."""
    compensate: bool = False
    """Also solve layer 0's out_proj for the skip path's gap: everything is then exact after one layer, and
    deeper levels have nothing left to change."""
    on_conflict: Literal["error", "average"] = "error"
    """Two wanted values for one column: an error that names the prompts, or the least-squares compromise. Softly
    retained prompts give way instead, with a warning that names both."""

    def __post_init__(self) -> None:
        for template in self.templates:
            if template not in TEMPLATES and template.count("{}") != 1:
                raise UsageError(f"templates: {template!r} must hold one {{}}, or be one of {', '.join(TEMPLATES)}")
        if not self.templates:
            raise UsageError("templates is empty: give at least one, such as bare")
        check_choice("positions", self.positions, ("all", "content", "concept"))
        check_choice("sites", self.sites, tuple(SITES))
        check_choice("retain_mode", self.retain_mode, ("none", "exact", "soft"))
        check_choice("on_conflict", self.on_conflict, ("error", "average"))
        check_range("layers", 1 if self.layers is None else self.layers, low=1)
        check_range("tolerance", self.tau, high=0.5)
        check_range("ridge", self.ridge, high=1e12)
        check_range("eps", self.eps, low=1e-9, high=1e12)
        if self.captions and not self.covariance:
            raise UsageError("captions are for covariance=true: set it too")
        written_out(self.captions)  # a file that cannot be read is refused before anything is loaded
        if self.keep_empty and self.retain_mode == "none":
            raise UsageError("keep_empty needs retain_mode exact or soft")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The templates with the names replaced, without repetitions."""
        return tuple(dict.fromkeys(prompt for name in self.templates for prompt in TEMPLATES.get(name, (name,))))

    @property
    def tau(self) -> float:
        """The tolerance in force."""
        return (1e-10 if len(self.prompts) == 1 else 1e-2) if self.tolerance is None else self.tolerance

    @property
    def exact(self) -> bool:
        """Whether a residual above the bound is an error."""
        return self.ridge == 0 and self.tau <= 1e-8
