"""The commands, each a few lines over the library; heavy imports happen inside them."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.cli import attack, attack_list, evaluate, judges, report, settings, suggest, suites, terminal
from erasekit.errors import UsageError

if TYPE_CHECKING:
    import torch


def run(arguments: argparse.Namespace) -> int:
    """Run the command that was parsed; returns the exit code."""
    return COMMANDS[arguments.command](arguments) or 0


def erase(arguments: argparse.Namespace) -> None:
    """`erasekit erase`: fit an edit, save it, print its self-check."""
    job = settings.erase_settings(arguments)
    from erasekit import api, methods, models
    from erasekit.files import check_writable

    if job.out:
        check_writable(job.out)
    # By name only the needed tensors are read; another device needs the whole pipeline there.
    model: Any = job.model if job.device == "cpu" else models.load(job.model, device=device(job.device))
    asked: dict[str, Any] = {"anchor": job.anchor, "retain": job.retain, "method": job.method, "seed": job.seed}
    if job.dry_run or methods.trains(methods.resolve(job.method)[0]):
        terminal.quiet()  # what trains loads a whole pipeline, with bars of its own
    if job.dry_run:
        with _told():
            print(terminal.plan(api.plan(model, job.targets, **asked, **job.parameters)))
        return
    assert job.out is not None  # erase_settings requires it
    with _told(), terminal.progress() as progress:
        edit = api.erase(model, job.targets, **asked, retain_cache=job.retain_cache, checkpoint=job.resume,
                         progress=progress, **job.parameters)  # fmt: skip
    edit.save(job.out)
    print(terminal.describe(edit))
    print(f"wrote {job.out} ({job.out.stat().st_size / 1024:.1f} KiB)")


@contextmanager
def _told() -> Iterator[None]:
    """Say on stderr, one line each and at once, what is wrong with the files of --retain-cache, and with a list of targets
    that is too long: the main filter hides warnings."""
    from erasekit.methods._cache import CacheWarning
    from erasekit.methods._crowd import CrowdWarning

    def show(message: Warning | str, *_args: Any, **_options: Any) -> None:
        print(f"erasekit: warning: {message}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        for kind in (CacheWarning, CrowdWarning):
            warnings.simplefilter("always", kind)
        warnings.showwarning = show
        yield


def apply(arguments: argparse.Namespace) -> None:
    """`erasekit apply`: a diffusers folder with the edit fused; it appears whole or not at all."""
    from erasekit import io, models
    from erasekit.files import write_folder

    edit = io.load(arguments.edit)
    edit.require_fusible()
    source = models.resolve(arguments.model, without=())  # what is not read is copied along
    missing: list[str] = []
    terminal.quiet()

    def fill(folder: Path) -> None:  # inside write_folder, which refuses a taken folder before the model is read
        pipe: Any = models.load(arguments.model, dtype=dtype(arguments.dtype) or models.stored_dtype(source),
                                device=device(arguments.device))  # fmt: skip
        edit.fuse(pipe)
        pipe.save_pretrained(folder, safe_serialization=True)
        missing.extend(models.keep_unread(source, folder))
        if (source / "defaults.json").is_file():
            shutil.copyfile(source / "defaults.json", folder / "defaults.json")

    write_folder(arguments.out, fill)
    print(f"wrote {arguments.out}: {arguments.model} with {', '.join(edit.targets)} erased")
    for part in missing:
        print(f"erasekit: warning: {arguments.out} is without the {part} that {arguments.model} names, whose files are not "
              "here: copy them, and its line of model_index.json, from where the model came from", file=sys.stderr)  # fmt: skip


def export(arguments: argparse.Namespace) -> None:
    """`erasekit export`: the edit in another program's format."""
    from erasekit import io

    lost = io.load(arguments.edit).export(arguments.out, format=arguments.format)
    print(f"wrote {arguments.out} ({arguments.format})")
    if lost:
        print(f"erasekit: warning: {lost}", file=sys.stderr)


