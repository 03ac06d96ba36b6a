"""Reaches the latents of a pipeline between two steps of its sampling, whatever the prompts, the guidance and the sampler.

Two methods of the user's own objects are wrapped, on the instances: the pipeline's `prepare_latents`, where each run
begins, and the `step` of the scheduler that it then has, until the run is over. Between steps latents come one row a
picture: what is changed there is changed before classifier-free guidance doubles the batch. A sampling loop that is not
the pipeline's is not seen: it announces its latents itself (`announced`).

The latents are scale (alpha x0 + sigma eps), alpha^2 + sigma^2 = 1. The scale is 1 but for the Euler samplers, whose latents
are x0 + s eps: there it is sqrt(1 + s^2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.errors import EditError
from erasekit.fingerprint import digest

if TYPE_CHECKING:
    from erasekit.training.latents import Schedule

SCALED = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
PLAIN = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler")
"""Samplers that take the latents as they are handed over. Others keep their own between steps (UniPC's corrector, the
singlestep solvers) or ask twice at each (Heun): a change would be lost there."""
PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True, eq=False)
class Moment:
    """A point between two steps: before the `index`-th of the `count` passes that sampling asks the denoiser for."""

    index: int
    count: int
    timestep: Any
    level: tuple[float, float]
    """(alpha, sigma)."""
    scale: float
    prediction: str
    rows: tuple[str, ...]
    """A word for each picture, the digest of the noise that it began with: whatever it is batched with, it is the same."""
    ignored: tuple[int, ...] = ()
    """The indices at which the sampler does not look at the latents that it is given."""

    def due(self, shares: Sequence[float]) -> int | None:
        """Which of the shares of the way (0: before the first step) falls on this moment; None for none.

        One that falls on an ignored index goes to the next; of two on one index the first counts.
        """
        return next((n for n, share in enumerate(shares) if falls(share, self.count, self.ignored) == self.index), None)


def falls(share: float, count: int, ignored: Sequence[int] = ()) -> int:
    """The index, of `count`, on which a share of the way falls; past the end where all that are left are ignored."""
    index = min(round(share * count), count - 1)
    while index in ignored:
        index += 1
    return index


@runtime_checkable
class Costly(Protocol):
    """A `Change` that asks the denoiser itself."""

    def passes(self, count: int, first: int, ignored: Sequence[int]) -> int:
        """How often, for one picture of `count` steps, from step `first` on."""
        ...


Change = Callable[[Tensor, Moment], Tensor]
"""(latents (b, c, h, w), where they are) -> the latents that stand in their place."""
Announce = Callable[[Tensor, int], Tensor]
"""(latents (b, c, h, w), the index of the step about to take them) -> the latents that it takes."""


def watch(pipe: Any, change: Change) -> Callable[[], None]:
    """Let `change` act before every step of each run of the pipeline, until the returned function is called.

    Several act in the order in which they came, and come off in any. Raises `EditError` for a pipeline or a sampler
    that cannot be watched; a sampler that the pipeline is given later is looked at when a run begins.
    """
    require(pipe)
    found = vars(pipe).get("prepare_latents")
    if not isinstance(found, _Watch):
        found = _Watch(pipe, found)
        vars(pipe)["prepare_latents"] = found
    found.changes.append(change)
    return lambda: found.drop(change)


def announced(pipe: Any, begun: Float[Tensor, "b c h w"], schedule: Schedule) -> Announce:
    """What a sampling loop that is not the pipeline's calls before each of its steps, for all that acts in the pipeline's own
    runs to act in it: at the same indices and levels, with the same noise for pictures that begin alike.

    `begun`: the noise that the pictures begin with, a row each. The loop's latents are alpha x0 + sigma eps at the levels of
    the schedule. Whether anything acts is asked at each step; where nothing does, the very tensor comes back.
    """
    rows, count = tuple(map(digest, begun)), len(schedule.timesteps)

    def announce(latents: Tensor, index: int) -> Tensor:
        found, timestep = vars(pipe).get("prepare_latents"), schedule.timesteps[index]
        if not isinstance(found, _Watch):
            return latents
        moment = Moment(index, count, timestep, schedule.level(timestep), 1.0, schedule.prediction, rows)
        return found.changed(latents, moment)

    return announce


def added(pipe: Any, count: int, *, first: int = 0, ignored: Sequence[int] = ()) -> int:
    """The passes of the denoiser (one sample each) that all that acts in the pipeline's runs adds to a picture of `count`
    steps, from step `first` on; `ignored` as in a `Moment`."""
    found = vars(pipe).get("prepare_latents")
    changes = found.changes if isinstance(found, _Watch) else ()
    return sum(change.passes(count, first, ignored) for change in changes if isinstance(change, Costly))


def counted(scheduler: Any, steps: int) -> tuple[int, tuple[int, ...]]:
    """How many steps the sampler makes where it is asked for so many (PLMS makes one more), and which it ignores."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps)
    return len(fresh.timesteps), _ignored(scheduler)


