"""Step time and peak memory of methods that train, beside a straightforward loop of the same method, as ratios.

    python benchmarks/training_speed.py                                     # the emoji model, two cores
    python benchmarks/training_speed.py --shape sd14 --device cuda          # Stable Diffusion 1.4's, random weights
    python benchmarks/training_speed.py --shape sd14 --batch 1 --steps 3 --sampling-steps 4    # without a GPU
    python benchmarks/training_speed.py --methods concept-inversion --docs  # this one anew, the others as they are

`training_plain` has the straightforward loops of methods: two full denoisers, one sample at a time, guidance in two passes,
every prompt encoded again in every step; `training_inversion` that of an attack, Concept Inversion. Both sides draw the
same noise, levels and images, and must give the same losses (TOLERANCE), else nothing is reported. Times are of the steps
after the first, the fastest of --repeat turns, ours and the plain loop in turn in one process. Peak memory is each time of
a fresh process: its high-water mark, on a GPU what torch reserved of it at most for tensors. Inference is guided sampling
of one batch, both branches in one pass, no VAE.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import training_inversion
import training_plain
from many_page import rewrite
from training_models import MODELS, pipeline
from training_plain import Run
from training_report import bars, report

TARGET, ANCHOR, SEED = "cat", "dog", 0
TOLERANCE = 1e-3  # of a loss, relative to the largest
PAGE = Path(__file__).parents[1] / "docs/training.md"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Task:
    """A method or an attack beside its plain loop. `parameters` of a run with so many steps, samples a batch, sampling
    steps."""

    plain: Callable[..., Run]
    parameters: Callable[[int, int, int], dict[str, Any]]


TASKS = {
    "esd": Task(training_plain.esd, lambda n, batch, s: {"steps": n, "batch": batch, "sampling_steps": s}),
    # Drawing the images comes before the first step: few, in few steps. A frozen teacher is what needs two denoisers.
    "ac": Task(training_plain.ac, lambda n, batch, s: {"steps": n, "batch": batch, "sampling_steps": 3, "images": batch,
                                                       "augment": False, "teacher": "frozen"}),
    # The authors' rate for such a batch; the word to start from is one token for every tokenizer.
    "concept-inversion": Task(training_inversion.plain, lambda n, batch, s: {
        "steps": n, "batch": batch, "rate": 5e-3 * batch, "pictures": batch, "initial": "a"}),
}  # fmt: skip
MEMORY = "esd"  # the method whose peaks are measured


# -- what runs in a child ---------------------------------------------------------------------------------------


def run_child(asked: dict[str, Any]) -> dict[str, Any]:
    """What `asked["kind"]` says, in this process."""
    import torch

    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    return speed(asked) if asked["kind"] == "speed" else memory(asked)


def subject(name: str) -> Any:
    """The class of the method or the attack."""
    from erasekit import attacks, methods

    return attacks.get(name) if name in attacks.ATTACKS else methods.get(name)


def ours(pipe: Any, method: str, parameters: dict[str, Any]) -> Run:
    """A fit, or an attack's learning, with the time after every step and the loss of every step."""
    from erasekit.attacks import ATTACKS
    from erasekit.backbones import backbone
    from erasekit.concept import EraseRequest
    from erasekit.methods import make_config

    cls, run = subject(method), Run()
    if method in ATTACKS:
        return training_inversion.ours(pipe, make_config(cls, parameters), target=TARGET, seed=SEED)

    def progress(done: int, total: int, what: str) -> None:
        if what.startswith("training"):
            run.stamps.append(time.perf_counter())

    request = EraseRequest.build(TARGET, anchor=ANCHOR, seed=SEED)
    edit = cls().fit(backbone(pipe), request, make_config(cls, parameters), progress=progress)
    run.losses = edit.self_check["training"]["loss"]
    return run


def plain(pipe: Any, method: str, parameters: dict[str, Any]) -> Run:
    from erasekit.methods import make_config

    config = make_config(subject(method), parameters)
    return TASKS[method].plain(pipe, config, target=TARGET, anchor=ANCHOR, seed=SEED)


