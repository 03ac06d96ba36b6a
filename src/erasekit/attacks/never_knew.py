"""A model that never knew the target, attacked as if it were an edit of the one that does.

The control of every attack that learns or searches. Its pictures of the target, and whatever else an attack asks of the
unedited model, must come from the model that knows it: the other cannot draw them. So the two become the sides of one
victim, as an edit and its base are, and any ladder runs on it as it is.
"""

from __future__ import annotations

from typing import Any

from erasekit.attacks.sides import Exchange
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.errors import UsageError

PARTS = ("unet", "text_encoder", "vae")


def beside(pipe: Any, never: Any, sight: Sight, sampling: Sampling) -> Victim:
    """A victim whose edited side computes with the weights of `never`, and whose original side is `pipe`.

    Copies no weight. Raises `UsageError` where the two are not of one architecture, or do not read prompts as the same tokens:
    both sides have the pipeline's own tokenizer.
    """
    for part in PARTS:
        own, other = (dict(getattr(one, part).named_parameters()) for one in (pipe, never))
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in other.items()}:
            raise UsageError(f"the model that never knew the target has another {part}: give one of the same recipe")
    if pipe.tokenizer.get_vocab() != never.tokenizer.get_vocab():
        raise UsageError("the model that never knew the target has another tokenizer: give one of the same recipe")
    return Victim(pipe, None, sight, sampling, sides=Exchange([(getattr(pipe, p), getattr(never, p)) for p in PARTS]))
