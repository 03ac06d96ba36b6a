"""What the attacks on weights share: open cases drawn again, parts of a pipeline trained as one, a lesson and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit.attacks.base import Case, Outcome, Spent, shares, still_open
from erasekit.attacks.prompts import better, drawn, unattacked
from erasekit.concept import with_article
from erasekit.training.bench import Denoiser
from erasekit.training.loop import Step, generator
from erasekit.training.parameters import Student
from erasekit.training.settings import TrainingConfig

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from erasekit.attacks.victim import Victim
    from erasekit.training.latents import Schedule

FREE = Spent()
EVERY = slice(None)
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents (b, c, h, w), timesteps (b,), text (b, length, width)) -> prediction (b, c, h, w), float32."""


# -- cases ----------------------------------------------------------------------------------------------------------


def started(victim: Victim, cases: Sequence[Case]) -> list[Outcome]:
    """Each case drawn as it is; the curve of one that is still to be attacked begins at 0."""
    return [one if one.shown else replace(one, curve=((0.0, one.score or 0.0),)) for one in unattacked(victim, cases)]


def again(
    victim: Victim, outcomes: Sequence[Outcome], *, at: float, by: str, each: Spent = FREE, shared: Spent = FREE,
    note: str = "",
) -> list[Outcome]:  # fmt: skip
    """The outcomes after the open cases were drawn once more with the model as it is now; the better picture is kept.

    `at`: where on the curve; `by`: what the model had undergone; what that cost since the last time, besides the picture,
    for `each` open case, and once for all of them, `shared`.
    """
    found, open_ = list(outcomes), still_open(outcomes)
    tried, parts = drawn(victim, [outcomes[i].case for i in open_]), shares(shared, len(open_))
    for i, one, part in zip(open_, tried, parts, strict=True):
        before = outcomes[i]
        best = better(before, replace(one, by=by, spent=one.spent + each + part), before.case)
        found[i] = replace(best, curve=(*before.curve, (float(at), best.score or 0.0)), note=note)
    return found


# -- what is trained ------------------------------------------------------------------------------------------------


class Part(Protocol):
    """Trained tensors of one part of the pipeline: a `Student`, a `LoRA`."""

    trained: dict[str, Tensor]

    def active(self) -> AbstractContextManager[None]:
        """Inside, the part computes with them."""
        ...


class Weights(Student):
    """A `Student` that the pipeline can also draw with, without gradients."""

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, the module has the trained values in its own dtype: a pipeline computes outside autocast, and training
        puts a float16 model's in as float32."""
        with self.active():
            for owner, leaf, name in self._places:
                owner._parameters[leaf] = self.trained[name].detach().to(self.frozen[name].dtype)  # pyright: ignore
            yield


class Together:
    """Trained tensors of several parts of a pipeline as one: `trained`, named "<part>/<tensor>"."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = dict(parts)
        self.trained = {
            f"{name}/{leaf}": tensor for name, part in parts.items() for leaf, tensor in part.trained.items()
        }

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, every part computes with what is trained, with gradients; after it, bit for bit as before."""
        with ExitStack() as stack:
            for part in self._parts.values():
                stack.enter_context(part.active())
            yield

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """As `active`, for pictures: no gradients."""
        with ExitStack() as stack:
            for part in self._parts.values():
                stack.enter_context(part.drawing() if isinstance(part, Weights) else part.active())
            yield


# -- the loss -------------------------------------------------------------------------------------------------------


def denoising(
    predict: Predict, clean: Float[Tensor, "b c h w"], text: Float[Tensor, "n length width"], draw: torch.Generator,
    schedule: Schedule, *, rows: slice = EVERY,
) -> Float[Tensor, " n"]:  # fmt: skip
    """Each sample's mean squared error at a level and noise of its own, in the space that the model predicts in.

    Of `rows` alone, whose text is given; these are drawn among those of all samples, and so the same in any part.
    """
    steps = torch.randint(len(schedule.alphas), (len(clean),), generator=draw)[rows]
    noise, clean = torch.randn(clean.shape, generator=draw)[rows].to(clean), clean[rows]
    alpha, sigma = (levels[steps].to(clean)[:, None, None, None] for levels in (schedule.alphas, schedule.sigmas))
    prediction = predict(alpha * clean + sigma * noise, steps.to(clean.device), text)
    return (prediction - _truth(clean, noise, alpha, sigma, schedule.prediction)).square().mean((1, 2, 3))


