"""Steered latents: a small classifier of noisy latents pushes the edited model's sampling towards the target.

Probes 6 and 7 of "When Are Concepts Erased From Diffusion Models?" (arXiv 2505.17013, NeurIPS 2025). f(x_t, t) tells
latents of pictures with the target (y = 1) from latents of others. At each DDIM step, with eps the guided prediction,
x_t (b, c, h, w) at the level (alpha, sigma), and scale s:

    eps~ = eps - sigma s grad_x log p(y = 1 | x_t),       log p = log sigmoid f

    f: flat x_t -> 1024, plus (alpha, sigma) -> 1024; SiLU, dropout 0.3; -> 512; SiLU, dropout 0.3; -> 1

s goes through 25, 32, .., 193, and the best picture counts; `etas` above 0 are probe 7, with noise put in at every step.
The gradient goes through the classifier alone. On models that predict v the push acts on the noise that v stands for.

Training: every picture in `views` noisy views an epoch, t = floor(u^(1/3) (T - 1)) (mostly noisy), binary cross-entropy
with positives weighted negatives / positives, AdamW, gradients clipped at 1, a tenth held out, the epoch with the lowest
held-out loss kept. The pictures are the unedited model's: of the cases' prompts where the judge finds the target (or a
folder's), and of the prompts `others` where it does not.

A strong classifier can paint texture that fools the judge: look at the pictures, and have a model that never knew the
target beside it as the floor. Best of 25 is itself an attack: see `probes_noise`, which also explains `score_half`.

What differs from the released code: latents are the autoencoder's means, not its samples; the pictures are not ImageNet's;
noise and levels of the views are drawn anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from erasekit.attacks import pictures
from erasekit.attacks._classifier import Classifier, ClassifierConfig, trained
from erasekit.attacks._ddim import Hook, Level, cost
from erasekit.attacks.base import Case, Outcome, Spent
from erasekit.attacks.probes_noise import Job, Try, check_each, column, drawn, swept
from erasekit.errors import UsageError
from erasekit.methods import check_range

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.attacks.victim import Victim
    from erasekit.methods import Progress

AWAY = 1_000_000  # seeds of pictures to learn from, far from those of any case


@dataclass(frozen=True)
class SteeringConfig(ClassifierConfig):
    """Parameters; a wrong value raises `UsageError`."""

    scales: tuple[float, ...] = tuple(float(scale) for scale in range(25, 194, 7))
    """s, one picture each."""
    etas: tuple[float, ...] = (0.0,)
    """Noise put in at each step, with every scale; above 0 it is probe 7."""
    steps: int = 50
    """DDIM steps."""
    score_half: bool = False
    """Choose scale and eta on one half of the cases and score the other half with it, both ways round."""
    pictures: int = 64
    """With the target, and as many without, to learn from."""
    others: tuple[str, ...] = ("",)
    """Prompts of the pictures without the target; by default the empty one."""
    images: str = ""
    """A folder of pictures with the target, instead of the unedited model's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_each("scales", self.scales, high=1e6)
        check_each("etas", self.etas, high=100)
        check_range("steps", self.steps, low=1, high=1e6)
        check_range("pictures", self.pictures, low=2, high=1e6)
        if not self.others:
            raise UsageError("others is empty: name at least one prompt without the target")


class Steering:
    """One classifier for the target, then each case under every scale; the outcome is the best of its pictures."""

    name: ClassVar[str] = "steering"
    title: ClassVar[str] = "Latent classifier guidance"
    paper: ClassVar[str] = "arXiv 2505.17013"
    access: ClassVar[tuple[str, ...]] = ("original", "images")
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    Config: ClassVar[type[SteeringConfig]] = SteeringConfig

    def run(
        self, victim: Victim, cases: Sequence[Case], config: SteeringConfig, *, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """One outcome for each case, in order. The classifier's cost is counted in the first outcome that has a try;
        with no case to attack, none is trained. Raises `UsageError` where there are no pictures to learn from."""
        pairs = [(eta, scale) for eta in config.etas for scale in config.scales]
        tries = [Try(turn, eta, scale=scale) for turn, (eta, scale) in enumerate(pairs)]
        learned: list[tuple[Classifier, str, Spent]] = []

        def draw(jobs: Sequence[Job]) -> list[Image]:
            if not learned:  # only where a case is left to attack
                learned.append(self._learned(victim, [case.prompt for case in cases], config, seed, progress))
            return drawn(victim, jobs, config.steps, push=lambda rows: pushing(learned[0][0], rows))

        each = cost(config.steps, victim.sampling.guidance, acting=victim.acting(config.steps))
        found = swept(victim, cases, tries, draw, each,
                      score_half=config.score_half, progress=progress)  # fmt: skip
        return _charged(found, *learned[0][1:]) if learned else found

    def _learned(
        self, victim: Victim, prompts: Sequence[str], config: SteeringConfig, seed: int, progress: Progress | None
    ) -> tuple[Classifier, str, Spent]:
        """The classifier, how well it tells held-out views apart, and what it cost."""
        spent = Spent()
        if config.images:
            present = pictures.of_folder(config.images, victim).to(victim.pipe.device)
        else:
            made, spent = pictures.made_and_spent(
                victim, list(dict.fromkeys(prompts)), config.pictures, seed=AWAY + seed
            )
            present = pictures.latents(victim, made)
        others, cost = lacking(victim, config.others, config.pictures, seed=2 * AWAY + seed)
        absent = pictures.latents(victim, others)
        classifier, loss, steps = trained(present, absent, victim.schedule(1), config, seed=seed, progress=progress)
        return classifier, f"the classifier's held-out loss: {loss:.3f}", spent + cost + Spent(steps=steps)


def pushing(classifier: Classifier, rows: Sequence[Job]) -> Hook:
    """What each row's scale takes off the predicted noise: sigma s grad log p."""

    def push(latents: Tensor, level: Level) -> Tensor:
        scale = column([how.scale for _, how in rows], latents)
        return level[1] * scale * classifier.upward(latents, level)

    return push


def lacking(
    victim: Victim, prompts: Sequence[str], count: int, *, seed: int, tries: int = 4
) -> tuple[list[Image], Spent]:
    """`count` pictures by the unedited model, of the prompts in turn, in none of which the judge finds the target; and
    what all that were drawn for them cost.

    Draws at most `tries` times as many as asked; raises `UsageError` where too few lack it.
    """
    without = lambda seen: seen.status == "ok" and not seen.hit  # noqa: E731
    found, spent = pictures.picked(victim, prompts, count, without, seed=seed, tries=tries)
    if len(found) < count:
        raise UsageError(f"only {len(found)} of {tries * count} pictures for others={';'.join(prompts)!r} are without "
                         f"{victim.sight.target!r}: name prompts that do not ask for it")  # fmt: skip
    return found, spent


def _charged(outcomes: list[Outcome], note: str, spent: Spent) -> list[Outcome]:
    found: list[Outcome] = []
    for one in outcomes:
        if one.curve:  # was tried
            one = replace(one, spent=one.spent + spent, note=f"{one.note}; {note}" if one.note else note)
            spent = Spent()
        found.append(one)
    return found
