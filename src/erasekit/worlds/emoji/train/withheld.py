"""What a model is trained without, and the file in its folder that says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from erasekit.evaluation.controls import WITHOUT
from erasekit.files import write_whole

from ....errors import UsageError
from ..concepts import STYLES, names
from ..scenes import Scene


@dataclass(frozen=True)
class Withheld:
    """Concepts and styles that no training scene shows, and so no caption names, by no synonym either.

    A word that is part of another concept's name stays ("hot dog" without "dog"). Raises `UsageError` for a word that is
    no concept or style, and where too little is left to draw.
    """

    concepts: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, words, known in (("concept", self.concepts, names()), ("style", self.styles, STYLES)):
            if unknown := sorted(set(words) - set(known)):
                raise UsageError(f"'{unknown[0]}' is no {kind} of the emoji world: choose from {', '.join(known)}")
        if len(set(self.concepts)) > len(names()) - 2 or set(self.styles) == set(STYLES):
            raise UsageError("at least two concepts and one style must be left: withhold fewer")

    def among(self, objects: Collection[int], style: int | None) -> bool:
        """Whether one of the objects, or the style, is withheld."""
        return (style is not None and STYLES[style] in self.styles) or any(names()[i] in self.concepts for i in objects)

    def shown_by(self, scene: Scene) -> bool:
        """Whether the scene shows any of them."""
        return self.among(scene.objects, scene.style)

    @property
    def things(self) -> tuple[str, ...]:
        """All of them in one order, as suites call them: "cat", "ink style"."""
        return (*sorted(set(self.concepts)), *(f"{style} style" for style in sorted(set(self.styles))))

    @property
    def suffix(self) -> str:
        """What is added to the names of all files, so that they never mix with those of other data."""
        parts = [thing.replace(" style", "-style") for thing in self.things]
        name = "+".join(parts).replace(" ", "_")
        short = name if len(name) <= 60 else f"{len(parts)}-things-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return f"-without-{short}" if parts else ""

    def note(self, folder: Path) -> None:
        """Writes what the model in `folder` never saw into its `without.json`, which `erasekit evaluate --never` reads."""
        found = {"concepts": sorted(set(self.concepts)), "styles": sorted(set(self.styles))}
        write_whole(folder / WITHOUT, (json.dumps(found, indent=1) + "\n").encode())


NOTHING = Withheld()
