"""Sides that cannot be switched leave the pipeline as it was."""

from __future__ import annotations

import edits
import pytest
from diffusers import UniPCMultistepScheduler
from test_announced import irece

from erasekit.attacks import sides as module
from erasekit.attacks.sides import Sides
from erasekit.errors import EditError
from erasekit.layers import layers


def owned(pipe) -> dict[str, int]:
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {f"{part}.{name}": id(one) for part, model in parts.items() for name, one in model.named_parameters()}


def clean(pipe) -> bool:
    return not any(layers.get(one) for part in (pipe.unet, pipe.text_encoder) for one in part.modules())


def test_code_that_cannot_go_on_takes_the_weights_off_again(sd1) -> None:
    before, own = owned(sd1), sd1.scheduler
    sides = Sides(sd1, edits.edit(sd1) + irece(sd1))
    sd1.scheduler = UniPCMultistepScheduler.from_config(own.config)
    with pytest.raises(EditError, match="latents of this UniPC"), sides.edited():
        pass
    assert owned(sd1) == before and clean(sd1) and "prepare_latents" not in vars(sd1)
    sd1.scheduler = own
    with sides.edited():
        assert owned(sd1) != before and not clean(sd1)
    assert owned(sd1) == before and clean(sd1)


def test_also_on_the_way_back_from_the_original(sd1, monkeypatch: pytest.MonkeyPatch) -> None:
    before, sides = owned(sd1), Sides(sd1, edits.edit(sd1) + irece(sd1))

    def stop(*args, **options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), sides.edited(), sides.original():
        assert sides.away
        monkeypatch.setattr(module, "attach", stop)
    assert owned(sd1) == before and clean(sd1) and not sides.away
