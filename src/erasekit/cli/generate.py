"""`erasekit generate`: one PNG a prompt and seed; each says how it was made, so that a rerun draws only what is missing."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit import io, models
from erasekit.cli import commands, settings, terminal
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import arms
from erasekit.evaluation.grid import png
from erasekit.evaluation.sampler import Shot, sample, shots
from erasekit.files import read_bytes, sweep, write_whole

if TYPE_CHECKING:
    from PIL import Image

    from erasekit.edit import Edit

KEY = "erasekit"  # the PNG text chunk that holds the settings


def generate(arguments: argparse.Namespace) -> None:
    """Draw what is missing in the folder `--out`. An existing image of the same settings is kept as it is."""
    _check(arguments)
    files = [(path, read_bytes(path)) for path in arguments.edit]
    edits = [io.parse(data, path) for path, data in files]
    work = shots(list(dict.fromkeys(arguments.prompts)), settings.seeds(arguments.seeds))
    made_with = _made_with(arguments, [hashlib.sha256(data).hexdigest() for _, data in files])
    sweep(arguments.out, ".*.part")  # images lie in the folder itself: what is below it is not looked at
    missing = [shot for shot in work if not _exists(arguments.out, shot, made_with)]
    if missing:
        terminal.quiet()
        _draw(arguments, edits, missing, made_with)
    print(f"{len(missing)} images drawn, {len(work) - len(missing)} kept, in {arguments.out}")


def _check(arguments: argparse.Namespace) -> None:
    if any(not prompt.strip() for prompt in arguments.prompts):
        raise UsageError("an empty prompt: give the words to draw")
    if (arguments.steps is not None and not 1 <= arguments.steps <= 1000) or arguments.batch < 1:
        raise UsageError(
            "--steps takes a number from 1 to 1000 (models are trained on that many), --batch one from 1 on"
        )
    if any(number is not None and not math.isfinite(number) for number in (arguments.guidance, arguments.scale)):
        raise UsageError("--guidance and --scale take finite numbers")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise EraseKitError(f"--out {arguments.out} is a file: name a folder")


def _made_with(arguments: argparse.Namespace, edits: list[str]) -> dict[str, Any]:
    """All that decides an image but its prompt and seed; model and edits by what their files hold, not by where they are."""
    folder = models.resolve(arguments.model)
    own = models.defaults(folder)
    return {
        "model": arms.model_facts(arguments.model, folder),
        "edits": edits,
        "versions": arms.versions(),
        "scale": arguments.scale,
        "steps": int(own["steps"]) if arguments.steps is None else arguments.steps,
        "guidance": float(own["guidance"]) if arguments.guidance is None else arguments.guidance,
        "dtype": arguments.dtype,
        "device": arguments.device or "cpu",
    }


def _draw(arguments: argparse.Namespace, edits: list[Edit], work: list[Shot], made_with: dict[str, Any]) -> None:
    pipe: Any = models.load(arguments.model, dtype=commands.dtype(arguments.dtype),
                            device=commands.device(arguments.device))  # fmt: skip
    _check_lengths(pipe, work)
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(pipe, scale=arguments.scale, force=arguments.force))
        progress = stack.enter_context(terminal.progress())
        images = sample(pipe, work, steps=made_with["steps"], guidance=made_with["guidance"], batch=arguments.batch)
        for done, (shot, image) in enumerate(images, start=1):
            _save(arguments.out, shot, image, made_with)
            progress(done, len(work), "images")


def _check_lengths(pipe: Any, work: list[Shot]) -> None:
    """A longer prompt would be cut in silence by the pipeline."""
    longest = pipe.tokenizer.model_max_length
    for prompt in dict.fromkeys(shot.prompt for shot in work):
        count = len(pipe.tokenizer(prompt, truncation=False)["input_ids"])
        if count > longest:
            raise UsageError(f"the prompt {prompt[:60]!r} has {count} tokens, the model reads {longest}: shorten it")


def file_name(shot: Shot) -> str:
    """A readable name; the hash keeps prompts apart that differ only in signs or length."""
    words = re.sub(r"[^a-z0-9]+", "-", shot.prompt.lower()).strip("-")[:60].rstrip("-") or "prompt"
    return f"{words}-{hashlib.sha256(shot.prompt.encode()).hexdigest()[:8]}-seed{shot.seed}.png"


def _label(shot: Shot, made_with: dict[str, Any]) -> str:
    return json.dumps({"prompt": shot.prompt, "seed": shot.seed, **made_with}, sort_keys=True)


def _deciding(label: str) -> dict[str, Any]:
    """What of a label decides the image: the model by its hash, whatever its folder is called now."""
    found = json.loads(label)
    return {**found, "model": found["model"]["sha256"]}


def _exists(folder: Path, shot: Shot, made_with: dict[str, Any]) -> bool:
    from PIL import Image

    path = folder / file_name(shot)
    if not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            image.load()
            return _deciding(image.info[KEY]) == _deciding(_label(shot, made_with))
    # How Pillow says that a file is cut short or no picture; and what a label of others may look like.
    except (OSError, SyntaxError, ValueError, LookupError, TypeError):
        return False


def _save(folder: Path, shot: Shot, image: Image.Image, made_with: dict[str, Any]) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(KEY, _label(shot, made_with))
    write_whole(folder / file_name(shot), png(image, info), swept=True)
