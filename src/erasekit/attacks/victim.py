"""The model under attack: a pipeline with an edit on it, and the original beside it.

Going from one to the other moves pointers and copies nothing (`Sides`), so an attack may do it in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erasekit.attacks.base import Case, Spent
from erasekit.attacks.sides import Sides
from erasekit.attacks.sight import Seen, Sight
from erasekit.backbones import family_of
from erasekit.edit import Edit
from erasekit.guidances.sampler import Announce, added, announced, counted
from erasekit.training.bench import Denoiser
from erasekit.training.latents import Schedule
from erasekit.training.parameters import held

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn: the pipeline's own scheduler in `steps` steps with `guidance`, `batch` at a time.

    No attack has more pictures or cases side by side than `batch`; it decides memory and time, not the result.
    """

    steps: int = 30
    guidance: float = 7.5
    batch: int = 16


class Victim:
    """A pipeline of the SD family under attack by whoever has `sight` of the target; `edit` None: the unedited model.

    Use it as a context: inside, the pipeline is the edited model (frozen, in eval mode), and inside `original()` the
    unedited one; afterwards weights, switches and hooks are what they were. Not to be entered twice.

    Inside, the U-Net takes every row of a batch for a conditional one, whatever picture was drawn before, but in `draw`
    and in `guided`.
    """

    def __init__(
        self, pipe: Any, edit: Edit | None, sight: Sight, sampling: Sampling, *, force: bool = False,
        sides: Sides | None = None, scale: float = 1.0, skip: bool = True,
    ) -> None:  # fmt: skip
        """`sides`: instead of those that the edit has (`never_knew.py`). `scale`: the strength of the edit, as of
        `Edit.apply`. `skip`: a case that shows the target as it is needs no attack; else every case is attacked, and what
        its plain picture shows does not count."""
        self.pipe, self.edit, self.sight, self.sampling = pipe, edit, sight, sampling
        self.scale, self.skip = scale, skip
        self._sides, self._stack = sides or Sides(pipe, edit, force=force, scale=scale), ExitStack()

    def __enter__(self) -> Victim:
        with ExitStack() as stack:
            for part in (self.pipe.unet, self.pipe.text_encoder, self.pipe.vae):
                stack.enter_context(held(part))
            stack.enter_context(self.guided(1.0))
            stack.enter_context(self._sides.edited())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def original(self) -> AbstractContextManager[None]:
        """Inside, the pipeline is the unedited model."""
        return self._sides.original()

    @contextmanager
    def guided(self, guidance: float) -> Iterator[None]:
        """Inside, the pipeline says that this is its guidance: above 1 a batch is the unconditional branch followed by the
        conditional one, else every row is a conditional one.

        Edits by code that tell the halves apart ask it. A pipeline goes on saying what its last picture had, by which half
        of a batch that is given to the U-Net alone could pass unedited.
        """
        before = getattr(self.pipe, "_guidance_scale", None)  # a pipeline has none before its first call
        self.pipe._guidance_scale = guidance
        try:
            yield
        finally:
            if before is None:
                del self.pipe._guidance_scale
            else:
                self.pipe._guidance_scale = before

    @cached_property
    def family(self) -> str:
        """The model's family, as `backbones` names it."""
        return family_of(self.pipe)

    # -- text ----------------------------------------------------------------------------------------------------

    @property
    def table(self) -> Float[Tensor, "vocabulary width"]:
        """The token embeddings of the model as it is now. Read it only."""
        return self.pipe.text_encoder.get_input_embeddings().weight

    @property
    def length(self) -> int:
        """Positions of a prompt, the first and the last of them BOS and EOS."""
        return int(self.pipe.tokenizer.model_max_length)

    def ids(self, prompts: Sequence[str]) -> Int[Tensor, "n length"]:
        """Padded token ids; longer prompts are cut, as the pipeline does."""
        return self.pipe.tokenizer(list(prompts), padding="max_length", max_length=self.length, truncation=True,
                                   return_tensors="pt").input_ids.to(self.pipe.device)  # fmt: skip

    def condition(
        self, ids: Int[Tensor, "n length"], rows: Float[Tensor, "n k width"] | None = None,
        at: Int[Tensor, "n k"] | None = None,
    ) -> Float[Tensor, "n length features"]:  # fmt: skip
        """What the cross-attention reads for the ids; with `rows` these stand at the positions `at` instead of the
        table's embeddings. Carries gradients to `rows`."""
        encoder = self.pipe.text_encoder
        if rows is None or at is None:
            return encoder(ids)[0]

        def inserted(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            where = at[..., None].expand(-1, -1, output.shape[-1])
            return output.scatter(1, where, rows.to(output.dtype))

        handle = encoder.get_input_embeddings().register_forward_hook(inserted)
        try:
            return encoder(ids)[0]
        finally:
            handle.remove()

    # -- pictures ------------------------------------------------------------------------------------------------

    def denoiser(self, precision: str = "model") -> Denoiser:
        """The U-Net, of whichever side is on when it is called, as a function of latents, timestep and text."""
        return Denoiser(self.pipe.unet, precision)

    def sampler(self) -> Denoiser:
        """The U-Net of whichever side is on, computing as the pipeline does (a float16 one in float16): what a loop that makes
        pictures asks. For gradients there is `denoiser`."""
        return self.denoiser("stored")

    def schedule(self, steps: int) -> Schedule:
        """The model's noise levels, and DDIM's timesteps for so many steps."""
        return Schedule.of(dict(self.pipe.scheduler.config), steps)

    def announced(self, begun: Float[Tensor, "n c h w"], schedule: Schedule) -> Announce | None:
        """What a sampling loop of the attack's own calls before each step, for edits that act while sampling to act in it as in
        the pipeline (`guidances.sampler.announced`); None inside `original()`, where nothing does.

        `begun`: the noise that the pictures begin with. Only where a picture is made: inversion does not sample.
        """
        return None if self._sides.away else announced(self.pipe, begun, schedule)

    def acting(self, steps: int, *, first: int = 0) -> int:
        """The passes that what is `announced` adds to a picture of so many steps, told of those from `first` on: edits that act
        while sampling may ask the denoiser, too. 0 inside `original()`."""
        return 0 if self._sides.away else added(self.pipe, steps, first=first)

    @torch.no_grad()
    def draw(
        self, cases: Sequence[Case], *, conditions: Tensor | None = None, latents: Tensor | None = None,
        sampling: Sampling | None = None,
    ) -> list[Image]:  # fmt: skip
        """A picture for each case from its own prompt and seed, as every other command draws it.

        `conditions` (n, length, features) stand instead of the prompts; `latents` (n, c, h, w), of unit variance as the
        pipeline takes them, instead of the seeds' noise. A picture with a value that is not finite comes out black.
        """
        how, found = sampling or self.sampling, []
        for start in range(0, len(cases), how.batch):
            part = slice(start, start + how.batch)
            found += self._draw(cases[part], None if conditions is None else conditions[part],
                                None if latents is None else latents[part], how)  # fmt: skip
        return found

    def cost(self, pictures: int = 1, *, sampling: Sampling | None = None) -> Spent:
        """What it costs to draw and judge so many pictures by the side that is on: what the sampler asks for, and what edits
        that act while it samples add."""
        how = sampling or self.sampling
        count, ignored = counted(self.pipe.scheduler, how.steps)
        own = Spent(passes=added(self.pipe, count, ignored=ignored), pictures=1)
        return (Spent.sampled(count, how.guidance) + own) * pictures

    def look(self, cases: Sequence[Case], images: Sequence[Image]) -> list[Seen]:
        """What the judge sees in the cases' pictures."""
        return self.sight.look(images, [case.prompt for case in cases])

    def _draw(
        self, cases: Sequence[Case], conditions: Tensor | None, latents: Tensor | None, how: Sampling
    ) -> list[Image]:
        options: dict[str, Any] = {"num_inference_steps": how.steps, "guidance_scale": how.guidance}
        if conditions is None:
            options["prompt"] = [case.prompt for case in cases]
        else:
            empty = self.condition(self.ids([""])).expand(len(cases), -1, -1)
            options |= {"prompt_embeds": conditions, "negative_prompt_embeds": empty}
        if latents is not None:
            options["latents"] = latents
        generators = [torch.Generator("cpu").manual_seed(case.seed) for case in cases]
        with self.guided(how.guidance):
            images = self.pipe(**options, generator=generators, output_type="pt").images.float().cpu()
        finite = torch.isfinite(images).flatten(1).all(1)
        images = torch.where(finite[:, None, None, None], images, torch.zeros_like(images))
        return self.pipe.image_processor.numpy_to_pil(images.clamp(0, 1).permute(0, 2, 3, 1).numpy())
