"""The arms of one target count: every method and preset fitted once, its random control, and what both do to features."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from emoji_features import apart, outputs
from emoji_rows import edit_digest
from many_sets import Work, plain_prompts, sentences
from trained_rule import Rule

import erasekit
from erasekit import methods
from erasekit.edit import Edit
from erasekit.errors import DivergenceError, InfeasibleError, UsageError
from erasekit.evaluation import named_files
from erasekit.evaluation.controls import random_like
from erasekit.evaluation.shards import digest, slug
from erasekit.files import write_whole

PRESETS = {  # those that are meant for many concepts
    "erasepro": r"balanced|many|weighted|crowd",
    "speed": r"people.*",
    "mace-refine": r"people-\d+",
    "mace": r"people-\d+",
}
SETTINGS = {
    "mace-refine": "retain_templates=3",  # of the templates: its fit takes a multiple of the time else
    "mace": "retain_templates=3",
    "erasepro:weighted": "captions=emoji",  # of the kind that the model is asked for
    "erasepro:crowd": "captions=emoji",
}
SOFT, SOFT_FROM = "erasepro:retain_mode=soft", 50
"""The paper's form where what is retained may contradict the targets: "fire" is kept while "fire engine" goes."""
BY_NUMBER = ("mace-refine", "mace")  # only in the preset of that many targets: the authors have a weight for each number
TRAINED = ("mace",)  # of the methods that train the one that is made for many concepts
APART = ("irece",)  # no method to erase many concepts by: it acts while sampling, a pass for each of them
NONE, RANDOM = "no edit", "noise of "


@dataclass(frozen=True)
class Arm:
    """One thing to measure. `edit` is None for the unedited model, and where the method refused (`refused`: why)."""

    name: str
    edit: Edit | None = None
    seconds: float | None = None
    refused: str = ""

    @property
    def draws(self) -> bool:
        return not self.refused

    @property
    def digest(self) -> str:
        """sha256 of all that the edit changes; "" without one. Equal digests on one model draw equal pictures."""
        return "" if self.edit is None else edit_digest(self.edit)


def specs(count: int) -> list[str]:
    """Every closed-form method and MACE, and after each its presets for many concepts; one that names a number, at that
    number only."""
    found = []
    for name in methods.METHODS:
        if name in APART or (methods.trains(methods.get(name)) and name not in TRAINED):
            continue
        known = [preset for preset in methods.get(name).presets if re.fullmatch(PRESETS.get(name, ""), preset)]
        found += [] if name in BY_NUMBER else [_set(name, name)]
        found += [SOFT] if name == "erasepro" and count >= SOFT_FROM else []
        found += [_set(f"{name}:{preset}", name) for preset in known if _number(preset) in (None, count)]
    return found


def _set(spec: str, name: str) -> str:
    """The spec with the settings that it, or else its method, is run with here."""
    settings = SETTINGS.get(spec) or SETTINGS.get(name)
    return f"{spec}:{settings}" if settings else spec


def _number(preset: str) -> int | None:
    ending = re.search(r"\d+$", preset)
    return int(ending[0]) if ending else None


