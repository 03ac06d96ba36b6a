"""Lists of targets that are too long: said before the work, in words that are true of the method."""

from __future__ import annotations

import warnings

import pytest

import erasekit
from erasekit.concept import EraseRequest
from erasekit.errors import UsageError
from erasekit.methods import get, make_config
from erasekit.methods._crowd import CrowdWarning, crowded

MANY = [a + b for a in "bcdfgh" for b in "kmnpqr"]


def said(method: str, **options) -> str:
    return crowded(method, EraseRequest.build(MANY, anchor="dog"), make_config(get(method), options), 32)


def test_what_is_said_is_true_of_the_method() -> None:
    assert "no weight can send each to its own anchor" in said("erasepro")
    assert "share 72 turns of training, about 2 each" in said("esd", steps=72)
    assert "share 144 turns" in said("ac", steps=72, batch=2) and "share 144 turns" in said(
        "receler", steps=72, accumulate=2
    )
    assert "the fused matrices cannot do for each what its own LoRA does" in said("mace")
    assert said("spm") == said("irece") == ""  # no weight is shared
    for method in ("erasepro", "esd", "mace"):
        few = EraseRequest.build(MANY[:32], anchor="dog")
        assert crowded(method, few, make_config(get(method), {}), 32) == ""


@pytest.mark.parametrize(("method", "options"), [("esd", {"steps": 35}), ("ac", {"steps": 17, "batch": 2})])
def test_fewer_turns_than_targets_are_refused(method: str, options: dict) -> None:
    with pytest.raises(UsageError, match=r"36 targets, but 3\d turns .* raise steps \(now") as error:
        said(method, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("method", "named"), [("esd", "share 40 turns"), ("mace", "fused matrices")])
def test_it_is_said_before_the_work(method: str, named: str, sd1, monkeypatch) -> None:
    def work(*args, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(get(method), "fit", work)
    with pytest.warns(CrowdWarning, match=named), pytest.raises(KeyboardInterrupt):
        erasekit.erase(sd1, MANY, anchor="dog", method=method, steps=40)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("error")
        erasekit.erase(sd1, MANY[:32], anchor="dog", method=method, steps=40)