def _truth(
    clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], alpha: Float[Tensor, "b 1 1 1"],
    sigma: Float[Tensor, "b 1 1 1"], kind: str,
) -> Float[Tensor, "b c h w"]:  # fmt: skip
    """What a perfect model predicts: eps, or v = alpha eps - sigma x."""
    return noise if kind == "epsilon" else alpha * noise - sigma * clean


def in_turn(count: int, step: Step, batch: int, use: str) -> list[int]:
    """Which of `count` pictures the step learns from: epoch after epoch, each in an order of its own."""
    places = range(step.index * batch, (step.index + 1) * batch)
    return [int(torch.randperm(count, generator=generator(step.seed, use, place // count))[place % count])
            for place in places]  # fmt: skip


# -- a lesson -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What a variant trains, and for how long; `steps` None: given in epochs."""

    words: str
    rate: float
    batch: int
    steps: int | None
    layers: str
    text: bool = False
    prior: float = 0.0

    def course(self, steps: int, most: int, *, clip: float, recompute: bool) -> Course:
        """The loop's parameters; no part of a step has more than `most` samples."""
        samples = self.batch * (2 if self.prior else 1)
        return Course(steps=steps, batch=self.batch, rate=self.rate, accumulate=-(-samples // most), clip=clip,
                      recompute=recompute)  # fmt: skip


@dataclass(frozen=True)
class Course(TrainingConfig):
    """The loop's parameters for a lesson; `accumulate`: the parts that a step is computed in, one after the other."""

    def lighter(self) -> str:
        """A lesson has as many samples at once as pictures are drawn."""
        more = "" if self.recompute else ", relearn by itself with --set recompute=true"
        return f"have fewer pictures at once (--batch N){more}"


@dataclass(frozen=True, eq=False)
class Pictures:
    """Clean latents (n, c, h, w) on the model's device, and the caption of each."""

    clean: Tensor
    captions: list[str]


@dataclass(frozen=True, eq=False)
class Lesson:
    """All that one step needs. `known`: what the edited model reads for a caption, where the encoder is not trained;
    `half`: the encoder is stored in float16."""

    victim: Victim
    setting: Setting
    training: Course
    taught: Pictures
    prior: Pictures | None
    learner: Together
    denoise: Denoiser
    schedule: Schedule
    known: dict[str, Tensor]
    half: bool
    spent: Spent

    def loss(self, step: Step) -> Tensor:
        """A part of the step's loss, that of the pictures and of the prior; the mean over the parts is the whole.

        All is drawn for the whole step: in how many parts it is computed decides memory, and nothing but rounding.
        """
        samples, parts = self._samples(step), self.training.accumulate
        rows = slice(*(len(samples) * end // parts for end in (step.part, step.part + 1)))
        clean = torch.stack([source.clean[i] for source, i, _ in samples])
        draw = Step(step.seed, step.index).generator("noise")
        with self.learner.active():
            text = self._text([source.captions[i] for source, i, _ in samples[rows]])
            errors = denoising(self.denoise, clean, text, draw, self.schedule, rows=rows)
        return parts * (torch.tensor([weight for *_, weight in samples[rows]]).to(errors) * errors).sum()

    def each(self, steps: int) -> Spent:
        """What so many steps cost."""
        samples = steps * self.setting.batch * (1 if self.prior is None else 2)
        return Spent(steps=steps, passes=samples, encodings=samples if self.setting.text else 0)

    def _samples(self, step: Step) -> list[tuple[Pictures, int, float]]:
        """The step's samples: from where, which, and with what weight."""
        sources = [("taught", self.taught, 1.0)]
        sources += [] if self.prior is None else [("prior", self.prior, self.setting.prior)]
        size = self.setting.batch
        return [(source, i, weight / size) for use, source, weight in sources
                for i in in_turn(len(source.clean), step, size, use)]  # fmt: skip

    def _text(self, captions: list[str]) -> Tensor:
        if not self.setting.text:
            return torch.cat([self.known[caption] for caption in captions])
        # In float16 its gradients would underflow.
        with torch.autocast(self.denoise.device.type, torch.bfloat16, enabled=self.half):
            return self.victim.condition(self.victim.ids(captions))


def others(victim: Victim) -> list[str]:
    """Plain captions of what else the judge knows by name; none where it has no list of objects."""
    sight = victim.sight
    labels: Sequence[str] = getattr(sight.judge, "labels", ()) if sight.kind == "object" else ()
    return [plain_caption(label, sight.kind) for label in labels if label not in sight.labels and label != sight.target]


def plain_caption(label: str, kind: str) -> str:
    """The plainest caption of a picture of it."""
    if kind == "style":
        return f"a picture in {label} style"
    return f"a photo of {with_article(label)}"
