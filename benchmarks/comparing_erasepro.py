"""ErasePro beside its textbook loop (`textbook_erasepro`), whole or by a part that stands for it.

The loop has features of its own, in float32 for the time and in float64 for the result: where it runs whole, nothing of
erasekit enters it but the prompts and the original weights. So the distance is that of erasekit's walk in float64 too;
that of the edit that was timed, whose walk rounds hidden states to float32, is `float32`, and the condition of many
columns magnifies it. With many targets a part stands for it, unless `full`: the
result is that of the same formula without the repetitions (`carried`), the time that of one pass over the prompts and of
the pseudo-inverses of the first and the last text layer and of one matrix of each shape of the cross-attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import textbook
import torch
from beside import Found, encoding, features, numbers, originals, settings, together
from measuring import Work, measured
from tasks import SAMPLE
from textbook_erasepro import Prompts, States, Walked, erasepro, progressive
from torch import Tensor

from erasekit import methods
from erasekit.backbones import backbone
from erasekit.concept import EraseRequest

FEW = 8
"""Up to so many targets the loop runs whole."""


def compare_erasepro(work: Work, folder: Path, out: Path, full: bool) -> Found:
    """ErasePro with the default settings and nothing retained."""
    ours, edit = measured(work, folder, out)
    tolerance, anchor = settings(work).tau, work.anchor or ""
    pairs = [(target, anchor) for target in work.targets]
    prompts = [prompt for pair in pairs for prompt in pair]
    encode, apart = encoding(folder, prompts, features(folder, prompts if full else prompts[:SAMPLE]), full)
    taken: Found = {"encode": encode, "prompts": numbers(prompts), "encodings": 1, "full": full}
    if full or len(pairs) <= FEW:
        old, found, more = whole(folder, edit, pairs, tolerance)
    else:
        old, found, more = part(folder, edit, pairs, tolerance, encode)
    exact, single = (textbook.difference(one, old, found) for one in (in_double(work, folder), edit))
    return together(ours, taken | more, exact | {"float32": single["weight"], "features": apart})


def in_double(work: Work, folder: Path) -> Any:
    """erasekit's edit of the same work where its walk and the weights are in float64."""
    model, (method, _) = backbone(str(folder)), methods.resolve(work.method)
    plain, model.tower.dtype = model.weight, torch.float64
    model.weight = lambda site: plain(site).double()
    anchors = (work.anchor or "",) * len(work.targets)
    return method().fit(model, EraseRequest(targets=work.targets, anchors=anchors), settings(work))


Solved = tuple[textbook.Weights, textbook.Weights, Found]
"""The original weights, the textbook's in float64, and what it took."""


def whole(folder: Path, edit: Any, pairs: Sequence[Prompts], tolerance: float) -> Solved:
    """The loop as it is, in float32 under the clock, in float64 for the result."""
    cross = originals(folder, edit)
    timed, exact = (
        progressive(folder, pairs, cross, tolerance=tolerance, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    matrices, text = len(exact.weights), States(folder)
    taken = told(timed, True) | {"levels": text.depth + 1, "matrices": [matrices, matrices]}
    return cross | text.weights(), exact.weights, taken


def part(folder: Path, edit: Any, pairs: Sequence[Prompts], tolerance: float, encode: float) -> Solved:
    """The result of all matrices from `carried`; the time of some, each of which stands for others, and of one pass."""
    cross, states = originals(folder, edit), States(folder)
    text, depth = states.weights(), states.depth
    counts = chosen(cross, text)
    columns, found = carried(folder, pairs, cross | text, tolerance)
    single = {level: (x.float(), y.float()) for level, (x, y) in columns.items()}
    seconds, _ = textbook.timed(
        lambda name: erasepro((cross | text)[name].float(), *single[level_at(name, depth)], tolerance), counts
    )
    # Level i begins again and ends after i layers of `depth`: all levels together are (depth + 1) / 2 passes.
    passes = len({anchor for _, anchor in pairs}) + len(pairs) * (depth + 1) / 2
    again = encode * passes / numbers([prompt for pair in pairs for prompt in pair])[0]
    taken = told(Walked(again, seconds), False)
    return cross | text, found, taken | {"levels": depth + 1, "matrices": [len(counts), len(found)]}


def carried(
    folder: Path, pairs: Sequence[Prompts], old: textbook.Weights, tolerance: float
) -> tuple[dict[int, tuple[Tensor, Tensor]], textbook.Weights]:
    """The loop's result without its repetitions: in float64 erasekit's encoder carries the states from level to level, and a
    level has one pseudo-inverse. Also X and Y of the first and the last text layer and of the cross-attention."""
    model = backbone(str(folder))
    tower = model.tower
    tower.dtype = torch.float64
    targets, anchors = (tower.embed(model.tokenize(side)) for side in zip(*pairs, strict=True))
    columns, found = {}, {}
    for level in range(tower.depth + 1):
        read = tower.output if level == tower.depth else partial(tower.attention_input, layer=level)
        x, y = (read(hidden).flatten(0, 1).T for hidden in (targets, anchors))
        if level in (0, tower.depth - 1, tower.depth):
            columns[level] = x, y
        change = (y - x) @ torch.linalg.pinv(x, rtol=tolerance)
        mine = {name: weight.double() for name, weight in old.items() if level_at(name, tower.depth) == level}
        found |= {name: weight + weight @ change for name, weight in mine.items()}
        if level < tower.depth:
            deltas = {name.split(".")[-1][0]: weight @ change for name, weight in mine.items()}
            tower.advance(targets, level, deltas)
            tower.advance(anchors, level)
    return columns, found


def level_at(name: str, depth: int) -> int:
    """The level of a matrix, by its module's name: of encoder.layers.3.self_attn.q_proj 3."""
    return int(name.split(".")[2]) if ".self_attn." in name else depth


def told(walked: Walked, looped: bool) -> Found:
    """What a loop took, as `beside.together` reads it."""
    return {"restarts": walked.encode, "solve": walked.solve, "looped": looped}


def chosen(cross: textbook.Weights, text: textbook.Weights) -> dict[str, int]:
    """The matrices that are solved, and for how many each stands: q of the first text layer and v of the last for half of the
    encoder's each, and one of every shape of the cross-attention."""
    names = list(text)
    return {names[0]: len(names) // 2, names[-1]: len(names) - len(names) // 2} | textbook.one_each(cross, False)
