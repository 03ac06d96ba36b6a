"""Arms: all that draws in a run, each with its prompts: the unedited model, edits, and the controls beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.backbones import _stored
from erasekit.errors import EditError, UsageError
from erasekit.evaluation import controls, fits, labels
from erasekit.evaluation.plan import Entry, Plan
from erasekit.evaluation.shards import digest, versions
from erasekit.evaluation.worker import Brush, Pinned
from erasekit.files import known_sha256, read_bytes

if TYPE_CHECKING:
    from erasekit.evaluation.suites import Prompt, Sampling, Suite


@dataclass(frozen=True)
class Loaded:
    """An edit's file, and what the file says of itself (its tensors are left to the workers).

    `name` makes the arm's key, which rows and folders keep; `label` is what people read. `sha256` is "" as long as the
    edit is still to be fitted: then `file` is where it will lie, and `about` what its request says. `controlled`: whether
    noise of its norm is defined.
    """

    name: str
    label: str
    file: Path
    sha256: str
    about: Mapping[str, Any]
    controlled: bool

    @property
    def facts(self) -> dict[str, Any]:
        """What the results say of the edit."""
        kept = ("method", "parameters", "targets", "anchors", "retain", "seed", "bytes", "self_check")
        return {"file": self.file.name, "sha256": self.sha256} | {key: self.about[key] for key in kept}


@dataclass(frozen=True)
class Arm:
    """One thing that draws `prompts`. `model_sha256` is of the model's files, `edit` is for the results, `note` what a
    reader must know of the arm before its numbers."""

    arm: str
    kind: str
    label: str
    brush: Brush
    prompts: tuple[Prompt, ...]
    model_sha256: str
    edit: dict[str, Any] | None = None
    note: str = ""

    def context(self, sampling: Sampling) -> dict[str, Any]:
        """All that decides this arm's pixels but prompts and seeds."""
        return {
            "model": self.model_sha256, "edit": self.brush.edit.sha256 if self.brush.edit else None,
            "noise": self.brush.noise, "device": self.brush.device, "sampling": asdict(sampling), "versions": versions(),
        }  # fmt: skip


def foresee(plan: Plan, out: Path, model_sha256: str) -> list[Loaded]:
    """The plan's edits in order, without fitting any: those that wait for it as their requests say they will be.

    Raises `EditError` or `UsageError` in one line naming the entry's file or what is wrong with the request.
    """
    return [_foreseen(entry, entry.file or fits.place(entry, out, model_sha256)) for entry in plan.edits]


def load_edits(plan: Plan, out: Path, model_sha256: str, *, known: Sequence[Loaded] | None = None,
               progress: fits.Progress | None = None) -> list[Loaded]:  # fmt: skip
    """The plan's edits in order; those that are to be fitted are fitted once, on the plan's device, into `out/edits/`.

    `known`: what `foresee` gave. `progress` is called while they are fitted, with "fitting: NAME, ..." as the third.
    Raises `EditError` or `UsageError` in one line naming the entry's file or what is wrong with the request.
    """
    found = list(foresee(plan, out, model_sha256) if known is None else known)
    waiting = [i for i, edit in enumerate(found) if not edit.sha256]
    model = fits.source(plan.model, plan.device) if waiting else None
    for i in waiting:
        entry = plan.edits[i]
        found[i] = _loaded(entry, fits.fit(entry, model, out, model_sha256, progress=progress))
    unique = labels.unique([edit.label for edit in found])
    return [replace(edit, label=label) for edit, label in zip(found, unique, strict=True)]


def _foreseen(entry: Entry, path: Path) -> Loaded:
    try:
        return _loaded(entry, path)
    except EditError:  # not fitted yet, or damaged
        if entry.file is not None:
            raise
    about = fits.foreseen(entry)
    return Loaded(entry.name, entry.name if entry.named else labels.label(about), path, "", about, controlled=True)


def _loaded(entry: Entry, path: Path) -> Loaded:
    from erasekit import io

    data = read_bytes(path)
    edit = io.parse(data, path)
    about = edit.describe()
    label = entry.name if entry.named else labels.label(about)
    return Loaded(entry.name, label, path, hashlib.sha256(data).hexdigest(), about, controls.has_noise(edit))


