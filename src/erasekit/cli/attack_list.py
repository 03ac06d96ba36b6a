"""`erasekit attacks`: the attacks with their parameters, and the ladders with their rungs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasekit.attacks.ladder import Ladder


def add(commands: argparse._SubParsersAction) -> None:
    """The grammar of `attacks`; nothing heavy is imported for it."""
    parser = commands.add_parser("attacks", help="list the attacks with their parameters, and the ladders")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> None:
    """What there is, what it needs, its parameters or its rungs."""
    found = {**single(), **ladders()}
    if arguments.json:
        print(json.dumps(found, indent=2, default=str))
        return
    for name, facts in found.items():
        print("\n".join(lines(name, facts)))


def single() -> dict[str, dict[str, Any]]:
    """The facts of every attack, by name."""
    from erasekit.attacks import ATTACKS, get
    from erasekit.attacks.m_erasurebench import MErasureBench
    from erasekit.methods import describe_config

    return {cls.name: {"title": cls.title, "paper": cls.paper, "access": list(cls.access), "families": list(cls.families),
                       "parameters": describe_config(cls), "rungs": []}
            for cls in (*map(get, ATTACKS), MErasureBench)}  # fmt: skip


def ladders() -> dict[str, dict[str, Any]]:
    """The facts of every ladder, by name: it needs whatever one of its rungs needs, and has no parameter."""
    from erasekit.attacks.standard import LADDERS

    return {name: {"title": f"the ladder {ladder.name}", "paper": "", **_needs(ladder), "parameters": {},
                   "rungs": [{"label": rung.label, "attack": rung.attack, "settings": dict(rung.settings),
                              "counts": rung.counts} for rung in ladder.rungs]}
            for name, ladder in LADDERS.items()}  # fmt: skip


def lines(name: str, facts: Mapping[str, Any]) -> list[str]:
    """One attack or ladder as text."""
    source = [] if facts["rungs"] else [facts["paper"] or "no paper"]
    head = f"{name}: {facts['title']} ({'; '.join([*source, 'needs ' + ', '.join(facts['access'])])})"
    parameters = [f"  --set {key}={field['default']}  {field['doc']}" for key, field in facts["parameters"].items()]
    return [head, *parameters, *map(_rung, facts["rungs"])]


def _rung(rung: Mapping[str, Any]) -> str:
    given = "".join(f" {key}={_value(value)}" for key, value in rung["settings"].items())
    return f"  {rung['label']}: {rung['attack']}{given}{'' if rung['counts'] else ' (apart)'}"


def _value(value: Any) -> str:
    """A value as `--set` takes it."""
    return ";".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _needs(ladder: Ladder) -> dict[str, list[str]]:
    from erasekit.attacks import ACCESS, get

    attacks = [get(rung.attack) for rung in ladder.rungs]
    needed = {word for attack in attacks for word in attack.access}
    families = set.intersection(*(set(attack.families) for attack in attacks))
    return {"access": [word for word in ACCESS if word in needed], "families": sorted(families)}
