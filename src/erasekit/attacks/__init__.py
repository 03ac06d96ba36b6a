"""The attacks by name: `get("concept-inversion")`; what every attack is.

An attack sees a model with an edit applied (`Victim`), never the method that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from erasekit.attacks.base import ACCESS, STATUSES, Case, Outcome, Spent
from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

__all__ = ["ACCESS", "ATTACKS", "STATUSES", "Attack", "Case", "Outcome", "Spent", "check_family", "get"]

ATTACKS: dict[str, str] = {
    "prompts": "erasekit.attacks.prompts:Prompts",
    "synonyms": "erasekit.attacks.synonyms:Synonyms",
    "relearn": "erasekit.attacks.relearn:Relearn",
    "subtract": "erasekit.attacks.subtract:Subtract",
    "weight-noise": "erasekit.attacks.weight_noise:WeightNoise",
    "latent-inversion": "erasekit.attacks.latent_inversion:LatentInversion",
    "noise": "erasekit.attacks.probes_noise:Noise",
    "completion": "erasekit.attacks.probes_completion:Completion",
    "inpainting": "erasekit.attacks.probes_inpainting:Inpainting",
    "steering": "erasekit.attacks.probes_steering:Steering",
    "unlearndiffatk": "erasekit.attacks.unlearndiffatk:UnlearnDiffAtk",
    "p4d": "erasekit.attacks.p4d:P4D",
    "ring-a-bell": "erasekit.attacks.ring_a_bell:RingABell",
    "mma": "erasekit.attacks.mma:MMA",
    "concept-inversion": "erasekit.attacks.concept_inversion:ConceptInversion",
    "textual-inversion": "erasekit.attacks.textual_inversion:TextualInversion",
}


class Attack(Protocol):
    """One way to bring an erased concept back. `run` leaves the model as it found it."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    access: ClassVar[tuple[str, ...]]
    """What it must have, words of `ACCESS`."""
    families: ClassVar[tuple[str, ...]]
    """The model families that have what it needs; on another it is refused (`check_family`)."""
    Config: ClassVar[type[Any]]

    def run(
        self, victim: Victim, cases: Sequence[Case], config: Any, *, seed: int = 0, progress: Progress | None = None
    ) -> list[Outcome]:
        """One outcome for each case, in order; deterministic for `seed`. Raises `UsageError` for a model that lacks
        what the attack needs."""
        ...


def get(name: str) -> type[Attack]:
    """The attack's class; an unknown name raises `UsageError` that lists the known ones."""
    if name not in ATTACKS:
        raise UsageError(f"unknown attack {name!r}: use one of {', '.join(ATTACKS)}")
    module, _, attribute = ATTACKS[name].partition(":")
    return getattr(import_module(module), attribute)


def check_family(attack: Any, family: str) -> None:
    """Raises `UsageError` for a model of a family that lacks what the attack needs."""
    if family not in attack.families:
        raise UsageError(f"{attack.name} needs a model of family {', '.join(attack.families)}, not {family}: `erasekit "
                         "attacks` says what else there is")  # fmt: skip