def show(arguments: argparse.Namespace) -> None:
    """`erasekit show`: what an edit is."""
    from erasekit import io

    edit = io.load(arguments.edit)
    print(json.dumps(edit.describe(), indent=2) if arguments.json else terminal.describe(edit))


def generate(arguments: argparse.Namespace) -> None:
    """`erasekit generate`: images of every prompt and seed; those that exist already are kept."""
    from erasekit.cli import generate as drawing

    drawing.generate(arguments)


def methods(arguments: argparse.Namespace) -> None:
    """`erasekit methods`: what can erase, and with which parameters."""
    from erasekit.methods import METHODS, describe_config, get

    listed = {name: _method(get(name), describe_config) for name in METHODS}
    if arguments.json:
        print(json.dumps(listed, indent=2, default=str))
        return
    for name, facts in listed.items():
        print(f"{name}: {facts['title']} ({facts['paper']}; {', '.join(facts['families'])})")
        for preset, about in facts["presets"].items():
            print(f"  --method {name}:{preset}  {about['doc']}")
        for key, field in facts["parameters"].items():
            print(f"  --set {key}={_as_typed(field['default'])}  {field['doc']}")


def _as_typed(value: object) -> str:
    """A default as one would type it after `--set key=`."""
    if isinstance(value, (list, tuple)):
        return ";".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _method(cls: Any, describe_config: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    return {"title": cls.title, "paper": cls.paper, "families": list(cls.families),
            "default_anchor": cls.default_anchor, "parameters": describe_config(cls),
            "presets": {name: {"doc": p.doc, "values": dict(p.values), "anchor": p.anchor}
                        for name, p in cls.presets.items()}}  # fmt: skip


def models(arguments: argparse.Namespace) -> None:
    """`erasekit models`: the embedded models."""
    from erasekit.models import EMBEDDED

    if arguments.json:
        print(json.dumps({name: {"description": text} for name, text in EMBEDDED.items()}, indent=2))
        return
    for name, text in EMBEDDED.items():
        print(f"{name}: {text}")
    print("also: any Stable Diffusion 1.x or 2.x as a diffusers folder or hub id (owner/name)")


def demo(arguments: argparse.Namespace) -> None:
    """`erasekit demo`: erase, draw, judge, report."""
    from erasekit import demo as show_case
    from erasekit.evaluation.report import percent

    seeds = settings.seeds(arguments.seeds)
    terminal.quiet()
    print(f"erasing {show_case.TARGET!r} to {show_case.ANCHOR!r} from the embedded model", flush=True)
    with terminal.progress() as progress:
        result = show_case.run(arguments.out, seeds=seeds, progress=progress,
                               on_edit=lambda edit: print(terminal.describe(edit), flush=True))  # fmt: skip
    rows = [["found by the judge (95 % interval)", "before", "after"]]
    rows += [[m.name, percent(m.before), percent(m.after)] for m in result.headline]
    print(terminal.table(rows))
    for name in ("edit.safetensors", "grid.png", "report.html", "results.json"):
        print(f"wrote {arguments.out / name}")


def device(name: str | None) -> str:
    """A device that torch has; `UsageError` otherwise."""
    import torch

    try:
        torch.zeros(1, device=name or "cpu").item()  # the device "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UsageError(f"no device {name!r} here: use cpu, or another that torch finds on this machine") from error
    return name or "cpu"


def dtype(name: str | None) -> torch.dtype | None:
    """The torch dtype of that name."""
    import torch

    return getattr(torch, name) if name else None


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "erase": erase,
    "apply": apply,
    "export": export,
    "show": show,
    "generate": generate,
    "suggest-anchors": suggest.run,
    "suggest-retain": suggest.run,
    "evaluate": evaluate.run,
    "attack": attack.run,
    "attacks": attack_list.run,
    "report": report.run,
    "compare": report.run,
    "suites": suites.run,
    "judges": judges.run,
    "methods": methods,
    "models": models,
    "demo": demo,
}
