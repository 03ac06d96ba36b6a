"""`erasekit suites`: the suites there are, or one of them with its groups, its prompts and its digest."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.evaluation.suites import Prompt, Suite


def add(commands: argparse._SubParsersAction) -> None:
    """The command's grammar."""
    text = "list the suites of prompts, or show one"
    parser = commands.add_parser("suites", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("suite", nargs="?", metavar="NAME", help="a suite's name, or a YAML file")
    parser.add_argument("--target", nargs="+", action="extend", default=[], metavar="T",
                        help="the targets whose prompts are shown (default: one, or all where they go together)")  # fmt: skip
    parser.add_argument("--anchor", nargs="+", action="extend", default=[], metavar="A",
                        help="what the targets become (default: the suite's own)")  # fmt: skip
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE.csv", help="prompts for a suite that reads them from a file"
    )
    parser.add_argument("--json", action="store_true", help="as JSON; for one suite with every prompt")


def run(arguments: argparse.Namespace) -> int:
    """List the suites, or describe the one that was named."""
    from erasekit.evaluation.suites import load_suite, suite_names

    if arguments.suite is None:
        if arguments.target or arguments.anchor or arguments.prompts:
            raise UsageError("--target, --anchor and --prompts are of one suite: name it")
        _print_list([_listed(name) for name in suite_names()], as_json=arguments.json)
        return 0
    if arguments.prompts is None and _asks_for_file(arguments.suite) and not arguments.target:
        facts, prompts = _listed(arguments.suite), ()
    else:
        suite = load_suite(arguments.suite, prompts=arguments.prompts)
        prompts = _prompts(suite, arguments.target, arguments.anchor)
        facts = _facts(suite) | _counts(prompts)
    if arguments.json:
        print(json.dumps(facts | {"prompts": [_plain(prompt) for prompt in prompts]}, indent=1))
    else:
        print(_text(facts, prompts))
    return 0


def _asks_for_file(name: str) -> bool:
    from erasekit.evaluation.suites.load import needs_file

    return needs_file(name) is not None


def _prompts(suite: Suite, targets: list[str], anchors: list[str]) -> tuple[Prompt, ...]:
    """Of all targets where the suite measures them together, else of the first: each has the same number."""
    names = targets or list(suite.targets if suite.whole else suite.targets[:1]) or ["TARGET"]
    return suite.prompts(names, anchors)


def _listed(name: str) -> dict[str, Any]:
    """A suite's facts, also where it waits for its prompt file."""
    from erasekit.evaluation.suites.load import needs_file, peek

    return _facts(peek(name)) | {"prompt_file": needs_file(name)}


def _facts(suite: Suite) -> dict[str, Any]:
    return {
        "name": suite.name, "version": suite.version, "title": suite.title, "note": suite.note, "world": suite.world,
        "kind": suite.kind, "digest": suite.digest, "judges": list(suite.judges), "targets": list(suite.targets),
        "whole": suite.whole, "sampling": vars(suite.sampling), "notes": list(suite.notes),
        **({"real": suite.real} if suite.real else {}),
    }  # fmt: skip


def _counts(prompts: tuple[Prompt, ...]) -> dict[str, Any]:
    images = Counter[str]()
    for prompt in prompts:
        images[prompt.group] += len(prompt.seeds)
    return {"shown_for": list(dict.fromkeys(p.target for p in prompts if p.target)), "images": sum(images.values()),
            "count": len(prompts), "groups": {g: {"prompts": n, "images": images[g]} for g, n in
                                              Counter(p.group for p in prompts).items()}}  # fmt: skip


def _plain(prompt: Prompt) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(prompt).items()}


def _print_list(listed: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(listed, indent=1))
        return
    for facts in listed:
        print(f"{facts['name']}: {facts['title']}" + (" (needs --prompts FILE)" if facts["prompt_file"] else ""))
    print("one in full: `erasekit suites NAME`; your own: copy a suite's YAML file and name that file")


def _text(facts: dict[str, Any], prompts: tuple[Prompt, ...]) -> str:
    from erasekit.cli.terminal import table
    from erasekit.evaluation.suites import GROUPS
    from erasekit.evaluation.suites.suite import listed

    sampling = ", ".join(f"{name} {value}" for name, value in facts["sampling"].items() if value not in (None, ""))
    lines = [f"{facts['name']} (version {facts['version']}): {facts['title']}", facts["note"],
             f"digest: {facts['digest']}" if facts["digest"] else f"needs --prompts: {facts['prompt_file']}",
             f"targets: {listed(facts['targets']) or 'any'}" + (" (all together)" if facts["whole"] else ""),
             f"judges: {', '.join(facts['judges'])}", f"sampling: {sampling}",
             f"real images: {facts['real']}, unless --real names others" if facts.get("real") else "",
             *(f"note: {note}" for note in facts["notes"])]  # fmt: skip
    if prompts:
        first = {prompt.group: prompt.text for prompt in reversed(prompts)}
        rows = [[group, str(n["prompts"]), str(n["images"])] for group, n in facts["groups"].items()]
        counts = table([["group", "prompts", "images"], *rows, ["all", str(facts["count"]), str(facts["images"])]])
        lines += [f"for {listed(facts['shown_for']) or 'any target'}:", counts]
        lines += [f"{group} ({GROUPS[group].doc}): {first[group]}" for group in facts["groups"]]
    return "\n".join(line for line in lines if line)