def read_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Method (or method:preset) and parameters of a `method:preset:key=value`."""
    words = spec.split(":")
    return ":".join(word for word in words if "=" not in word), dict(word.split("=", 1) for word in words if "=" in word)


def fit(pipe: Any, work: Work, spec: str, *, states: Path | None = None) -> Arm:
    """The edit of `method:preset:key=value` for the whole set, everything else retained; why a method refused or diverged,
    which it does each time.

    One that trains has what `trained_rule` gives it; its state is kept in `states`, and a run that was ended goes on. What
    ends a run, such as a full GPU or disk, is raised: it says nothing of the method.
    """
    method, given = read_spec(spec)
    cls, preset = methods.resolve(method)  # a wrong name is a mistake, and no refusal
    parameters = Rule().parameters(method) | given
    config = methods.make_config(cls, {**preset.values, **parameters})
    state = _state(states, cls.name, work, config) if states and methods.trains(cls) else None
    known, start = state is not None and state.exists(), time.perf_counter()
    try:
        edit = erasekit.erase(pipe, work.targets, anchor=work.anchors, retain=work.retained, method=method,
                              **({"checkpoint": state} if state else {}), **parameters)  # fmt: skip
    except (DivergenceError, InfeasibleError, UsageError) as error:
        return Arm(spec, refused=str(error))
    return Arm(spec, edit, _seconds(time.perf_counter() - start, state, gone_on=known))


def _state(states: Path, method: str, work: Work, config: Any) -> Path:
    """A file of this work and the parameters that decide the edit, texts in files included: of others there is another
    state, and none is refused as another run's. What memory and time alone depend on may change underway."""
    states.mkdir(parents=True, exist_ok=True)
    own = digest([asdict(work), named_files.contents(config.decisive())])[:12]
    return states / f"{slug(method)}-{work.count}-{own}.safetensors"


def _seconds(seconds: float, state: Path | None, *, gone_on: bool) -> float | None:
    """Those of the whole fit; of one that went on from a state what it took when it was whole, if it ever was."""
    if state is None:
        return seconds
    file = state.with_suffix(".seconds")
    if gone_on:
        return float(file.read_text()) if file.exists() else None
    write_whole(file, f"{seconds:.3f}\n".encode())
    return seconds


def arms(
    pipe: Any, work: Work, wanted: Sequence[str], controls: Sequence[str], *, states: Path | None = None
) -> Iterator[Arm]:
    """The unedited model, the methods in `wanted` order, and noise of the norm of those edits named in `controls`."""
    yield Arm(NONE)
    noises = []
    for spec in wanted:
        arm = fit(pipe, work, spec, states=states)
        if arm.edit is not None and (spec in controls or "all" in controls):
            noises.append(Arm(RANDOM + spec, random_like(arm.edit, pipe, seed=0)))
        yield arm
    yield from noises


class Probe:
    """Features of one target count in the unedited model, to hold an edit's against.

    The gap is taken over targets with as many tokens as their anchors: elsewhere positions do not face each other.
    """

    def __init__(self, pipe: Any, work: Work) -> None:
        length = {word: len(pipe.tokenizer(word).input_ids) for word in (*work.targets, *work.anchors)}
        pairs = [pair for pair in zip(work.targets, work.anchors, strict=True) if length[pair[0]] == length[pair[1]]]
        self.asked, wanted = sentences(pairs)
        self.kept = plain_prompts(work)
        self.wanted, self.before = outputs(pipe, wanted), outputs(pipe, self.kept)

    def measure(self, pipe: Any, edit: Edit | None) -> dict[str, float]:
        """`gap` left between targets and anchors, and `drift` of the retained, both relative norms over all matrices."""
        if edit is None:
            return {"gap": apart(outputs(pipe, self.asked), self.wanted), "drift": 0.0}
        with torch.no_grad(), edit.applied(pipe):
            return {
                "gap": apart(outputs(pipe, self.asked), self.wanted),
                "drift": apart(outputs(pipe, self.kept), self.before),
            }


def record(pipe: Any, work: Work, arm: Arm, probe: Probe) -> dict[str, Any]:
    """The arm's row as plain data: features, cost, and what it is known by."""
    found: dict[str, Any] = {"targets": work.count, "arm": arm.name, "refused": arm.refused}
    if arm.draws:
        found |= probe.measure(pipe, arm.edit)
    if arm.edit is not None:
        noise = arm.name.startswith(RANDOM)
        warnings = arm.edit.self_check.get("warnings", []) if arm.edit.self_check else []
        found |= {"digest": arm.digest, "seconds": arm.seconds, "warnings": list(warnings)}
        found["bytes"] = None if noise else arm.edit.nbytes
    return found
