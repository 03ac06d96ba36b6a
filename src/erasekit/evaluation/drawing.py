"""Drawing a batch: prompts encoded once, a generator for every image, PNGs that say how they were made."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError
from erasekit.evaluation.shards import KEY

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from erasekit.evaluation.suites import Sampling

# Pipelines whose `encode_prompt` gives (embeddings, negative embeddings) and whose call takes both.
EMBEDS = ("StableDiffusionPipeline",)


def use_scheduler(pipe: Any, name: str) -> None:
    """Give the pipeline the suite's scheduler, with the model's own noise schedule; "" leaves its own.

    Raises `UsageError` where diffusers has no scheduler of that name.
    """
    if not name:
        return
    import diffusers

    found = getattr(diffusers, name, None)
    if not name.endswith("Scheduler") or not hasattr(found, "from_config"):
        raise UsageError(f"the suite asks for the scheduler {name!r}, which diffusers does not have: correct the suite")
    pipe.scheduler = found.from_config(pipe.scheduler.config)  # pyright: ignore[reportOptionalMemberAccess]


class Encoded:
    """The last few batches of texts and their embeddings, by one state of one text encoder.

    Kept by the whole batch: a text's last bits depend on those that it is encoded with, and images must not depend on what
    was drawn before. The empty text of guidance and a prompt whose seeds fill several shards are then encoded once.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._known: dict[tuple[str, ...], Tensor] = {}

    def get(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """The texts' embeddings, encoded now if they are not among those that are kept."""
        key = tuple(texts)
        found = self._known.pop(key, None)
        if found is None:
            found, _ = pipe.encode_prompt(list(texts), pipe.device, 1, False)
        self._known[key] = found  # now the last
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]
        return found


def draw(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, *, encode: bool = True,
         known: Encoded | None = None) -> Tensor:  # fmt: skip
    """The images as bytes: uint8 (n, h, w, 3). An image that is not finite comes out black, which no judge accepts.

    Every image has a `torch.Generator` of its own, seeded on the CPU. With `encode` each prompt is encoded once, by
    the text encoder as it is now (with whatever edit is applied); `known` is what this very state of it gave before.
    """
    import torch

    options: dict[str, Any] = {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance}
    if sampling.eta is not None:
        options["eta"] = sampling.eta
    if sampling.size is not None:
        options |= {"height": sampling.size, "width": sampling.size}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        if encode and type(pipe).__name__ in EMBEDS:
            options |= _embeddings(pipe, prompts, sampling.guidance, known or Encoded())
        else:
            options["prompt"] = list(prompts)
        images = pipe(**options, generator=generators, output_type="pt").images.float().cpu()
    finite = torch.isfinite(images).flatten(1).all(1)
    images = torch.where(finite[:, None, None, None], images, torch.zeros_like(images))
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _embeddings(pipe: Any, prompts: Sequence[str], guidance: float, known: Encoded) -> dict[str, Tensor]:
    """The pipeline's `prompt_embeds` and, with guidance, `negative_prompt_embeds`, each text encoded once."""
    unique = list(dict.fromkeys(prompts))
    found = known.get(pipe, unique)
    embeds = {"prompt_embeds": found[[unique.index(prompt) for prompt in prompts]]}
    if guidance > 1:
        embeds["negative_prompt_embeds"] = known.get(pipe, [""]).expand(len(prompts), -1, -1).contiguous()
    return embeds


def to_png(image: Tensor, label: str) -> bytes:
    """One image, uint8 (h, w, 3), as a PNG that carries `label`; the same bytes for the same input."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(KEY, label)
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def label_of(png: bytes) -> str | None:
    """The label that a whole PNG carries; None for a file that is cut short, damaged or of another origin."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png)) as image:
            image.load()  # reads every chunk and its checksum
            label = image.info.get(KEY)
            return str(label) if label is not None else None
    except (OSError, SyntaxError, ValueError):  # how Pillow says that a file is cut short or no picture
        return None


def to_tensor(pngs: Sequence[bytes]) -> Tensor:
    """The pictures as judges see them: float32 (n, 3, h, w) in 0..1, RGB."""
    import numpy as np
    import torch
    from PIL import Image

    pixels = []
    for png in pngs:
        with Image.open(io.BytesIO(png)) as image:
            pixels.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


@contextmanager
def one_thread(device: torch.device | str) -> Iterator[None]:
    """On the CPU, one thread of torch inside `with`: float sums then do not depend on the machine's cores or on `--jobs`."""
    import torch

    before = torch.get_num_threads()
    try:
        if str(device).startswith("cpu"):
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
