"""erasekit beside the textbook forms in one process: the seconds of both, their ratios, how far the results are apart.

The textbook's time is that of float32, the distance that to its float64 result, both from erasekit's own features
(ErasePro's form has features of its own: `comparing_erasepro`). One matrix of every shape stands for the others of that
shape (`full`: all prompts, all matrices); RECE always solves all. `beside` has the ratios. `as_released` is computed, the
seconds of one encoding times the number of matrices, but for UCE with `full`: then that loop runs as it is, from the
first prompt to the last inverse, and is timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import textbook
import torch
from beside import (
    Found,
    Rows,
    doubled,
    doubled_pairs,
    encoding,
    features,
    numbers,
    originals,
    settings,
    together,
)
from comparing_erasepro import compare_erasepro
from comparing_priors import compare_mace, compare_realera, compare_trce
from measuring import Work, measured
from tasks import SAMPLE
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.methods._features import encoded, last_subject


def compare_uce(work: Work, folder: Path, out: Path, full: bool) -> Found:
    """UCE with the default settings and the empty anchor."""
    ours, edit = measured(work, folder, out)
    old, rows = originals(folder, edit), features(folder, [*work.targets, "", *work.retain])
    pairs, kept = uce_features(work, rows)
    counts, scale = textbook.one_each(old, full), max(0.1, 1 / len(kept))
    seconds, _ = textbook.timed(lambda name: textbook.uce(old[name], pairs, kept, lamb=0.5, scale=scale), counts)
    exact = doubled_pairs(pairs), doubled(kept)
    _, solved = textbook.timed(lambda name: textbook.uce(old[name].double(), *exact, lamb=0.5, scale=scale), counts)
    prompts = [p for target in work.targets for p in (target, "")] + ["", *work.retain]
    encode, apart = encoding(folder, prompts, rows, full)
    taken = {"encode": encode, "prompts": numbers(prompts), "encodings": len(old), "solve": seconds, "full": full}
    taken["matrices"] = [len(counts), len(old)]
    distance = textbook.difference(edit, old, solved) | {"features": apart}
    if full:
        taken["loop"], found = released_uce(work, folder, old, scale)
        distance["loop"] = textbook.difference(edit, old, found)["weight"]
    return together(ours, taken, distance)


def released_uce(work: Work, folder: Path, old: textbook.Weights, scale: float) -> tuple[float, textbook.Weights]:
    """Seconds and result (float32) of UCE as its scripts loop: for every matrix every prompt is encoded again, one at a
    time, wherever it stands, and one inverse ends it. Tells on stderr how far it is."""
    encode = textbook.Encoder(folder)
    encode("")  # the first call is slower
    started, found = time.perf_counter(), {}
    for name, weight in old.items():
        pairs = (textbook.tails(encode.subject(target), encode.subject("")) for target in work.targets)
        kept = (encode(prompt) for prompt in ("", *work.retain))
        found[name] = textbook.uce(weight, pairs, kept, lamb=0.5, scale=scale)
        taken = time.perf_counter() - started
        print(f"textbook loop: {len(found)} of {len(old)} matrices, {taken:.0f} s", file=sys.stderr, flush=True)
    return time.perf_counter() - started, found


def compare_rece(work: Work, folder: Path, out: Path, full: bool) -> Found:
    """RECE with the values of the method's preset; every matrix is solved, because they all enter the attack."""
    ours, edit = measured(work, folder, out)
    old, rows = originals(folder, edit), features(folder, [*work.targets, "", *work.retain])
    values = settings(work)
    tails, kept = uce_features(work, rows)
    wholes = [(rows[target][0], rows[""][0]) for target in work.targets]
    each = len(work.targets) if values.preserve_empty == "each" else 1
    again = [*kept, *([rows[""][0]] * (each - 1))]
    started = time.perf_counter()
    whole_rece(old, tails, wholes, kept, again, values)
    seconds = time.perf_counter() - started
    double = {name: weight.double() for name, weight in old.items()}
    exact = doubled_pairs(tails), doubled_pairs(wholes), doubled(kept), doubled(again)
    solved = whole_rece(double, *exact, values)
    prompts = [p for target in work.targets for p in (target, "")] + ["", *work.retain]
    encode, apart = encoding(folder, prompts, rows, full)
    taken = {"encode": encode, "prompts": numbers(prompts), "encodings": len(old), "rounds": values.epochs}
    taken |= {"full": full, "solve": seconds, "matrices": [len(old), len(old)]}
    return together(ours, taken, textbook.difference(edit, old, solved) | {"features": apart})


