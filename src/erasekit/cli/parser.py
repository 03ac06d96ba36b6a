"""The command line's grammar. Nothing heavy is imported here: `--help` is instant."""

from __future__ import annotations

import argparse
from pathlib import Path

from erasekit import __version__
from erasekit.cli import attack, evaluate, judges, report, suggest, suites

MODEL_HELP = "emoji (embedded), a diffusers folder, or a hub id owner/name"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `arguments.command` names the one that was given."""
    parser = argparse.ArgumentParser(prog="erasekit", description="Remove concepts from generative models.")
    parser.add_argument("--version", action="version", version=f"erasekit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_erase, _apply, _export, _show, _generate, suggest.add, evaluate.add, report.add, suites.add, judges.add,
                attack.add, _lists, _demo):  # fmt: skip
        add(commands)
    return parser


def _command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _model(parser: argparse.ArgumentParser, default: str | None = "emoji") -> None:
    parser.add_argument("--model", default=default, metavar="M", help=f"{MODEL_HELP} (default: emoji)")
    parser.add_argument("--device", default=None, metavar="D", help="cpu, cuda, mps (default: cpu)")


def _erase(commands: argparse._SubParsersAction) -> None:
    # Every default is None: a value given here overrides the --spec file, and only then the default comes in.
    parser = _command(commands, "erase", "compute an edit that erases TARGETs, and save it as one file")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="the concepts to erase")
    parser.add_argument("--anchor", nargs="+", action="extend", metavar="A",
                        help="what the targets become: one for all, or one each (default: the method's; erasepro's, the empty "
                             "prompt, is its worst choice: see suggest-anchors)")  # fmt: skip
    parser.add_argument("--method", metavar="NAME", help="see `erasekit methods` (default: erasepro)")
    _model(parser, None)
    parser.add_argument("--retain", nargs="+", action="extend", metavar="R", help="concepts to keep")
    parser.add_argument("--retain-file", type=Path, metavar="F", help="a text file of concepts to keep, one a line")
    parser.add_argument("--retain-cache", type=Path, metavar="FOLDER",
                        help="keep what is computed from the retained concepts here, for the next edit")  # fmt: skip
    parser.add_argument("--set", dest="parameters", nargs="+", action="extend", metavar="KEY=VALUE",
                        help="a parameter of the method; `erasekit methods --json` lists them")  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help="training steps: short for --set steps=N")
    parser.add_argument("--resume", type=Path, metavar="PATH",
                        help="keep the training's state in this file or folder, and go on from it")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", default=None,
                        help="say what would be trained, and the time and memory; write nothing")  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="seed of what a method draws at random (default: 0)")
    parser.add_argument("--spec", type=Path, metavar="FILE.yaml", help="all of these as a YAML file")
    parser.add_argument("--out", type=Path, metavar="EDIT.safetensors", help="where the edit goes")


def _apply(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "apply", "write a whole diffusers folder with an edit fused into the weights")
    parser.add_argument("edit", type=Path, metavar="EDIT")
    _model(parser)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"),
                        help="precision of the written weights (default: as the model is stored)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")


def _export(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "export", "write an edit in a format that other programs load")
    parser.add_argument("edit", type=Path, metavar="EDIT")
    parser.add_argument("--format", required=True, choices=("peft", "kohya", "comfy"))
    parser.add_argument("--out", type=Path, required=True, metavar="F")


def _show(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "show", "say what an edit is: method, targets, base model, size, self-check")
    parser.add_argument("edit", type=Path, metavar="EDIT")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _generate(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "generate", "draw every prompt with every seed; images that exist are kept")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    _model(parser)
    parser.add_argument("--edit", nargs="+", action="extend", type=Path, default=[], metavar="E",
                        help="edits to apply, one after the other")  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="strength of the edits (default: 1)")
    parser.add_argument("--force", action="store_true",
                        help="apply the edits also to another model of their family, with the same modules")  # fmt: skip
    parser.add_argument("--seeds", default="0-3", metavar="0-3", help="such as 7, 0-3 or 0,2,5-7 (default: 0-3)")
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: the model's)")
    parser.add_argument("--guidance", type=float, metavar="G", help="guidance scale (default: the model's)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images drawn together (default: 8)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="precision to sample in")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")


def _lists(commands: argparse._SubParsersAction) -> None:
    for name, text in (("methods", "list the methods and their parameters"), ("models", "list the embedded models")):
        _command(commands, name, text).add_argument("--json", action="store_true", help="as JSON")


def _demo(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "demo", "erase a cat from the embedded model and show what that did")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), metavar="FOLDER",
                        help="where edit, pictures and report go (default: demo-output)")  # fmt: skip
    parser.add_argument(
        "--seeds", default="0-3", metavar="0-3", help="images of every prompt (default: 0-3, four of each)"
    )
