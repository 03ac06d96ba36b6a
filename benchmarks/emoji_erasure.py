"""Erases concepts of the emoji world one at a time and judges what happened, for several methods on the same work.

    python benchmarks/emoji_erasure.py [--methods erasepro uce] [--targets 12] [--prompts 20] [--seeds 8] [--others 50]

For each target: held-out complex prompts (forms that training never saw, half of them with a second object) with the
same seeds before and after. Printed for each method, with 95 % Wilson intervals: the target found after the edit; the
anchor found after the edit against the unedited model asked for the anchor in the same prompts; style and background
followed; the object named right in other concepts' prompts. Every image is one line of `rows-MODEL.jsonl`, named by the
model's weights; a run that was stopped continues, and the numbers can be recomputed from the lines. A method may carry
a preset and parameters: `erasepro:weighted:captions=emoji`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import erasekit
from erasekit.evaluation.sampler import sample, shots
from erasekit.evaluation.statistics import Share
from erasekit.fingerprint import digest
from erasekit.worlds.emoji.captions import HELD_OUT_PAIR, HELD_OUT_SINGLE, article, fill
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, names
from erasekit.worlds.emoji.judge import Judge, load_judge

PAIRS = {
    "cat": "dog", "wolf": "rabbit", "penguin": "duck", "apple": "lemon", "hamburger": "cake", "car": "bus",
    "rocket": "balloon", "bomb": "gift", "guitar": "violin", "santa": "baby", "castle": "volcano", "sun": "cloud",
}  # fmt: skip
BATCH = 64


@dataclass(frozen=True)
class Prompt:
    """A prompt with what it asks for; -1 where it does not say."""

    text: str
    wanted: str
    style: int
    background: int


@dataclass(frozen=True)
class Row:
    """One image: who drew it, what was asked, what the judge found."""

    run: str
    text: str
    seed: int
    found: list[str]
    best: str
    style: int
    background: int


def complex_prompts(target: str, anchor: str, noun: str, count: int) -> list[Prompt]:
    """Held-out forms around `noun`; the other object, style and background depend on the target alone."""
    rng = np.random.default_rng([7, *target.encode()])
    others = [n for n in names() if n not in (target, anchor)]
    forms = [f for pair in zip(HELD_OUT_SINGLE, HELD_OUT_PAIR, strict=False) for f in pair] + list(HELD_OUT_SINGLE[6:])
    prompts = []
    for i in range(count):
        form, other = forms[i % len(forms)], others[int(rng.integers(len(others)))]
        s, b = int(rng.integers(len(STYLES))), int(rng.integers(len(BACKGROUNDS)))
        text = fill(form, (noun, other), STYLES[s], tuple(BACKGROUNDS)[b])
        prompts.append(Prompt(text, noun, s if "{s}" in form else -1, b if "{b}" in form else -1))
    return prompts


def other_prompts(target: str, anchor: str, count: int) -> list[Prompt]:
    """Plain prompts for other concepts, the styles in turn; the same list for every target, but for its own pair."""
    order = np.random.default_rng(11).permutation(len(names()))
    words = [names()[i] for i in order if names()[i] not in (target, anchor)][:count]
    return [Prompt(f"{article(w)} in {STYLES[names().index(w) % 5]} style", w, names().index(w) % 5, -1) for w in words]


class Recorder:
    """Draws and judges what is not yet in the file of rows, and appends it."""

    def __init__(self, path: Path, pipe: Any, judge: Judge, sampling: dict[str, float]) -> None:
        self.path, self.pipe, self.judge, self.sampling = path, pipe, judge, sampling
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = {(r.run, r.text, r.seed): r for r in map(_read, lines) if r is not None}

    def record(self, run: str, prompts: Iterable[Prompt], seeds: Sequence[int]) -> list[Row]:
        """The rows of every prompt with every seed, drawn by the pipeline as it is now under the name `run`."""
        wanted = shots(list(dict.fromkeys(p.text for p in prompts)), seeds)
        missing = [s for s in wanted if (run, s.prompt, s.seed) not in self.rows]
        for start in range(0, len(missing), BATCH):
            self._draw(run, missing[start : start + BATCH])
            print(
                f"\r{run}: {min(start + BATCH, len(missing))} of {len(missing)}   ", end="", file=sys.stderr, flush=True
            )
        return [self.rows[run, s.prompt, s.seed] for s in wanted]

    def _draw(self, run: str, part: list[Any]) -> None:
        steps, guidance = int(self.sampling["steps"]), self.sampling["guidance"]
        drawn = list(sample(self.pipe, part, batch=BATCH, steps=steps, guidance=guidance))
        pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for _, image in drawn])
        verdict = self.judge(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
        with self.path.open("a") as file:
            for i, (shot, _) in enumerate(drawn):
                found = [names()[k] for k in (verdict.objects[i] > 0.5).nonzero()[:, 0].tolist()]
                best = names()[int(verdict.objects[i].argmax())]
                style, background = int(verdict.style[i].argmax()), int(verdict.background[i].argmax())
                row = Row(run, shot.prompt, shot.seed, found, best, style, background)
                self.rows[run, row.text, row.seed] = row
                file.write(json.dumps(asdict(row)) + "\n")


def _read(line: str) -> Row | None:
    try:
        return Row(**json.loads(line))
    except (json.JSONDecodeError, TypeError):
        return None  # the line that a killed run left half-written


def share(hits: Iterable[bool]) -> Share:
    """Counts hits."""
    values = list(hits)
    return Share(sum(values), len(values))


def followed(rows: Sequence[Row], prompts: Sequence[Prompt], what: str) -> Share:
    """How often the style or background that the prompt names was drawn."""
    asked = {p.text: getattr(p, what) for p in prompts if getattr(p, what) >= 0}
    return share(getattr(r, what) == asked[r.text] for r in rows if r.text in asked)


def spec(text: str) -> tuple[str, dict[str, str]]:
    """`erasepro:weighted:captions=emoji` as a method's name, with its preset, and its parameters."""
    name, *more = text.split(":")
    preset = [one for one in more if "=" not in one]
    return ":".join((name, *preset)), dict(one.split("=", 1) for one in more if "=" in one)


