"""Attacks one above the other: each is run on the cases that the cheaper ones left clean, so that what counts is the worst
case over all of them. A rung that is done is kept; a run that was stopped goes on with the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.attacks import check_family, get
from erasekit.attacks.base import Case, Outcome, Spent
from erasekit.errors import ModelError, TrainingError, UsageError
from erasekit.evaluation.statistics import Share
from erasekit.files import check_writable, write_folder, write_whole
from erasekit.methods import make_config

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

STATE, OUTCOMES = "state.json", "outcomes.json"
SAID = {"kind": "kind of target", "versions": "library versions"}  # where a state's name does not say what it means
SKIPS = (UsageError, ModelError, TrainingError)  # what an attack says where it cannot be run; all else ends the ladder


@dataclass(frozen=True)
class Rung:
    """One attack with its settings. `counts`: in the worst case; what changes weights or teaches has its own number."""

    label: str
    attack: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: bool = True


@dataclass(frozen=True)
class Ladder:
    """A fixed list of rungs, cheapest first; `name` carries its version."""

    name: str
    rungs: tuple[Rung, ...]

    @property
    def digest(self) -> str:
        """The sha256 of all that the rungs are: two ladders of one digest are one ladder."""
        plain = [self.name, [asdict(rung) for rung in self.rungs]]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Climbed:
    """A rung that is done: how each case ended. Cases that a rung below had already are not tried again. `skipped`: why it
    could not be run; it has no outcomes then."""

    rung: Rung
    outcomes: tuple[Outcome, ...]
    skipped: str = ""

    @property
    def share(self) -> Share:
        """In how many of the cases tried the target was shown; invalid ones count in neither number."""
        valid = [one for one in self.outcomes if one.status != "invalid"]
        return Share(sum(one.shown for one in valid), len(valid))

    @property
    def invalid(self) -> int:
        """The cases tried that count in neither number of the share."""
        return sum(one.status == "invalid" for one in self.outcomes)

    @property
    def unattacked(self) -> int:
        """The cases that showed the target without the attack."""
        return sum(one.status == "skipped" for one in self.outcomes)

    @property
    def fell(self) -> float | None:
        """How far along its curve (in the attack's own unit) the first case was that the attack brought out; None without
        one. Where there is no curve: the pictures that it took."""
        at = [one.curve[-1][0] if one.curve else one.spent.pictures for one in self.outcomes if one.status == "success"]
        return float(min(at)) if at else None

    @property
    def spent(self) -> Spent:
        """What the rung cost in all."""
        return sum((one.spent for one in self.outcomes), Spent())


def climb(
    victim: Victim, cases: Sequence[Case], ladder: Ladder, folder: Path, *, about: Mapping[str, Any], seed: int = 0,
    progress: Progress | None = None, tolerant: bool = False,
) -> list[Climbed]:  # fmt: skip
    """Every rung in turn, each kept in a folder of its own as it is done.

    An attack that says that it cannot be run here is `skipped`, and the ladder goes on; the same call tries it again. Where
    that leaves nothing, or plain pictures fail, with which every attack begins, its error is raised (`tolerant`: only the
    latter).

    `about`: what else decides the outcomes (model, edit, judge, sampling). Raises `UsageError` for a folder whose state
    is of another run, saying in what they differ.
    """
    known = {"ladder": ladder.digest, "seed": seed, "cases": [asdict(case) for case in cases], **about}
    state = json.loads(json.dumps(known))
    _require_same(folder / STATE, state)
    done: list[Climbed] = []
    errors: list[Exception] = []
    for number, rung in enumerate(ladder.rungs, 1):
        place = place_of(folder, number, rung)
        if not place.exists():
            if progress:
                progress(number - 1, len(ladder.rungs), f"attacks: {rung.label}")
            try:
                found = run(victim, _left(cases, done) if rung.counts else cases, rung, seed=seed)
            except SKIPS as error:
                if rung.attack == "prompts" or (len(ladder.rungs) == 1 and not tolerant):
                    raise
                errors.append(type(error)(str(error)))  # the old one holds on to what filled the memory
                done.append(Climbed(rung, (), str(error)))
                continue
            write_whole(
                folder / STATE, (json.dumps(state, indent=1) + "\n").encode()
            )  # a request that fails leaves none
            keep(place, found)
        done.append(Climbed(rung, tuple(kept(place))))
    if errors and len(errors) == len(done) and not tolerant:
        raise errors[0]
    return done


def run(victim: Victim, cases: Sequence[Case], rung: Rung, *, seed: int) -> list[Outcome]:
    """One rung on these cases; none on no case. A family that it does not know is a `UsageError`, a full GPU a
    `TrainingError`."""
    cls = get(rung.attack)
    check_family(cls, victim.family)
    with memory_line():
        return cls().run(victim, cases, make_config(cls, rung.settings), seed=seed) if cases else []


@contextmanager
def memory_line() -> Iterator[None]:
    """Inside, a GPU that is full ends in a `TrainingError` of one line that names what to lower."""
    from torch.cuda import OutOfMemoryError

    from erasekit.attacks.victim import Sampling

    try:
        yield
    except OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is full: have fewer pictures at once (--batch N, by default {Sampling.batch}), "
                            "or free memory of other programs") from error  # fmt: skip


def worst(cases: Sequence[Case], done: Sequence[Climbed]) -> Share:
    """In how many cases some rung that counts showed the target; a case that was never judged counts in neither."""
    valid = [ones for ones in _ends(cases, done) if any(one.status != "invalid" for one in ones)]
    return Share(sum(any(one.shown for one in ones) for ones in valid), len(valid))


def never_judged(cases: Sequence[Case], done: Sequence[Climbed]) -> int:
    """The cases that the worst case leaves out: tried by rungs that count, and invalid in all of them."""
    return sum(bool(ones) and all(one.status == "invalid" for one in ones) for ones in _ends(cases, done))


def _ends(cases: Sequence[Case], done: Sequence[Climbed]) -> list[list[Outcome]]:
    """How each case ended in the rungs that count."""
    counted = [one for rung in done if rung.rung.counts for one in rung.outcomes]
    return [[one for one in counted if one.case == case] for case in dict.fromkeys(cases)]


def place_of(folder: Path, number: int, rung: Rung) -> Path:
    """Where the outcomes of the rung lie, which is the `number`-th from 1 on."""
    return folder / f"{number:02}-{rung.label.replace(' ', '-')}"


def keep(place: Path, outcomes: Sequence[Outcome]) -> None:
    """Write outcomes and their pictures as a folder that appears whole."""

    def fill(folder: Path) -> None:
        for i, one in enumerate(outcomes):
            if one.image is not None:
                write_whole(folder / f"{i:04}.png", _png(one.image))
        lines = [_plain(one) for one in outcomes]
        write_whole(folder / OUTCOMES, (json.dumps(lines, indent=1) + "\n").encode())

    write_folder(place, fill)


def kept(place: Path) -> list[Outcome]:
    """The outcomes of a folder that `keep` wrote, with their pictures; tensors are not kept."""
    from PIL import Image

    found = []
    for i, line in enumerate(json.loads((place / OUTCOMES).read_text())):
        picture = place / f"{i:04}.png"
        image = None
        if picture.exists():
            with Image.open(picture) as opened:
                image = opened.convert("RGB")
        more = {
            "case": Case(**line["case"]),
            "spent": Spent(**line["spent"]),
            "curve": tuple(map(tuple, line["curve"])),
        }
        found.append(Outcome(**(line | more), image=image))
    return found


def require_same(path: Path, about: Mapping[str, Any]) -> None:
    """Raises `UsageError` where `path` holds the state of another run than `about` (saying in what they differ) or is
    damaged, `EditError` where it cannot be written."""
    _require_same(path, dict(about))


def _left(cases: Sequence[Case], done: Sequence[Climbed]) -> list[Case]:
    shown = {one.case for rung in done if rung.rung.counts for one in rung.outcomes if one.shown}
    return [case for case in cases if case not in shown]


def _plain(outcome: Outcome) -> dict[str, Any]:
    bare = replace(outcome, image=None, tensors={})
    return {key: value for key, value in asdict(bare).items() if key not in ("image", "tensors")}


def _png(image: Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _require_same(path: Path, about: dict[str, Any]) -> None:
    """Refuse a folder that holds another run's state, or cannot be written."""
    check_writable(path)
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged: name another folder, or delete this one") from error
    every: list[str] = list({**about, **found})
    names = [SAID.get(name, name) for name in every if about.get(name) != found.get(name)]
    if names:
        raise UsageError(f"{path.parent} holds the attacks of another run (other {', '.join(names)}): name another folder, "
                         "or delete it to begin anew")  # fmt: skip
