"""UA, IRA and CRA counted by hand on a small grid of styles and objects."""

from __future__ import annotations

import pytest

from erasekit.errors import UsageError
from erasekit.evaluation.metrics.unlearncanvas import PROMPT, Seen, scores
from erasekit.evaluation.statistics import Share

GRID = [
    Seen("ink", "cat", "oil", "cat"),  # unlearned, object kept
    Seen("ink", "dog", "ink", "cat"),  # not unlearned, object lost
    Seen("oil", "cat", "oil", "cat"),
    Seen("oil", "dog", "ink", "dog"),  # the style is lost
    Seen("pop", "cat", "pop", "dog"),
]


def test_style() -> None:
    found = scores(GRID, erased="ink", kind="style")
    assert (found.ua, found.ira, found.cra) == (Share(1, 2), Share(2, 3), Share(3, 5))


def test_object_mirrors_it() -> None:
    found = scores(GRID, erased="cat", kind="object")
    assert (found.ua, found.ira, found.cra) == (Share(1, 3), Share(1, 2), Share(3, 5))
    mirrored = [Seen(s.object, s.style, s.found_object, s.found_style) for s in GRID]
    assert scores(mirrored, erased="cat", kind="style") == found


def test_collapse_wins_ua_and_nothing_else() -> None:
    noise = [Seen(s.style, s.object, "noise", "noise") for s in GRID]
    found = scores(noise, erased="ink", kind="style")
    assert (found.ua.value, found.ira.value, found.cra.value) == (1, 0, 0)


def test_bad_requests() -> None:
    for erased, kind in (("ink", "colour"), ("gouache", "style")):
        with pytest.raises(UsageError):
            scores(GRID, erased=erased, kind=kind)
    assert PROMPT.format(object="cat", style="ink") == "a cat image in ink style"