def one_target(recorder: Recorder, method: str, target: str, args: argparse.Namespace) -> dict[str, Share]:
    """All measures of one method on one target."""
    anchor, seeds = PAIRS[target], range(args.seeds)
    asked = complex_prompts(target, anchor, target, args.prompts)
    replaced = complex_prompts(target, anchor, anchor, args.prompts)
    others = other_prompts(target, anchor, args.others)
    reference = recorder.record("base", replaced, seeds)
    before = recorder.record("base", asked, range(args.base_seeds or args.seeds))
    kept_before = recorder.record("base", others, range(args.other_seeds))
    name, parameters = spec(method)
    edit = erasekit.erase(recorder.pipe, target, anchor=anchor, method=name, **parameters)
    with edit.applied(recorder.pipe):
        after = recorder.record(f"{method}|{target}", asked, seeds)
        kept = recorder.record(f"{method}|{target}", others, range(args.other_seeds))
    right = {p.text: p.wanted for p in others}
    return {
        "target before": share(target in r.found for r in before),
        "target after": share(target in r.found for r in after),
        "anchor asked for": share(anchor in r.found for r in reference),
        "anchor after": share(anchor in r.found for r in after),
        "others before": share(r.best == right[r.text] for r in kept_before),
        "others after": share(r.best == right[r.text] for r in kept),
        "style before": followed(before, asked, "style"),
        "style after": followed(after, asked, "style"),
        "background before": followed(before, asked, "background"),
        "background after": followed(after, asked, "background"),
    }


def show(title: str, measures: dict[str, Share]) -> None:
    """A method's measures, one a line."""
    print(f"\n{title}")
    for name, s in measures.items():
        low, high = s.interval
        print(f"  {name:<18} {100 * s.value:6.2f} %   ({100 * low:5.2f} .. {100 * high:5.2f})   n = {s.trials}")


def main() -> None:
    """Runs the plan and writes `results.json` beside the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["erasepro", "uce"])
    parser.add_argument("--targets", type=int, default=len(PAIRS))
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--base-seeds", type=int, default=0, help="seeds of the unedited target (default: --seeds)")
    parser.add_argument("--others", type=int, default=50)
    parser.add_argument("--other-seeds", type=int, default=2)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/emoji_erasure"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = erasekit.load(args.model)
    sampling = erasekit.models.defaults(erasekit.models.resolve(args.model))
    weights = digest(pipe.unet.conv_in.weight)[:12]
    recorder = Recorder(args.out / f"rows-{weights}.jsonl", pipe, load_judge(), sampling)
    results: dict[str, Any] = {}
    for method in args.methods:
        each = {t: one_target(recorder, method, t, args) for t in list(PAIRS)[: args.targets]}
        total = {k: sum((m[k] for m in each.values()), Share(0, 0)) for k in next(iter(each.values()))}
        show(method, total)
        results[method] = {"all": _plain(total)} | {t: _plain(m) for t, m in each.items()}
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def _plain(measures: dict[str, Share]) -> dict[str, Any]:
    return {
        k: {"hits": s.hits, "images": s.trials, "share": s.value, "interval95": s.interval} for k, s in measures.items()
    }


if __name__ == "__main__":
    main()
