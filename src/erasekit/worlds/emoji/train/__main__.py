"""`python -m erasekit.worlds.emoji.train STAGE --work FOLDER [--steps N] [--seed N] [--onward]`."""

from __future__ import annotations

import argparse
import importlib
import logging
from pathlib import Path

STAGES = ("drawings", "vae", "text", "denoiser", "judge", "assemble", "card", "unpack")


def main() -> None:
    """Runs one stage; its files and checkpoints lie in the work folder."""
    parser = argparse.ArgumentParser(prog="python -m erasekit.worlds.emoji.train")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--onward", action="store_true", help="denoiser, judge: begin with the work folder's weights")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    options = (
        {"seed": args.seed} | ({"steps": args.steps} if args.steps else {}) | ({"onward": True} if args.onward else {})
    )
    importlib.import_module(f"erasekit.worlds.emoji.train.{args.stage}").run(args.work, **options)


if __name__ == "__main__":
    main()