def require(pipe: Any) -> None:
    """Raises `EditError` naming what about the pipeline, or its sampler, keeps it from being watched."""
    if "StableDiffusionPipeline" not in [kind.__name__ for kind in type(pipe).__mro__]:
        raise EditError(f"an edit that acts while sampling needs a StableDiffusionPipeline, this is a {type(pipe).__name__}: "
                        "make one of it (StableDiffusionPipeline.from_pipe)")  # fmt: skip
    if hasattr(pipe.unet, "_hf_hook"):
        raise EditError("the pipeline is offloaded, an edit that acts while sampling needs the unet at hand: call "
                        "pipe.remove_all_hooks() and pipe.to(device)")  # fmt: skip
    name, config = type(pipe.scheduler).__name__, pipe.scheduler.config
    steps = name != "PNDMScheduler" or config.get("skip_prk_steps", False)
    if name not in SCALED + PLAIN or config.get("prediction_type", "epsilon") not in PREDICTIONS or not steps:
        raise EditError(f"an edit that acts while sampling cannot reach the latents of this {name}: set pipe.scheduler = "
                        "DDIMScheduler.from_config(pipe.scheduler.config)")  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Run:
    """One call of the pipeline: its sampler, and the words of its pictures."""

    scheduler: Any
    rows: tuple[str, ...]

    def moment(self, index: int) -> Moment:
        scheduler, timesteps = self.scheduler, self.scheduler.timesteps
        name, sigmas = type(scheduler).__name__, getattr(scheduler, "sigmas", None)
        if sigmas is None:
            level = float(scheduler.alphas_cumprod[int(timesteps[index])])
            alpha, sigma = level**0.5, (1 - level) ** 0.5
        else:
            noise = float(sigmas[index])
            alpha, sigma = (1 + noise**2) ** -0.5, noise * (1 + noise**2) ** -0.5
        return Moment(index, len(timesteps), timesteps[index], (alpha, sigma), 1 / alpha if name in SCALED else 1.0,
                      scheduler.config.get("prediction_type", "epsilon"), self.rows, _ignored(scheduler))  # fmt: skip


class _Watch:
    """What stands on a pipeline in place of `prepare_latents`."""

    def __init__(self, pipe: Any, below: Any) -> None:
        """`below`: what stood on the instance before, or None."""
        self._pipe, self._below = ref(pipe), below
        self.changes: list[Change] = []
        self._end: Callable[[], None] = lambda: None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A run begins: the latents that it starts from."""
        pipe: Any = self._pipe()
        self._end()
        require(pipe)
        own = self._below or type(pipe).prepare_latents.__get__(pipe)
        latents = own(*args, **kwargs)
        run = _Run(pipe.scheduler, tuple(map(digest, latents)))
        self._end = _covered(run.scheduler, "step", self._stepping(run, run.scheduler.step))
        return self.changed(latents, run.moment(0))

    @torch.no_grad()
    def changed(self, latents: Tensor, moment: Moment) -> Tensor:
        """What all that act make of the latents, one after the other."""
        for change in self.changes:
            latents = change(latents, moment)
        return latents

    def drop(self, change: Change) -> None:
        """Take one off; with the last, all is as it was."""
        self.changes.remove(change)
        pipe = self._pipe()
        if not self.changes and pipe is not None:
            self._end()
            del vars(pipe)["prepare_latents"]
            vars(pipe).update({} if self._below is None else {"prepare_latents": self._below})

    def _stepping(self, run: _Run, step: Callable[..., Any]) -> Callable[..., Any]:
        """The sampler's `step` for this run, with the same signature (which pipelines look at)."""
        done = 0

        @wraps(step)
        def stepped(model_output: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal done
            timesteps = run.scheduler.timesteps
            if done >= len(timesteps) or float(timestep) != float(timesteps[done]):  # a step of something else
                self._end()
                return step(model_output, timestep, *args, **kwargs)
            found, done = step(model_output, timestep, *args, **kwargs), done + 1
            if done == len(timesteps):
                self._end()
                return found
            moment = run.moment(done)
            if isinstance(found, tuple):
                return (self.changed(found[0], moment), *found[1:])
            found.prev_sample = self.changed(found.prev_sample, moment)
            return found

        return stepped


def _ignored(scheduler: Any) -> tuple[int, ...]:
    """PLMS makes its first step twice, the second time from where the first began."""
    return (1,) if type(scheduler).__name__ == "PNDMScheduler" else ()


def _covered(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Put an attribute over the instance's; what is returned puts it back, once."""
    own = vars(owner)
    kept = [own[name]] if name in own else []
    own[name] = value

    def uncover() -> None:
        if own.get(name) is value:
            del own[name]
            own.update({name: kept[0]} if kept else {})

    return uncover
