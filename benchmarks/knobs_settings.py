"""What `erasepro_knobs.py` varies: each knob is a list of settings, every other parameter as in the paper's method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from erasekit.worlds.emoji.captions import SINGLE, fill, sentences
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES

# From bare to busy; the first n of them are "n templates".
TEMPLATES = (
    "{}", "a {}", "a photo of a {}", "the {}", "a picture of a {}", "a {} and a tree", "a house next to a {}",
    "a painting of a {} in the rain", "two people look at a {} on a blue background", "my {} by the lake",
)  # fmt: skip
LONG = (*TEMPLATES[7:], "a small {} on a wooden table", "a cartoon of a happy {} under the sky")
FORMS = (  # of the world's own captions, which a user of another model would not know
    "a photo of a {} in noto style", "a picture of a {} in flat style", "an ink drawing of a {}",
    "a {} on a green background in blob style", "there is a {} on a blue background, twemoji style",
)  # fmt: skip
WORDS = (
    "chair", "horse", "owl", "pizza", "truck", "clock", "crown", "church", "moon", "rose", "bow", "koala", "corn",
    "wine", "tractor", "alien", "key", "book", "cactus", "crab", "bee", "drum", "taco", "fire",
)  # fmt: skip
CAPTIONS = tuple(
    fill(SINGLE[i % len(SINGLE)], (word,), STYLES[i % 5], tuple(BACKGROUNDS)[i % 8]) for i, word in enumerate(WORDS)
)
SIZES, LENGTHS = (1, 2, 5, 10, 50), (1, 5, 20)
ANCHORS = ("nearest", "near", "middle", "farthest", "category", "empty")

Parameters = Mapping[str, Any]
EXACT: Parameters = {"tolerance": 1e-10}
SHORT: Parameters = {"templates": TEMPLATES[:5]}
KEPT: Parameters = {"keep_empty": True}
SOFTLY: Parameters = {**KEPT, "retain_mode": "soft"}
COVARIANCE: Parameters = {"covariance": True}
OWN: Parameters = {"covariance": True, "captions": CAPTIONS}
WEIGHTED: Parameters = {"captions": ("emoji",)}
CAPTIONED = ("weighted", "crowd")


def ridge(mu: float, **others: Any) -> dict[str, Any]:
    """Ridge in place of the constraint; no singular value is dropped as well."""
    return {"ridge": mu, **EXACT, **others}


@dataclass(frozen=True)
class Setting:
    """One point: a label, the method's parameters, and the curve that it lies on.

    `anchor`: pair (the benchmark's own), a rule of `ANCHORS`; `retain`: how many other concepts are retained;
    `concepts`: how many are erased in one edit. `pairs`: the targets and anchors themselves, in place of the run's, and
    `kept`: what is retained beside them.
    """

    label: str
    parameters: Parameters = field(default_factory=dict)
    line: str = ""
    method: str = "erasepro"
    anchor: str = "pair"
    retain: int = 0
    concepts: int = 1
    pairs: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Line and label."""
        return f"{self.line}, {self.label}" if self.line else self.label


@dataclass(frozen=True)
class Knob:
    """A table: its settings, the columns beside gap and drift, and what the curve's axis is called, if it has one."""

    title: str
    settings: tuple[Setting, ...]
    columns: tuple[str, ...] = ("near", "empty", "text update", "cross update", "rank")
    axis: str = ""


def lines(lines: Mapping[str, Parameters], points: Mapping[str, Parameters], **fixed: Any) -> tuple[Setting, ...]:
    """Every line at every point."""
    return tuple(Setting(at, {**a, **b}, line, **fixed) for line, a in lines.items() for at, b in points.items())


def _solutions() -> tuple[Setting, ...]:
    ridges = {f"ridge {mu:g}": ridge(mu) for mu in (1e-3, 1e-2, 3e-2)}
    first: dict[str, Parameters] = {"exact": EXACT, "tau 0.01": {"tolerance": 1e-2}, **ridges}
    weighted: dict[str, Parameters] = {
        "covariance, generic captions": COVARIANCE,
        "covariance, the world's captions": OWN,
    }
    return (
        *lines({"bare": {}}, first | weighted),
        *lines({"5 short": SHORT}, first),
    )


def _templates() -> tuple[Setting, ...]:
    counts = {str(n): {"templates": TEMPLATES[:n]} for n in (1, 2, 5, 8)}
    return lines({"exact": EXACT, "ridge 0.01": ridge(1e-2)}, counts)


def _kinds() -> tuple[Setting, ...]:
    kinds = {"the bare word": ("{}",), "5 short": TEMPLATES[:5], "5 long": LONG, "5 of the world's own": FORMS}
    return tuple(Setting(label, ridge(1e-2, templates=forms)) for label, forms in kinds.items())


def _layers() -> tuple[Setting, ...]:
    first = [Setting(str(n), {"layers": n} if n < 6 else {}, "then cross-attention") for n in (1, 2, 4, 6)]
    return (
        *first,
        Setting("1", {"layers": 1, "sites": "text"}, "text alone"),
        Setting("6", {"sites": "text"}, "text alone"),
    )


def _retention() -> tuple[Setting, ...]:
    exact = [Setting(str(n), {}, "exact", retain=n) for n in (0, *LENGTHS)]
    return (*exact, *(Setting(str(n), {"retain_mode": "soft"}, "soft", retain=n) for n in LENGTHS))


def _many() -> tuple[Setting, ...]:
    ways = {"paper": "erasepro", "balanced": "erasepro:balanced", "weighted": "erasepro:weighted",
            "many": "erasepro:many", "crowd": "erasepro:crowd", "UCE": "uce"}  # fmt: skip
    alone = [Setting(str(n), WEIGHTED if way in CAPTIONED else {}, way, method, concepts=n)
             for way, method in ways.items() for n in SIZES]  # fmt: skip
    kept = [Setting(str(n), WEIGHTED if way in CAPTIONED else {}, f"{way}, 20 retained", f"erasepro:{way}", retain=20,
                    concepts=n) for way in ("balanced", "weighted", "many", "crowd") for n in SIZES[-2:]]  # fmt: skip
    return (*alone, *kept)


def _prefixes() -> tuple[Setting, ...]:
    """Two targets with the same first word, and a retained concept that a target begins with."""
    fire, engine = ("fire", "rose"), ("fire engine", "police car")
    return (
        Setting("fire", pairs=(fire,)),
        Setting("fire engine", pairs=(engine,)),
        Setting("both", pairs=(fire, engine)),
        Setting("both, the mean of both", {"on_conflict": "average"}, pairs=(fire, engine)),
        Setting("fire engine, fire retained", pairs=(engine,), kept=("fire",)),
        Setting("fire engine, fire retained softly", {"retain_mode": "soft"}, pairs=(engine,), kept=("fire",)),
    )


def _quadrants() -> tuple[Setting, ...]:
    sides = {"deep only": {"sites": "deep"}, "progressive": {}}
    return (
        *lines({"soft (ridge 0.01)": ridge(1e-2), "exact": {}}, sides),
        Setting("as published", line="UCE", method="uce"),
    )


def _captions() -> tuple[Setting, ...]:
    """The weighting alone, by how many captions of the world's own and by eps; and what it adds to exact templates."""
    kinds = {"generic": (), **{f"{n} of the world": sentences(n) for n in (25, 100, 400)}}
    alone = lines({kind: {**SOFTLY, "covariance": True, "captions": texts} for kind, texts in kinds.items()},
                  {f"{eps:g}": {"eps": eps} for eps in (1e-1, 1e-2, 1e-3, 1e-4)})  # fmt: skip
    short = {**SOFTLY, **EXACT, "templates": ("short",), "eps": 1e-3}
    return (*alone, Setting("0.001", {**short, "covariance": True, **WEIGHTED}, "400 of the world, exact in 5 short templates"),
            Setting("0.001", short, "not weighted, exact in 5 short templates"))  # fmt: skip


def _crowd() -> tuple[Setting, ...]:
    """Fifty at once with twenty retained, weighted by the world's captions: how soft, and which rows are aligned."""
    rows = {f"{kind} rows": {**WEIGHTED, "positions": kind} for kind in ("all", "content", "concept")}
    return lines(rows, {f"{mu:g}": {"ridge": mu} for mu in (0.003, 0.01, 0.03, 0.1)}, method="erasepro:crowd", concepts=50,
                 retain=20)  # fmt: skip


NORMS = ("near", "empty", "text update", "cross update", "rank")
KNOBS: dict[str, Knob] = {
    "solution": Knob("Exact, truncated, ridge, covariance-weighted", _solutions(), (*NORMS, "residual")),
    "templates": Knob("Number of templates", _templates(), (*NORMS, "residual"), axis="templates"),
    "kinds": Knob("Kind of templates, ridge 0.01", _kinds()),
    "positions": Knob("Positions", lines({"exact": {}, "ridge 0.01": ridge(1e-2)},
                                         {p: {"positions": p} for p in ("all", "content", "concept")})),
    "sites": Knob("Parts of the model", tuple(
        Setting(s, {"sites": s} if s != "progressive" else {}) for s in ("progressive", "text", "deep", "kv", "v_only"))),
    "layers": Knob("First layers of the text encoder", _layers(), axis="text layers"),
    "quadrants": Knob("Soft or exact, deep only or progressive", _quadrants(), (*NORMS, "KiB")),
    "retention": Knob("Retention", _retention(), ("kept", "kept in sentences", "near", "text update", "cross update"),
                      axis="retained concepts"),
    "empty": Knob("The empty prompt", lines(
        {"not kept": {}, "kept": KEPT, "kept softly": SOFTLY}, {"exact": {}, "ridge 0.01": ridge(1e-2)})
        + lines({"kept softly": SOFTLY}, {"2 templates, tau 0.01": {"templates": TEMPLATES[:2]},
                "5 short, exact": {**SHORT, **EXACT},
                "covariance, generic captions": COVARIANCE, "covariance, the world's captions": OWN})),
    "compensate": Knob("Compensation at layer 0", lines({"paper": {}, "compensate": {"compensate": True}},
                                                        {"empty not kept": {}, "empty kept": KEPT})),
    "anchors": Knob("Anchors near and far", tuple(Setting(a, anchor=a) for a in ANCHORS),
                    ("before", "left", "distance", "near", "text update", "cross update"), axis="anchor"),
    "many": Knob("Concepts at once", _many(), ("left", "near", "empty", "kept", "rank", "KiB", "seconds"),
                 axis="concepts"),
    "crowd": Knob("Fifty at once: ridge and rows", _crowd(), ("left", "near", "empty", "kept", "rank", "seconds"),
                  axis="ridge"),
    "prefix": Knob("Targets that begin alike", _prefixes(), ("left", "near", "kept", "rank", "residual")),
    "captions": Knob("Captions to weigh by", _captions(), ("near", "empty", "text update", "rank", "seconds"),
                     axis="eps"),
    "presets": Knob("Presets", (Setting("paper"), Setting("balanced", method="erasepro:balanced"),
                                Setting("weighted, captions=emoji", WEIGHTED, method="erasepro:weighted"),
                                Setting("weighted, generic captions", method="erasepro:weighted"),
                                Setting("many", method="erasepro:many"),
                                Setting("crowd, captions=emoji", WEIGHTED, method="erasepro:crowd"),
                                Setting("UCE", method="uce")), (*NORMS, "KiB")),
}  # fmt: skip
