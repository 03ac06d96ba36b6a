"""What a full GPU is told to lower, for each method: a setting that it has."""

from __future__ import annotations

import pytest

from erasekit.methods import get, make_config

SMALL = {"recompute": True, "batch": 1}


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("esd", {}, "set variant=x-strict"),
        ("esd", {"variant": "x-strict"}, "set precision=bfloat16"),
        ("esd", {"variant": "x-strict", "precision": "bfloat16"}, "load the model in bfloat16"),
        ("spm", {}, "lower conditions (now 4)"),
        ("spm", {"conditions": 1, "rank": 2}, "lower rank (now 2)"),
        ("spm", {"anchoring": 0.0}, "set precision=bfloat16"),
        ("receler", {}, "lower rank (now 128)"),
        ("mace", {}, "set precision=bfloat16"),  # at_once is for pictures, and not for a step
        ("ac", {"variant": "full"}, "set variant=cross.kv"),
        ("ac", {"variant": "embedding"}, "set precision=bfloat16"),
    ],
)
def test_the_last_resort_names_a_setting_of_the_method(method: str, options: dict, said: str) -> None:
    config = make_config(get(method), SMALL | options)
    assert config.lighter() == f"{said} (begins anew)"
    larger = make_config(get(method), options | {"batch": 3, "recompute": False})
    assert larger.lighter() == "set recompute=true, lower batch (now 3) and raise accumulate (begins anew)"


def test_a_run_goes_on_with_the_advice_that_does_not_begin_anew() -> None:
    free = {"recompute": True, "save_every": 7}
    for method, more in {"esd": {}, "spm": {}, "receler": {}, "ac": {}, "mace": {"at_once": 1}}.items():
        plain, other, decided = (make_config(get(method), given).decisive() for given in ({}, free | more, {"batch": 3}))
        assert plain == other and plain != decided, method
