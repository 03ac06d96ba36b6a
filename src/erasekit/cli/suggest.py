"""`erasekit suggest-anchors` and `erasekit suggest-retain`: what to map a target to and what to keep, before a fit."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.backbones.base import Backbone
    from erasekit.suggest import Anchors, Retain

NAMES = ("suggest-anchors", "suggest-retain")
HINT = "compared with a short list of common nouns: give --candidates FILE (one a line) for the concepts that you mean"
CHECK = (
    "updates are those of the default fit, drifts estimates from features; what images show is for `erasekit evaluate`"
)


def add(commands: argparse._SubParsersAction) -> None:
    """Adds both commands to the parser."""
    anchors = _parser(commands, NAMES[0], "rank anchors for TARGET by distance, with predicted update and collateral")
    retain = _parser(commands, NAMES[1], "rank the concepts that erasing TARGET would move most")
    retain.add_argument("--anchor", default="", metavar="A", help="what TARGET becomes (default: the empty prompt)")
    for parser in (anchors, retain):
        parser.add_argument("target", metavar="TARGET", help="the concept to erase")
        parser.add_argument("--model", default="emoji", metavar="M",
                            help="emoji (embedded), a diffusers folder, or a hub id owner/name (default: emoji)")  # fmt: skip
        parser.add_argument("--candidates", type=Path, metavar="FILE",
                            help="what to compare, one a line (default: the emoji world's concepts, or nouns)")  # fmt: skip
        parser.add_argument("--top", type=int, default=10, metavar="N", help="how many to show (default: 10)")
        parser.add_argument("--json", action="store_true", help="as JSON")


def _parser(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Either command: predict, rank, print."""
    if arguments.top < 1:
        raise UsageError("--top takes a number from 1 on")
    from erasekit.suggest.candidates import usable

    names, synonyms, notes = _candidates(arguments)
    usable(arguments.target, names, synonyms)  # wrong words are refused before a model is read
    if arguments.command == NAMES[0]:
        _anchors(arguments, names, synonyms, notes)
    else:
        _retain(arguments, names, synonyms, notes)


def _candidates(arguments: argparse.Namespace) -> tuple[Sequence[str], tuple[str, ...], list[str]]:
    """What to compare, the known synonyms of the target, and what to tell about both."""
    from erasekit.cli.settings import read_lines
    from erasekit.suggest import candidates

    emoji = arguments.model == "emoji"
    synonyms = candidates.emoji_synonyms(arguments.target) if emoji else ()
    if arguments.candidates:
        return read_lines(arguments.candidates), synonyms, []
    if emoji:
        return candidates.emoji_candidates(arguments.target), synonyms, []
    return candidates.COMMON, synonyms, [HINT]


def _anchors(arguments: argparse.Namespace, names: Sequence[str], synonyms: Sequence[str], notes: list[str]) -> None:
    from erasekit.suggest import suggest_anchors

    model = _open(arguments.model)
    from erasekit.cli import terminal

    with terminal.progress(quiet=arguments.json) as progress:
        found = suggest_anchors(model, arguments.target, names, synonyms=synonyms, progress=progress)
    shown = replace(found, anchors=found.anchors[: arguments.top])
    if arguments.json:
        print(json.dumps({**asdict(shown), "notes": notes}, indent=2))
        return
    print(describe_anchors(shown, total=len(found.anchors)))
    print("\n".join(f"note: {note}" for note in [*_left(found.left_out), *notes, CHECK]))
    print(_proposal(found, arguments.model))


def _proposal(found: Anchors, model: str) -> str:
    best = found.anchors[0]
    if best.warnings:
        return "note: every candidate has a warning: put others into a file and give --candidates FILE"
    words = shlex.quote(found.target), shlex.quote(best.concept)
    return f"try: erasekit erase {words[0]} --anchor {words[1]}{_model(model)} --out EDIT.safetensors"


def _retain(arguments: argparse.Namespace, names: Sequence[str], synonyms: Sequence[str], notes: list[str]) -> None:
    from erasekit.suggest import suggest_retain

    model = _open(arguments.model)
    from erasekit.cli import terminal

    with terminal.progress(quiet=arguments.json) as progress:
        found = suggest_retain(model, arguments.target, names, anchor=arguments.anchor, synonyms=synonyms,
                               progress=progress)  # fmt: skip
    shown = replace(found, concepts=found.concepts[: arguments.top])
    line = retain_line([kept.concept for kept in shown.concepts])
    if arguments.json:
        print(json.dumps({**asdict(shown), "notes": notes, "line": line}, indent=2))
        return
    print(describe_retain(shown, total=len(found.concepts)))
    more = [f"probably other words for the target, which should move: {', '.join(found.synonyms)}"]
    fits = f"retained concepts that fit in exactly beside the target: {found.exact_at_most}; more are kept softly"
    print("\n".join(f"note: {n}" for n in [*_left(found.left_out), *(more if found.synonyms else ()), fits, *notes]))
    print(line)


def describe_anchors(found: Anchors, *, total: int) -> str:
    """The table of anchors, their warnings below it."""
    from erasekit.cli.terminal import table

    head = (
        f"{_named(found.target, found.tokens)} in {found.model}: {len(found.anchors)} of {total} candidates, best first"
    )
    rows = [["anchor", "tokens", "cosine", "text update", "cross update", "drift", "moves most"]]
    rows += [[a.concept + "!" * bool(a.warnings), str(a.tokens), f"{a.cosine:.2f}", f"{a.update_text:.3f}",
              f"{a.update_cross:.3f}", f"{a.drift:.3f}", ", ".join(f"{d.concept} {d.drift:.2f}" for d in a.worst)]
             for a in found.anchors]  # fmt: skip
    warned = [f"warning: {a.concept!r}: {line}" for a in found.anchors for line in a.warnings]
    return "\n".join([head, table(rows), *warned])


def describe_retain(found: Retain, *, total: int) -> str:
    """The table of what would move most."""
    from erasekit.cli.terminal import table

    becomes = repr(found.anchor) if found.anchor else "the empty prompt"
    head = (
        f"{_named(found.target, found.tokens)} -> {becomes} in {found.model}: {len(found.concepts)} of {total} concepts"
    )
    rows = [["concept", "tokens", "cosine", "drift"]]
    rows += [[k.concept, str(k.tokens), f"{k.cosine:.2f}", f"{k.drift:.3f}"] for k in found.concepts]
    return "\n".join([head, table(rows)])


def retain_line(concepts: Sequence[str]) -> str:
    """`--retain "fox" "wolf"`, as a shell reads it."""
    plain = re.compile(r"[\w .,'-]+")
    return " ".join(["--retain", *(f'"{c}"' if plain.fullmatch(c) else shlex.quote(c) for c in concepts)])


def _open(name: str) -> Backbone:
    from erasekit.backbones import backbone
    from erasekit.cli.terminal import quiet

    quiet()
    return backbone(name)


def _named(concept: str, tokens: int) -> str:
    return f"{concept!r} ({tokens} token{'s' * (tokens != 1)})"


def _left(words: Sequence[str]) -> list[str]:
    return [f"left out as other words for the target: {', '.join(words)}"] if words else []


def _model(name: str) -> str:
    return "" if name == "emoji" else f" --model {shlex.quote(name)}"