def build(plan: Plan, suite: Suite, edits: Sequence[Loaded], model_sha256: str) -> list[Arm]:
    """The arms of one suite: base first, then each edit with its random control, then the models that never knew.

    An edit is asked its own targets' prompts, the base all prompts of all arms. Raises `UsageError` where there is
    neither an edit nor a target to ask for, and for two models that never knew the same.
    """
    if not edits and not plan.targets and len(suite.targets) > 1 and not suite.whole:
        raise UsageError(f"nothing to measure: give --edit, or name targets in a plan ({suite.name} knows "
                         f"{len(suite.targets)})")  # fmt: skip
    asked = {edit.name: suite.prompts(edit.about["targets"], edit.about["anchors"]) for edit in edits}
    whole = union(asked.values()) if edits else suite.prompts(plan.targets)
    own = Brush(plan.model, device=plan.device)
    arms = [Arm("base", "base", "unedited model", own, whole, model_sha256)]
    for edit in edits:
        brush = replace(own, edit=Pinned(edit.file, edit.sha256))
        arm = Arm(f"edit:{edit.name}", "edit", edit.label, brush, asked[edit.name], model_sha256, edit.facts)
        arms.append(arm)
        if plan.control == "random" and edit.controlled:
            arms.append(_random(arm, edit, plan.seed))
    never = [_never(spec, plan, suite, edits, whole) for spec in plan.never]
    if twice := [arm.label for i, arm in enumerate(never) if arm.arm in {one.arm for one in never[:i]}]:
        raise UsageError(f"--never names a {twice[0]} twice: give one for each concept")
    return arms + never


def union(lists: Iterable[Sequence[Prompt]]) -> tuple[Prompt, ...]:
    """All prompts by id, in the order in which they come; one that comes with other seeds has them all."""
    found: dict[str, Prompt] = {}
    for prompt in (prompt for prompts in lists for prompt in prompts):
        known = found.setdefault(prompt.id, prompt)
        if known.seeds != prompt.seeds:
            found[prompt.id] = replace(known, seeds=tuple(dict.fromkeys(known.seeds + prompt.seeds)))
    return tuple(found.values())


def _random(arm: Arm, edit: Loaded, seed: int) -> Arm:
    facts = edit.facts | {"method": controls.RANDOM, "parameters": {"seed": seed}, "self_check": {}}
    return replace(arm, arm=f"random:{edit.name}", kind="random", label=f"noise of the norm of {edit.label}",
                   brush=replace(arm.brush, noise=seed), edit=facts)  # fmt: skip


def _never(spec: str, plan: Plan, suite: Suite, edits: Sequence[Loaded], whole: tuple[Prompt, ...]) -> Arm:
    names = [target for edit in edits for target in edit.about["targets"]] or [*(plan.targets or suite.targets)]
    model = controls.never(spec, list(dict.fromkeys(names)))
    lists = [
        suite.prompts(e.about["targets"], e.about["anchors"]) for e in edits if model.concept in e.about["targets"]
    ]
    asked = union(lists) if lists else whole
    prompts = controls.fair(asked, suite, model)
    brush, label = Brush(str(model.folder), device=plan.device), f"model that never knew {model.concept}"
    note = f"{label}: not asked {len(asked) - len(prompts)} of {len(asked)} prompts, which ask for others that it never knew"
    return Arm(f"never:{model.concept}", "never", label, brush, prompts, model_sha256(model.folder),
               note=note if len(prompts) < len(asked) else "")  # fmt: skip


def model_facts(name: str, folder: Path) -> dict[str, str]:
    """What results and pictures say of a model in a folder: its name, no path of this machine, and its hash."""
    return {"id": folder.name if Path(name).expanduser().exists() else name, "sha256": model_sha256(folder)}


def model_sha256(folder: Path) -> str:
    """The sha256 of a model folder: of the names and hashes of the files that it is read from, and of no others."""
    hashes = {path.relative_to(folder).as_posix(): known_sha256(path) for path in _stored.files(folder)}
    if len(hashes) < 2:
        raise UsageError(f"{folder} holds no component of a model: give a whole diffusers folder")
    return digest(hashes)


def fit_seconds(arm: Arm) -> float | None:
    """How long this run took to fit the arm's edit; None for an edit that came as a file."""
    path = arm.brush.edit.path.with_suffix(".seconds") if arm.brush.edit else None
    return float(path.read_text()) if path is not None and path.is_file() else None
