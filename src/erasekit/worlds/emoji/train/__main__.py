"""`python -m erasekit.worlds.emoji.train STAGE --work FOLDER [--steps N] [--seed N] [--onward] [--without CONCEPT ...]`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from erasekit.errors import EraseKitError, UsageError

STAGES = ("drawings", "vae", "text", "denoiser", "focus", "judge", "clip", "assemble", "card", "unpack")
OPTIONS = ("seed", "steps", "onward", "without", "without_style", "bf16")


def build_parser() -> argparse.ArgumentParser:
    """The stages and their options."""
    parser = argparse.ArgumentParser(prog="python -m erasekit.worlds.emoji.train")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--onward", action="store_true", help="denoiser, judge: begin with the work folder's weights")
    parser.add_argument(
        "--bf16", action="store_true", help="denoiser: products in bfloat16, faster where the CPU has it"
    )
    of = "denoiser, assemble, card: of the model that never saw the"
    for option, what in (("--without", "CONCEPT"), ("--without-style", "STYLE")):
        parser.add_argument(option, nargs="+", metavar=what, help=f"{of} {what}")
    return parser


def options_of(args: argparse.Namespace, run: Callable[..., object]) -> dict[str, Any]:
    """What the stage's `run` is given: what was asked for, nothing else. Raises `UsageError` for what it does not take."""
    every = {key: getattr(args, key) for key in OPTIONS}
    asked = {key: value for key, value in every.items() if value is not None and value is not False}  # 0 was asked for
    takes = [key for key in OPTIONS if key in inspect.signature(run).parameters]
    if strange := [key for key in asked if key not in takes]:
        known = ", ".join(map(_flag, takes)) or "no option but --work"
        raise UsageError(f"the stage {args.stage} does not take {_flag(strange[0])}: it takes {known}")
    if asked.get("steps", 1) < 1:
        raise UsageError(f"--steps must be at least 1, not {args.steps}")
    return asked


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one stage; its files and checkpoints lie in the work folder."""
    parser = build_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    run = importlib.import_module(f"erasekit.worlds.emoji.train.{args.stage}").run
    try:
        given = options_of(args, run)
        args.work.mkdir(parents=True, exist_ok=True)
        run(args.work, **given)
    except UsageError as error:
        parser.error(str(error))
    except EraseKitError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
