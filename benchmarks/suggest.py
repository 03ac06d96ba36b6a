"""How well `suggest-retain` predicts, and what a retain list protects: predicted against measured drift, emoji world.

    python benchmarks/suggest.py [--model emoji] [--anchors 4] [--json FILE]

For each target and some anchors of no more tokens: the drift of every other concept as predicted from features, and as
measured with ErasePro's edit applied (change of all cross-attention keys and values over their norm). Printed: Spearman's
correlation, the ratio of the means, how many of the ten that moved most were among the ten predicted. Then cat -> dog
with nothing retained, with the first and with all of the ten predicted, and with ten drawn at random. Before all that, how
well the cosine tells another word for a concept from another concept: the threshold `suggest.SYNONYM` on the world's own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emoji_features import outputs
from torch import Tensor

import erasekit
from erasekit.backbones import backbone
from erasekit.errors import EraseKitError
from erasekit.suggest import SYNONYM
from erasekit.suggest.predict import predict, similarities
from erasekit.worlds.emoji.concepts import concepts, names

TARGETS = ("cat", "wolf", "apple", "car", "rocket", "guitar", "fire engine", "hot dog", "castle", "ghost")
WORST = 10


def measured(pipe: Any, before: list[Tensor], target: str, anchor: str, retain: Sequence[str] = ()) -> Tensor:
    """Drift (c,) of every concept with the edit applied."""
    edit = erasekit.erase(pipe, target, anchor=anchor, retain=retain)
    with edit.applied(pipe):
        after = outputs(pipe, names())
    moved = sum((a - b).double().square().sum((1, 2)) for a, b in zip(after, before, strict=True))
    return (moved / sum(b.double().square().sum((1, 2)) for b in before)).sqrt()


def correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def worst(drift: Tensor) -> set[int]:
    return set(drift.topk(WORST).indices.tolist())


def pairs(pipe: Any, target: str, count: int) -> list[str]:
    """`count` anchors of at most the target's tokens, spread over the concepts."""
    length = {name: len(pipe.tokenizer(name).input_ids) for name in names()}
    fit = [name for name in names() if name != target and length[name] <= length[target]]
    return [fit[k * len(fit) // count + 3] for k in range(count)]


def one_pair(pipe: Any, before: list[Tensor], target: str, anchor: str) -> dict[str, Any]:
    kept = [i for i, name in enumerate(names()) if name not in (target, anchor)]
    guess = predict(backbone(pipe), target, [anchor], names()).drift[0][kept]
    truth = measured(pipe, before, target, anchor)[kept]
    return {"target": target, "anchor": anchor, "spearman": correlation(guess, truth),
            "ratio": float(guess.mean() / truth.mean()), "of_ten": len(worst(guess) & worst(truth))}  # fmt: skip


def retention(pipe: Any, before: list[Tensor], target: str = "cat", anchor: str = "dog") -> dict[str, list[float]]:
    """Retain list -> mean drift of the ten predicted, and of the others."""
    kept = [i for i, name in enumerate(names()) if name not in (target, anchor)]
    order = predict(backbone(pipe), target, [anchor], names()).drift[0][kept].argsort(descending=True).tolist()
    ten, others = [kept[i] for i in order[:WORST]], [kept[i] for i in order[WORST:]]
    drawn = np.random.default_rng(0).choice(kept, WORST, replace=False).tolist()
    lists = {"nothing": [], "the first of the ten": ten[:1], "the ten predicted": ten, "ten at random": drawn}
    found = {}
    for name, rows in lists.items():
        drift = measured(pipe, before, target, anchor, [names()[i] for i in rows])
        found[name] = [float(drift[ten].mean()), float(drift[others].mean())]
    return found


def threshold(model: Any) -> dict[str, Any]:
    """The share of the world's synonyms at or above `SYNONYM`, and the two different concepts that stand nearest, by the
    cosine that ranks anchors (all concepts are the candidates)."""
    said = [(word, row) for row, concept in enumerate(concepts()) for word in concept.synonyms]
    table = similarities(model, [*(word for word, _ in said), *names()], names())
    own = [float(table[i, row]) for i, (_, row) in enumerate(said)]
    apart = table[len(said) :].clone().fill_diagonal_(-1)
    one, other = divmod(int(apart.argmax()), len(names()))
    return {"threshold": SYNONYM, "synonyms": len(own), "above": sum(value >= SYNONYM for value in own) / len(own),
            "nearest": [names()[one], names()[other]], "nearest_cosine": float(apart.max())}  # fmt: skip


def main() -> None:
    """Prints the threshold and both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--anchors", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pipe = erasekit.load(args.model)
    known = threshold(backbone(pipe))
    print("{synonyms} synonyms, {above:.0%} of them at {threshold} or above; the nearest two different concepts: "
          "{nearest[0]} and {nearest[1]} at {nearest_cosine:.2f}".format(**known))  # fmt: skip
    before = outputs(pipe, names())
    found = []
    for target in TARGETS:
        for anchor in pairs(pipe, target, args.anchors):
            found.append(one_pair(pipe, before, target, anchor))
            print("{target} -> {anchor}: spearman {spearman:.2f}, ratio {ratio:.2f}, {of_ten} of ten".format(**found[-1]))
    for key in ("spearman", "ratio", "of_ten"):
        values = [one[key] for one in found]
        print(f"{key}: {min(values):.2f} to {max(values):.2f}, mean {sum(values) / len(values):.2f}, {len(values)} pairs")
    kept = retention(pipe, before)
    for name, (ten, others) in kept.items():
        print(f"cat -> dog, retained {name}: drift of the ten predicted {ten:.3f}, of the others {others:.3f}")
    if args.json:
        args.json.write_text(json.dumps({"threshold": known, "pairs": found, "retention": kept}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
