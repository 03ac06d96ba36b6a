"""The unedited model as one that an edit renamed: where an attack can start from prompts that do not name the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from erasekit.attacks.base import Case
from erasekit.attacks.ring_a_bell import NEUTRAL
from erasekit.attacks.synonyms import renamed
from erasekit.attacks.victim import Victim

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from erasekit.attacks.sight import Sight
    from erasekit.attacks.victim import Sampling


class Renamed(Victim):
    """The unedited model as the victim of a renaming: its original side reads the given prompts with the name put back."""

    def __init__(self, pipe: Any, sight: Sight, sampling: Sampling, named: Mapping[str, str]) -> None:
        super().__init__(pipe, None, sight, sampling)
        self._named, self._inside = dict(named), 0

    @contextmanager
    def original(self) -> Iterator[None]:
        """Inside, the prompts have their names."""
        self._inside += 1
        try:
            with super().original():
                yield
        finally:
            self._inside -= 1

    def ids(self, prompts: Sequence[str]) -> Int[Tensor, "n length"]:
        """As of any victim."""
        return super().ids([self._read(prompt) for prompt in prompts])

    def draw(self, cases: Sequence[Case], **options: Any) -> list[Any]:
        """As of any victim."""
        return super().draw([replace(case, prompt=self._read(case.prompt)) for case in cases], **options)

    def _read(self, prompt: str) -> str:
        return self._named.get(prompt, prompt) if self._inside else prompt


def nameless(cases: Sequence[Case], sight: Sight) -> tuple[list[Case], dict[str, str]]:
    """The cases that name the target with a neutral word in its place, and what the prompts were."""
    pairs = [(case, renamed(case.prompt, sight, NEUTRAL[sight.kind][:1])) for case in cases]
    left = [(replace(case, prompt=without[0]), case.prompt) for case, without in pairs if without]
    return [case for case, _ in left], {case.prompt: named for case, named in left}
