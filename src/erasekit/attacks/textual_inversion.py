"""Black-box textual inversion: a word learned on the unedited model, then used on the edited one.

The twin of Concept Inversion for an attacker who cannot differentiate through the edited model: textual inversion (Gal et
al., arXiv 2208.01618, ICLR 2023) with the unedited model's denoiser, text encoder and token table. What is found is one
word v (k, width) for the target that no edit has seen; the edited model is only asked for pictures with it.

    L(v) = E | wanted - f(z_t, t, E(v)) |^2        f, E the unedited model's

This is the embedding scenario of M-ErasureBench in its black-box form, as its text suggests it. Budget and pictures are
those of Concept Inversion, so that the two differ in the model that is learned on and in nothing else: without an edit
they find the same word bit for bit. Where this one does better, the other's gradients are not to be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from erasekit.attacks._inversion import InversionConfig, invert
from erasekit.attacks._inversion_learn import Variant
from erasekit.attacks.base import Case, Outcome

if TYPE_CHECKING:
    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress


class TextualInversion:
    """Learns one word on the unedited model for all cases; an outcome is each case drawn with it by the edited model.

    `tensors["rows"]` (k, width) is the word, to be tried elsewhere.
    """

    name: ClassVar[str] = "textual-inversion"
    title: ClassVar[str] = "Textual inversion: a word learned on the unedited model"
    paper: ClassVar[str] = "arXiv 2208.01618"
    access: ClassVar[tuple[str, ...]] = ("prompts", "original", "images")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[InversionConfig]] = InversionConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: InversionConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order; the edited model's gradients are never asked for."""
        return invert(victim, cases, config, Variant(), side=victim.original, seed=seed, progress=progress)
