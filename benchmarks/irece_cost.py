"""What IRECE costs and what it brings, over where, how wide and how strongly it disturbs.

    python benchmarks/irece_cost.py --estimate            # how many passes of the denoiser, about how long
    python benchmarks/irece_cost.py [--target cat] [--anchor dog] [--images 16] [--full] [--out irece_cost.json] [--docs]

One edit of the target (`--method`, or `--edit FILE`) is on throughout, IRECE above it or not. For each setting:

- seconds a picture, with and without, of the same prompts, seeds and batches;
- what it does to pictures of other things: the mean absolute difference of their pixels (0..1), how often the judge
  still finds what was asked for, their CLIP score with their prompts (by emoji-clip), and how many of them changed at
  all (in the others the gate stayed shut);
- whether the target comes back by white-box inversion: the unedited model's pictures of it, inverted by the edited model
  under the empty prompt at guidance 1, and made again from that noise, defended or not.

Settings vary one of t*, tau, rho around the middle of the lists; with `--full` all with all. Noise and seeds are the same
for all. The loop of the inversion returns nearly any picture: the line `undefended` is what to compare with, and a defence
that breaks the pictures of other things as often has found nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from irece_page import PAGE, clip_score, rewrite_page, table
from torch import Tensor

from erasekit.attach import attach
from erasekit.attacks import Case, pictures
from erasekit.attacks._ddim import inverted, texts
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.edit import Base, Guidance
from erasekit.errors import EraseKitError
from erasekit.evaluation.statistics import Share
from erasekit.files import check_writable, write_whole
from erasekit.guidances.irece import THRESHOLDS


@dataclass(frozen=True)
class Setting:
    """One point of the sweep."""

    at: float
    tau: float
    rho: float

    def op(self, fitted: Guidance) -> Guidance:
        """The fitted op with this setting alone; its gate was calibrated for every point."""
        column = fitted.config["at"].index(self.at)
        weights = fitted.weights | {THRESHOLDS: fitted.weights[THRESHOLDS][:, [column]]}
        return Guidance("irece", weights, fitted.config | {"at": [self.at], "tau": self.tau, "rho": self.rho})


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--target", default="cat")
    parser.add_argument("--anchor", default="dog")
    parser.add_argument("--method", default="erasepro", help="of the edit below IRECE")
    parser.add_argument("--edit", type=Path, help="a file with the edit below instead")
    parser.add_argument(
        "--controls", nargs="+", default=["dog", "fox", "apple", "car", "castle", "guitar", "sun", "cake"]
    )
    parser.add_argument("--judge", default="emoji")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, help="of sampling (default: the model's)")
    parser.add_argument("--rounds", type=int, default=3, help="fixed-point rounds of the inversion")
    parser.add_argument("--batch", type=int, default=16)
    for name, values in (("at", (0.2, 0.4, 0.6)), ("tau", (0.3, 0.45, 0.6)), ("rho", (0.5, 0.75, 1.0))):
        parser.add_argument(f"--{name}", type=float, nargs="+", default=list(values))
    parser.add_argument("--variant", default="shrink", choices=("shrink", "replace"))
    parser.add_argument("--gate", default="calibrated", choices=("calibrated", "off"))
    parser.add_argument("--margin", type=float, default=0.5,
                        help="of the gate: on the emoji model it stays shut at the method's own 3")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="every t* with every tau and rho")
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", action="store_true", help="rewrite the numbers of docs/irece.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def settings(args: argparse.Namespace) -> list[Setting]:
    """The points of the sweep, each once, the middle one first."""
    lists = [sorted(set(args.at)), sorted(set(args.tau)), sorted(set(args.rho))]
    middle = [values[len(values) // 2] for values in lists]
    if args.full:
        found = [Setting(*middle), *(Setting(a, t, r) for a in lists[0] for t in lists[1] for r in lists[2])]
    else:
        found = [Setting(*middle), *(Setting(*(value if j == i else middle[j] for j in range(3)))
                                     for i in range(3) for value in lists[i])]  # fmt: skip
    return list(dict.fromkeys(found))


def passes(args: argparse.Namespace, steps: int) -> int:
    """Passes of the denoiser, one sample each, without the calibration and the pictures that are inverted."""
    drawing, again = 2 * args.images * steps, args.images * steps
    each = drawing + again + 2 * args.images  # a pass more for each picture
    return drawing + again * (args.rounds + 1) + again + len(settings(args)) * each


@contextmanager
def defended(pipe: Any, op: Guidance | None) -> Iterator[None]:
    """The pipeline with IRECE on it, or as it is."""
    handle = None if op is None else attach(pipe, [op], Base("", "", {}), force=True)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


class Measure:
    """All that the settings share: the cases, the undefended pictures, and the noise of the inverted ones."""

    def __init__(self, victim: Victim, args: argparse.Namespace) -> None:
        self.victim, self.steps = victim, victim.sampling.steps
        words = [args.controls[i % len(args.controls)] for i in range(args.images)]
        self.words, self.cases = words, [Case(f"a {word}", i) for i, word in enumerate(words)]
        self.sources = [Case("", i) for i in range(args.images)]
        made = pictures.made(victim, [f"a {args.target}"], args.images, seed=1000)
        clean = pictures.latents(victim, made)
        text = texts(victim, ["" for _ in made])
        self.noise = torch.cat([
            inverted(victim.denoiser(), part, replace(text, given=given), schedule=victim.schedule(self.steps),
                     rounds=args.rounds)
            for part, given in zip(clean.split(args.batch), text.given.split(args.batch), strict=True)
        ])  # fmt: skip
        self.plain: Tensor | None = None

    def __call__(self, op: Guidance | None) -> dict[str, Any]:
        """The numbers with this op on, or with none; the first call must be with none."""
        with defended(self.victim.pipe, op):
            start = time.perf_counter()
            drawn = self.victim.draw(self.cases)
            seconds = (time.perf_counter() - start) / len(drawn)
            back = self.again()
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in drawn])).float() / 255
        self.plain = pixels if self.plain is None else self.plain
        apart = (pixels - self.plain).abs().flatten(1).mean(1)
        judge = self.victim.sight.judge
        right = [Sight(judge, word).look([image], [case.prompt])[0].hit
                 for word, image, case in zip(self.words, drawn, self.cases, strict=True)]  # fmt: skip
        shown = [seen.hit for seen in self.victim.look(self.sources, back)]
        return {"seconds": seconds, "difference": float(apart.mean()), "changed": share((apart > 0).tolist()),
                "clip": clip_score(pixels, [case.prompt for case in self.cases]),
                "right": share(right), "target": share(shown)}  # fmt: skip

    def again(self) -> list[Any]:
        """The pictures that the inverted noise gives under the empty prompt at guidance 1, sampled by DDIM."""
        from diffusers import DDIMScheduler

        victim, kept = self.victim, self.victim.pipe.scheduler
        empty = victim.condition(victim.ids([""])).expand(len(self.noise), -1, -1)
        levels = {"set_alpha_to_one": True, "clip_sample": False}
        victim.pipe.scheduler = DDIMScheduler.from_config(kept.config, **levels)
        try:
            with torch.no_grad():
                return victim.draw(self.sources, conditions=empty, latents=self.noise,
                                   sampling=Sampling(self.steps, 1.0, victim.sampling.batch))  # fmt: skip
        finally:
            victim.pipe.scheduler = kept


def share(hits: Sequence[bool]) -> dict[str, float]:
    found = Share(sum(hits), len(hits))
    return {"hits": found.hits, "of": found.trials, "low": found.interval[0], "high": found.interval[1]}


def sweep(victim: Victim, fitted: Guidance, args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """The undefended line, then one for each setting, printed and kept in `--out` as they come."""
    with victim:
        measure = Measure(victim, args)
        rows = [("undefended", measure(None))]
        keep(rows, args)
        for one in settings(args):
            rows.append((f"t* {one.at:g}, tau {one.tau:g}, rho {one.rho:g}", measure(one.op(fitted))))
            keep(rows, args)
            print(f"{len(rows) - 1} of {len(settings(args))}: {rows[-1][0]}", flush=True)
    return rows


def results(rows: Sequence[tuple[str, dict[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    return {"settings": {key: str(value) for key, value in vars(args).items()}, "rows": dict(rows)}


def keep(rows: Sequence[tuple[str, dict[str, Any]]], args: argparse.Namespace) -> None:
    """Writes what was measured so far."""
    if args.out:
        found = results(rows, args)
        write_whole(args.out, (json.dumps(found, indent=1) + "\n").encode())


def main() -> None:
    import erasekit
    from erasekit import io, models
    from erasekit.evaluation import judges

    args = options()
    if args.out:
        check_writable(args.out)
    pipe: Any = erasekit.load(args.model)
    own = models.defaults(models.resolve(args.model))
    how = Sampling(args.steps or int(own["steps"]), float(own["guidance"]), args.batch)
    if args.edit is None and not args.estimate:
        edit = erasekit.erase(pipe, args.target, anchor=args.anchor, method=args.method)
    else:
        edit = None if args.edit is None else io.load(args.edit)
    victim = Victim(pipe, edit, Sight(judges.get(args.judge), args.target), how)
    if args.estimate:
        print(estimate(victim, passes(args, how.steps), len(settings(args))))
        return
    fitted = erasekit.erase(pipe, args.target, method="irece", retain=args.controls, at=sorted(set(args.at)),
                            variant=args.variant, gate=args.gate, margin=args.margin, guidance=how.guidance,
                            sampling_steps=how.steps)  # fmt: skip
    rows = sweep(victim, fitted.ops[0], args)
    print(table(rows))
    if args.docs:
        rewrite_page(results(rows, args), args.page)


def estimate(victim: Victim, count: int, points: int) -> str:
    """How much a run takes, from one timed pass (after one to warm up)."""
    with victim, torch.no_grad():
        predict, text = victim.denoiser(), victim.condition(victim.ids([""]))
        latents = torch.zeros(victim.sampling.batch, *predict.shape, device=victim.pipe.device)
        for _ in range(2):
            start = time.perf_counter()
            predict(latents, 500, text.expand(len(latents), -1, -1))
        seconds = (time.perf_counter() - start) / len(latents)
    return f"{points} settings, {count:,} passes of the denoiser, about {count * seconds / 60:.0f} minutes and the judge's time"


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
