"""What every method that trains can be told, besides its own parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from erasekit.methods import check_choice, check_range


@dataclass(frozen=True)
class TrainingConfig:
    """The loop's parameters; a method's own configuration inherits them. A wrong value raises `UsageError`."""

    steps: int = 1000
    """Optimiser steps."""
    batch: int = 1
    """Samples in one forward pass; they share concept and timestep."""
    rate: float = 1e-5
    """Learning rate."""
    accumulate: int = 1
    """Batches whose mean gradient makes one step."""
    clip: float = 0.0
    """Largest norm of the whole gradient; 0: not clipped."""
    decay: float = 0.0
    """Decoupled weight decay (AdamW); 0: Adam."""
    ema: float = 0.0
    """Decay of a moving average of the trained weights, which then is the result; 0: the last weights are."""
    precision: str = "model"
    """model: compute as the model is stored (a float16 model under bfloat16 autocast, where gradients do not
    underflow); bfloat16: under autocast. What is trained is float32 in any case."""
    recompute: bool = False
    """Gradient checkpointing: less memory, about a third more time in the pass with gradients."""
    save_every: int = 50
    """Steps between checkpoints, where one is asked for; changes nothing in the result."""

    FREE: ClassVar[frozenset[str]] = frozenset({"save_every", "recompute"})
    """What changes nothing in the result, rounding aside: a run goes on from a checkpoint that was made with other values."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every"):
            check_range(name, getattr(self, name), low=1, high=1e9)
        for name in ("clip", "decay"):
            check_range(name, getattr(self, name), high=1e12)
        check_range("rate", self.rate, low=1e-12, high=1e3)
        check_range("ema", self.ema, high=0.999999)
        check_choice("precision", self.precision, ("model", "bfloat16"))

    def lighter(self) -> str:
        """What asks for less memory in a training step than these parameters, in words for whoever has none left."""
        first = [] if self.recompute else ["set recompute=true"]
        many = f"lower batch (now {self.batch}) and raise accumulate" if self.batch > 1 else self.last_resort()
        return ", ".join([*first, anew(many)])

    def last_resort(self) -> str:
        """What is left to lower at a batch of one, in words; a method's own configuration names what it has."""
        return "set precision=bfloat16" if self.precision == "model" else "load the model in bfloat16"

    def decisive(self) -> dict[str, Any]:
        """The parameters that decide the result: what a checkpoint must agree in."""
        return {name: value for name, value in asdict(self).items() if name not in self.FREE}


def anew(advice: str) -> str:
    """The advice as one that decides the result: no checkpoint is gone on from with it."""
    return f"{advice} (begins anew)"


ELSEWHERE = anew("run on the CPU with --device cpu")
"""What is left where no parameter asks for less memory: prompts and pictures that are read one by one."""
