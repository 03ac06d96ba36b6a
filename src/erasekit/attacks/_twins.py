"""Attacks beside their twins that see less: where the blind one does better, the other is not what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from erasekit.attacks import get
from erasekit.attacks._check import Check
from erasekit.attacks.ladder import Climbed, Rung
from erasekit.methods import make_config

TWINS = (("concept-inversion", "textual-inversion"), ("unlearndiffatk", "prompts"), ("p4d", "prompts"),
         ("latent-inversion", "latent-inversion"))  # fmt: skip


def twins(done: Sequence[Climbed], where: str) -> list[Check]:
    """A warning for each rung that a twin which sees less has beaten. Of two rungs on other cases only the twin's more
    hits on what the white box left over are known to beat it."""
    found: list[Check] = []
    for white, black in ((one, other) for one in done for other in done if paired(one.rung, other.rung)):
        inside = {one.case for one in black.outcomes} <= {one.case for one in white.outcomes}
        tried = {one.case for one in white.outcomes if one.status != "invalid"}
        less, more = (sum(one.shown for one in rung.outcomes if one.case in tried) for rung in (white, black))
        if inside and more > less:
            says = (f"{black.rung.label} shows the target in {more} cases where {white.rung.label}, which sees more, does in "
                    f"{less} ({where}): do not trust the latter's failures")  # fmt: skip
            found.append(Check("twins", white.rung.label, "warned", says, less, len(tried), len(tried)))
    return found


def paired(white: Rung, black: Rung) -> bool:
    """Whether the second is the twin of the first that sees less, at no more pictures."""
    if (white.attack, black.attack) not in TWINS:
        return False
    if black.attack == "textual-inversion":
        return True
    search, seeds = (make_config(get(rung.attack), rung.settings) for rung in (white, black))
    if white.attack == black.attack:  # an attack that has a side: all else is the same
        return search.side == "edited" and seeds == replace(search, side="original")
    search = search.settled() if hasattr(search, "settled") else search
    return 1 < seeds.seeds <= 1 + search.timesteps  # the search draws the plain picture, and one after each round