def speed(asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds a step of both, the fastest of the turns, and how far the losses are apart."""
    pipe, method = pipeline(asked["model"], asked["device"]), asked["method"]
    parameters = TASKS[method].parameters(asked["steps"], asked["batch"], asked["sampling_steps"])
    found = [(ours(pipe, method, parameters), plain(pipe, method, parameters)) for _ in range(asked["repeat"])]
    seconds = [min(run.seconds for run in runs) for runs in zip(*found, strict=True)]
    apart = max(difference(a.losses, b.losses) for a, b in found)
    return {"seconds": seconds[0], "plain_seconds": seconds[1], "ratio": seconds[1] / seconds[0], "difference": apart,
            "losses": found[0][0].losses, "parameters": parameters}  # fmt: skip


def difference(a: list[float], b: list[float]) -> float:
    """The largest distance of two runs' losses, relative to the largest loss."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) / max(map(abs, b))


def memory(asked: dict[str, Any]) -> dict[str, Any]:
    """Peak megabytes of one piece of work; on the CPU also what of it came after the imports."""
    import torch

    __import__("erasekit.methods.esd")
    __import__("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    cuda, before = asked["device"].startswith("cuda"), measuring.high_water()
    pipe = pipeline(asked["model"], asked["device"])
    parameters = TASKS["esd"].parameters(asked["steps"], asked["batch"], asked["sampling_steps"])
    {"inference": lambda: inference(pipe, asked["batch"], asked["sampling_steps"]),
     "training": lambda: ours(pipe, "esd", parameters),
     "training, recompute": lambda: ours(pipe, "esd", parameters | {"recompute": True}),
     "plain loop": lambda: plain(pipe, "esd", parameters)}[asked["what"]]()  # fmt: skip
    if cuda:
        return {"peak_mb": torch.cuda.max_memory_allocated() / 1e6}
    return {"peak_mb": measuring.high_water() / 1e6, "own_mb": (measuring.high_water() - before) / 1e6}


def inference(pipe: Any, batch: int, steps: int) -> None:
    """Guided sampling of one batch with the model as it is."""
    import torch

    from erasekit.backbones import backbone
    from erasekit.training.bench import Denoiser
    from erasekit.training.latents import Schedule, partly_denoised

    denoise, schedule = Denoiser(pipe.unet, "model"), Schedule.of(dict(pipe.scheduler.config), steps + 1)
    target, empty = backbone(pipe).encode([TARGET, ""]).to(denoise.device).split(1)
    noise = torch.randn((batch, *denoise.shape), generator=torch.Generator().manual_seed(SEED)).to(denoise.device)
    partly_denoised(denoise, noise, target, empty, schedule=schedule, k=steps, guidance=3.0)


# -- the whole --------------------------------------------------------------------------------------------------


def known(method: str) -> bool:
    from erasekit.attacks import ATTACKS
    from erasekit.methods import METHODS

    return method in METHODS or method in ATTACKS


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The tasks that are asked for, and with `MEMORY` every piece of memory, each in a child; `SystemExit` where one fails
    or the losses differ."""
    base, times = settings(options), {}
    for method in filter(known, options.methods):
        times[method] = _child(base | {"kind": "speed", "method": method, "repeat": options.repeat})
        if times[method]["difference"] > TOLERANCE:
            raise SystemExit(f"error: the losses of {method} and of its plain loop differ by "
                             f"{times[method]['difference']:.2g} of the largest: not the same arithmetic")  # fmt: skip
    small = base | {"kind": "memory", "steps": 2, "sampling_steps": 4}  # the levels do not change the memory
    peaks = {what: _child(small | {"what": what})
             for what in ("inference", "training", "training, recompute", "plain loop") if MEMORY in times}  # fmt: skip
    return {"environment": measuring.environment(), "settings": base, "speed": times, "memory": peaks}


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the numbers besides method and machine."""
    return {"model": options.shape, "device": options.device, "threads": options.threads, "batch": options.batch,
            "steps": options.steps, "sampling_steps": options.sampling_steps}  # fmt: skip


def earlier(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What an earlier run left there, for a run of some methods; `SystemExit` for that of other settings or another machine."""
    before = json.loads(out.read_text()) if out.exists() and not set(TASKS) <= set(options.methods) else {}
    now = {"environment": measuring.environment(), "settings": settings(options)} if before else {}
    if other := [key for key in now if before[key] != now[key]]:
        what = " and ".join(other)
        raise SystemExit(f"error: {out} has numbers of other {what}: measure all methods, or name another --out")
    return before


def merged(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Both, the new numbers first choice."""
    speed = {**before.get("speed", {}), **found["speed"]}
    ordered = {name: speed[name] for name in TASKS if name in speed}
    return {**found, "speed": ordered, "memory": found["memory"] or before.get("memory", {})}


def _child(asked: dict[str, Any]) -> dict[str, Any]:
    print("measuring", asked.get("what") or asked["method"], file=sys.stderr, flush=True)
    found = measuring.child(Path(__file__), asked)
    if "failed" in found:
        raise SystemExit(f"error: {asked} failed: {found['failed']}")
    return found


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=MODELS, default="emoji", help="the model (sd14: random weights)")
    parser.add_argument("--methods", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, choices=range(2, 21), default=6, metavar="2..20")
    parser.add_argument("--sampling-steps", type=int, default=50, help="of ESD: a step makes 0 to one less of them")
    parser.add_argument("--repeat", type=int, default=2, help="turns, of which the fastest counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--out", type=Path, help="the JSON file (default: results/training_speed_SHAPE.json)")
    parser.add_argument("--docs", action="store_true", help="rewrite the numbers of docs/training.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    options = parsed(words)
    if options.child:
        from erasekit.cli import terminal

        terminal.quiet()
        print(json.dumps(run_child(measuring.given(options.child))))
        return
    out = options.out or RESULTS / f"training_speed_{options.shape}.json"
    before = earlier(options, out)  # what cannot be kept is refused before anything is measured
    found = merged(before, measure(options))
    found["bars"] = bars(found)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{report(found)}\n\n{out}")
    if options.docs:
        rewrite(options.page, {"speed": report(found)})


if __name__ == "__main__":
    main()