def whole_rece(
    old: textbook.Weights, tails: Any, wholes: Any, kept: Sequence[Tensor], again: Sequence[Tensor], values: Any
) -> textbook.Weights:
    """UCE's stage with its own settings, which keeps `kept`, then RECE's rounds, each of which keeps `again`."""
    scale = max(0.1, 1 / len(kept))
    start = {name: textbook.uce(weight, tails, kept, lamb=0.5, scale=scale) for name, weight in old.items()}
    options = {"epochs": values.epochs, "ridge": values.reg, "lamb": values.lamb, "scale": values.preserve_scale}
    return textbook.rece(old, start, wholes, again, options)


def compare_speed(work: Work, folder: Path, out: Path, full: bool) -> Found:
    """SPEED with the empty anchor, the default rank and the draws of seed 0; the centroids are erasekit's."""
    ours, edit = measured(work, folder, out)
    old, model, values = originals(folder, edit), backbone(str(folder)), settings(work)
    given = speed_features(work, model, values)
    generator = torch.Generator().manual_seed(0)
    shape = (len(work.retain), values.aug_num, values.rank)
    noise = {name: torch.randn(shape, generator=generator, dtype=torch.float64)[..., 0] for name in old}
    counts, single = textbook.one_each(old, full), given.to(torch.float32)
    seconds, _ = textbook.timed(lambda name: textbook.speed(old[name], single, noise[name].float()), counts)
    _, solved = textbook.timed(lambda name: textbook.speed(old[name].double(), given, noise[name]), counts)
    prompts = [*work.targets, "", *work.retain]
    encode, apart = encoding(folder, prompts, features(folder, prompts[:SAMPLE]), full)
    taken = {"encode": encode, "prompts": numbers(prompts), "encodings": 1, "solve": seconds, "full": full}
    taken["matrices"] = [len(counts), len(old)]
    return together(ours, taken, textbook.difference(edit, old, solved) | {"features": apart})


COMPARE: dict[str, Callable[[Work, Path, Path, bool], Found]] = {
    "uce": compare_uce,
    "rece": compare_rece,
    "speed": compare_speed,
    "erasepro": compare_erasepro,
    "mace": compare_mace,
    "trce": compare_trce,
    "realera": compare_realera,
}


def uce_features(work: Work, rows: Rows) -> tuple[list[textbook.Pair], list[Tensor]]:
    """The aligned tails of every target and the empty anchor, and all rows of the empty and the retained prompts."""
    return [textbook.tails(rows[t], rows[""]) for t in work.targets], [rows[p][0] for p in ("", *work.retain)]


def speed_features(work: Work, model: Any, values: Any) -> textbook.Speed:
    """The last subject tokens as columns, and the invariants, in float64. Encoded in the batches of the fit: in others
    float32 rounds otherwise, which tau magnifies, and here the solutions are compared."""
    from erasekit.methods.speed_retain import invariants

    targets, kept = (
        last_subject(model, names, progress=lambda *_: None, what="") for names in (work.targets, work.retain)
    )
    (empty, last), *_ = encoded(model, [""], whole=True)
    empty = empty.double()
    return textbook.Speed(
        targets, empty[last][:, None].repeat(1, len(work.targets)), kept,
        invariants(empty, torch.Generator().manual_seed(0)),
        values.tau, values.alpha, values.lamb, values.prior_filter,
    )  # fmt: skip
