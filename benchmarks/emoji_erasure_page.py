"""The numbers of emoji_erasure.py as Markdown, and into pages.

    python benchmarks/emoji_erasure_page.py [--results FILE] [--docs PAGE ...]

Reads the JSON that emoji_erasure.py wrote; `emoji_erasure.py --docs` does the same after measuring. A page has room between
`<!-- begin erasure -->` and `<!-- end erasure -->` for all of it, or by the name `erasure table` for the table alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emoji_bars import ASKED
from emoji_prompts import PAIRS
from many_page import rewrite

from erasekit.errors import EraseKitError, UsageError

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs/erasepro.md", ROOT / "README.md")
RESULTS = Path(__file__).parent / "results/emoji_erasure/results.json"
WHOLE, SHORT = "erasure", "erasure table"
HEAD = {"target": "target shown", "anchor": "anchor in its place", "others": "others named right",
        "style": "style followed", "background": "background followed"}  # fmt: skip
HOW = """\
A bar is met by the value. The target's is the share of the pictures that show it (95 % Wilson interval). All others are
differences, in points, between each picture and its twin of the unedited model: same seed and same prompt, for the anchor
the prompt that names it in the target's place; their 95 % intervals draw prompts again, with all their seeds. Style and
background, for which no margin is set, count as followed as before where that interval reaches zero."""
Found = Mapping[str, Any]


def measured(found: Found) -> Found:
    """The methods of results; `UsageError` for those of an older layout, which has no bars, in one line that names them."""
    if old := [name for name, one in found.get("methods", found).items() if "bars" not in one]:
        raise UsageError(f"the results of {', '.join(old)} are of an older layout: measure them again with "
                         f"benchmarks/emoji_erasure.py --methods {' '.join(old)}")  # fmt: skip
    return found["methods"]


def blocks(found: Found) -> dict[str, str]:
    """The texts by their markers' names. Methods that were measured by one plan share a table."""
    groups = _groups(measured(found))
    tables = ["\n\n".join((said(group), table(group))) for group in groups]
    reports = [[report(name, one) for name, one in group.items()] for group in groups]
    whole = [part for text, each in zip(tables, reports, strict=True) for part in (text, *each)]
    return {SHORT: "\n\n".join(tables), WHOLE: "\n\n".join([*whole, HOW])}


def _groups(each: Found) -> list[dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for name, one in each.items():
        groups.setdefault(json.dumps([one["plan"], list(one["targets"])]), {})[name] = one
    return list(groups.values())


def said(group: Found) -> str:
    """The command that measures the group, what its pictures are of, and what it has too few of for the bars."""
    one = next(iter(group.values()))
    plan, targets, n = one["plan"], list(one["targets"]), {name: m["images"] for name, m in one["all"].items()}
    given = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in plan.items())
    pairs = ", ".join(f"{target} to {PAIRS[target]}" for target in targets)
    have = {"targets": len(targets), **plan}
    few = ", ".join(f"{have[key]} {key} instead of {least}" for key, least in ASKED.items() if have[key] < least)
    return (f"One target at a time ({pairs}), in sentences that training never saw, half of them with a second object: "
            f"`python benchmarks/emoji_erasure.py --methods {' '.join(group)} --targets {len(targets)} {given}`; "
            f"{n['target after']} pictures of these sentences with each method's edits and {n['target before']} without, "
            f"{n['others after']} of other concepts with them and {n['others before']} without, which all targets share; 95 % "
            f"Wilson intervals.{f' Fewer than the bars are set for: {few}.' if few else ''}")  # fmt: skip


def table(group: Found) -> str:
    """One line for the unedited model, one for each method."""
    plain = next(iter(group.values()))["all"]
    names = {key: f"{key} before" for key in HEAD} | {"anchor": "anchor asked for"}
    base = [_share(plain.get(name), interval=False) for name in names.values()]
    base[1] += " (asked for it)"
    rows = [[f"`{name}`", *(_share(one["all"].get(f"{key} after")) for key in HEAD)] for name, one in group.items()]
    return _table(["", *HEAD.values()], [["no edit", *base], *rows])


def report(name: str, one: Found) -> str:
    """A method's bars, then each target and the sentences of one and of two objects."""
    return f"`{name}`:\n\n{bars(one['bars'])}\n\n{parts(one)}"


def bars(found: Sequence[Found]) -> str:
    """What was asked for, what was found, and whether it is met."""
    return _table(["", "measured", "bar", ""], [_bar(bar) for bar in found])


def _bar(bar: Found) -> list[str]:
    value, low, high = (100 * bar[key] for key in ("value", "low", "high"))
    if bar["paired"]:
        measured = f"{value:+.2f} points ({low:+.2f} to {high:+.2f})"
    else:
        measured = f"{value:.2f} % ({low:.2f} to {high:.2f})"
    least = f"at least {100 * (bar['bound'] or 0):+g} points" if bar["paired"] else f"at most {100 * bar['bound']:g} %"
    wanted = "interval reaches 0" if bar["bound"] is None else least
    return [bar["what"], f"{measured}, n = {bar['n']}", wanted, "met" if bar["met"] else "missed"]


def parts(one: Found) -> str:
    """Each target's pictures, and all sentences by how many objects they name, with the bars that they miss alone."""
    keys = ("target after", "anchor after", "anchor asked for", "others after")
    named = {f"{target} to {PAIRS[target]}": (target, shares) for target, shares in one["targets"].items()}
    named |= {f"sentences of {kind}": (kind, shares) for kind, shares in one["sentences"].items() if shares}
    rows = [[title, *(_share(shares.get(key), interval=False) for key in keys), ", ".join(one["missed"][key])]
            for title, (key, shares) in named.items()]  # fmt: skip
    return _table(["", "target shown", "anchor in its place", "anchor asked for", "others right", "misses"], rows)


def _share(measure: Found | None, *, interval: bool = True) -> str:
    if not measure or not measure["images"]:
        return "–"
    low, high = (100 * end for end in measure["interval95"])
    return f"{100 * measure['share']:.1f} %" + (f" ({low:.1f} to {high:.1f})" if interval else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def check(pages: Sequence[Path]) -> None:
    """Raises `UsageError` for a page that has no place for any of the texts."""
    for page in pages:
        _places(page)


def _places(page: Path) -> list[str]:
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{page} cannot be read: {error.strerror}") from error
    if found := [name for name in (WHOLE, SHORT) if f"<!-- begin {name} -->" in text]:
        return found
    raise UsageError(f"{page} has no place for the numbers: put in the lines <!-- begin {WHOLE} --> and "
                     f"<!-- end {WHOLE} --> (or {SHORT}, for the table alone)")  # fmt: skip


def write(found: Found, pages: Sequence[Path]) -> None:
    """Puts into each page the texts that it has markers for."""
    texts = blocks(found)
    for page in pages:
        rewrite(page, {name: texts[name] for name in _places(page)})


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, nargs="+", default=list(PAGES), metavar="PAGE")
    args = parser.parse_args(words)
    write(json.loads(args.results.read_text()), args.docs)


if __name__ == "__main__":
    try:
        main()
    except EraseKitError as error:
        raise SystemExit(f"error: {error}") from error
