"""`python -m erasekit.worlds.emoji.train STAGE --work FOLDER [--steps N] [--seed N] [--onward] [--without CONCEPT ...]`."""

from __future__ import annotations

import argparse
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasekit.errors import UsageError

STAGES = ("drawings", "vae", "text", "denoiser", "focus", "judge", "clip", "assemble", "card", "unpack")


def build_parser() -> argparse.ArgumentParser:
    """The stages and their options."""
    parser = argparse.ArgumentParser(prog="python -m erasekit.worlds.emoji.train")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--onward", action="store_true", help="denoiser, judge: begin with the work folder's weights")
    for option, what in (("--without", "CONCEPT"), ("--without-style", "STYLE")):
        parser.add_argument(option, nargs="+", metavar=what, help=f"denoiser: train it on scenes without the {what}")
    return parser


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the stage's `run` is given: the seed, and of the rest only what was asked for."""
    rest = ("steps", "onward", "without", "without_style")
    return {"seed": args.seed} | {key: getattr(args, key) for key in rest if getattr(args, key)}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one stage; its files and checkpoints lie in the work folder."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.stage != "denoiser" and (args.without or args.without_style):
        parser.error("--without and --without-style belong to the stage denoiser")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        importlib.import_module(f"erasekit.worlds.emoji.train.{args.stage}").run(args.work, **options_of(args))
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
