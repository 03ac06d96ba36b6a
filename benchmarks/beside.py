"""What every comparison with a textbook form needs: the ratios, features and weights from the same place, the encoder's time.

The textbook's encoder runs one prompt at a time, on SAMPLE prompts that stand for all unless `full`. Ratios, with ours from
reading to writing: `as_released`, where the released code encodes all prompts again for every matrix; `recomputed`, where
all are encoded again at every level of an encoder that is being edited; `encoded_once`; `after_encoding`, of what is left
of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import textbook
from measuring import Work
from tasks import SAMPLE
from torch import Tensor

from erasekit import methods
from erasekit.backbones import backbone
from erasekit.methods._features import BATCH, encoded

Found = dict[str, Any]
Rows = dict[str, tuple[Tensor, int]]


def together(ours: Found, taken: Found, distance: dict[str, float]) -> Found:
    """The numbers of both and the ratios; `as_released` and `recomputed` only where they differ.

    The textbook's `encode` is one pass over its different prompts; RECE makes one more in each of its `rounds`, which is
    encoding too and no part of `solve`. `loop`, where it is there, is what the released code's loop took as a whole;
    `restarts` all the encoding of a loop that begins again at every level.
    """
    after, rounds = ours["parts"]["solve"] + ours["parts"]["fingerprint"], taken.get("rounds", 0)
    once = (1 + rounds) * taken["encode"] + taken["solve"]
    seconds = {"encoded_once": once, "after_encoding": taken["solve"]}
    if taken["encodings"] > 1:
        different, all_ = taken["prompts"]
        passes = (taken["encodings"] + rounds) * all_ / different  # it encodes a prompt again wherever it stands
        seconds = {"as_released": taken.get("loop", passes * taken["encode"] + taken["solve"])} | seconds
    if "restarts" in taken:
        seconds = {"recomputed": taken["restarts"] + taken["solve"]} | seconds
    against = {name: after if name == "after_encoding" else ours["seconds"] for name in seconds}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in taken.items()}
    return {
        "ours": ours,
        "textbook": rounded,
        "textbook_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ratios": {name: round(value / against[name], 1) for name, value in seconds.items()},
        "relative_difference": distance,
    }


def numbers(prompts: Sequence[str]) -> list[int]:
    """How many of the prompts are different, and how many they are."""
    return [len(set(prompts)), len(prompts)]


def encoding(folder: Path, prompts: Sequence[str], rows: Rows, full: bool) -> tuple[float, float]:
    """Seconds of transformers' encoder for every different prompt, one at a time, and the largest relative distance of
    its rows from erasekit's; of the first SAMPLE of them unless `full`."""
    prompts = list(dict.fromkeys(prompts))
    encode = textbook.Encoder(folder)
    encode(prompts[0])  # the first call is slower
    some = prompts if full else prompts[:SAMPLE]
    started = time.perf_counter()
    found = [encode(prompt) for prompt in some]
    seconds = (time.perf_counter() - started) * len(prompts) / len(some)
    pairs = [(new, rows[prompt][0]) for new, prompt in zip(found, some, strict=True) if prompt in rows]
    return seconds, max(float((a - b).norm() / b.norm()) for a, b in pairs)


def features(folder: Path, prompts: Sequence[str]) -> Rows:
    """All rows (77, d) of each prompt and the position of its last subject token, by erasekit's encoder."""
    model, names = backbone(str(folder)), list(dict.fromkeys(prompts))
    batches = (names[start : start + BATCH] for start in range(0, len(names), BATCH))
    return {name: row for batch in batches for name, row in zip(batch, encoded(model, batch, whole=True), strict=True)}


def settings(work: Work) -> Any:
    """The configuration of the work's method, preset and parameters."""
    cls, preset = methods.resolve(work.method)
    return methods.make_config(cls, {**preset.values, **work.parameters})


def originals(folder: Path, edit: Any) -> textbook.Weights:
    """The original weight of every op on the U-Net, by module name, in the edit's order."""
    from safetensors import safe_open

    names = [op.module for op in edit.ops if op.component == "unet"]
    with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        return {name: file.get_tensor(f"{name}.weight") for name in names}


def doubled(parts: Sequence[Tensor]) -> list[Tensor]:
    return [part.double() for part in parts]


def doubled_pairs(pairs: Sequence[textbook.Pair]) -> list[textbook.Pair]:
    return [(x.double(), y.double()) for x, y in pairs]


Sums = Callable[[str, Sequence[Any], Sequence[Any]], Tensor]
"""A matrix's solution, by its name, the pairs and what is kept."""


def spent(solve: Sums, given: Sequence[Sequence[Any]], sizes: Sequence[int], counts: dict[str, int]) -> float:
    """Seconds of all matrices with so many pairs and so many kept (`sizes`): timed where all of them are `given`, else from
    what one of each takes and what each of the others given adds to that."""
    if [len(part) for part in given] == list(sizes):
        return textbook.timed(lambda name: solve(name, *given), counts)[0]
    ones = [part[:1] for part in given]
    alone = textbook.timed(lambda name: solve(name, *ones), counts)[0]
    seconds = alone
    for which, (part, size) in enumerate(zip(given, sizes, strict=True)):
        more = [part if which == i else one for i, one in enumerate(ones)]
        added = textbook.timed(lambda name, more=more: solve(name, *more), counts)[0] - alone
        seconds += added * (size - 1) / max(1, len(part) - 1)
    return seconds


@contextmanager
def overheard(owner: Any, name: str) -> Iterator[list[Any]]:
    """A list that gets what every call of the function returns, until the end."""
    plain, found = getattr(owner, name), []

    def listened(*given: Any, **options: Any) -> Any:
        found.append(plain(*given, **options))
        return found[-1]

    setattr(owner, name, listened)
    try:
        yield found
    finally:
        setattr(owner, name, plain)
