"""The `groups` of a suite's file: which templates, how many prompts, what they are made from; checked on loading."""

from __future__ import annotations

from typing import Any

from erasekit.errors import UsageError
from erasekit.evaluation.suites.groups import GROUPS
from erasekit.evaluation.suites.parts import Block, Target, Text
from erasekit.evaluation.suites.slots import DATA, SLOT, SLOTS, slots
from erasekit.evaluation.suites.suite import Suite

KEYS = ("group", "texts", "count", "seeds", "each", "of", "optional", "without", "wanted")
KINDS = ("anchor", "synonym", "implicit", "neighbour", "superset", "twin")
WITHOUT = {"neighbour": ("anchor",)}  # a neighbour is no reason to leave out neighbours


def read_blocks(value: Any, templates: Any, suite: Suite) -> tuple[Block, ...]:
    """The entries of `groups`; `UsageError` names the group and what to change."""
    if not isinstance(templates, dict):
        raise UsageError(f"the suite {suite.source}: templates must be a list of `name: texts` lines")
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UsageError(f"the suite {suite.source}: groups must be a list of entries such as "
                         "`{group: plain, count: 4, texts: [...]}`")  # fmt: skip
    blocks: list[Block] = []
    for entry in value:
        block = _block(entry, templates, suite)
        if block.of and block.of not in {earlier.group for earlier in blocks}:
            raise _wrong(suite, block.group, f"of: {block.of!r} is no group before it", "put that group first")
        _check_data(block, suite)
        blocks.append(block)
    return tuple(blocks)


def _block(entry: dict[str, Any], templates: dict[str, Any], suite: Suite) -> Block:
    name = str(entry.get("group"))
    if name not in GROUPS:
        raise UsageError(f"the suite {suite.source}: unknown group {name!r}: choose from {', '.join(GROUPS)}")
    unknown = sorted(map(str, set(entry) - set(KEYS)))
    if unknown:
        raise _wrong(suite, name, f"unknown keys {', '.join(unknown)}", f"its keys are {', '.join(KEYS)}")
    of = str(entry.get("of") or "")
    group, texts = GROUPS[name], () if of else _texts(entry.get("texts"), templates, suite, name)
    each = str(entry.get("each", "suite" if group.subject == "other" else "target"))
    if each not in ("target", "suite") or (group.subject == "other" and each == "target"):
        raise _wrong(suite, name, f"each: {each!r} cannot be", "choose target or suite (style and unrelated: suite)")
    seeds = _number(entry, "seeds", suite, name)
    if seeds > len(suite.seeds):
        raise _wrong(suite, name, f"seeds: {seeds}, and the suite lists {len(suite.seeds)}", "list more seeds")
    without = _words(entry.get("without", WITHOUT.get(name, ("anchor", "neighbour"))), "without", suite, name)
    if set(without) - set(KINDS):
        raise _wrong(suite, name, f"without: {', '.join(without)}", f"choose from {', '.join(KINDS)}")
    wanted = None if entry.get("wanted") is None else _words(entry["wanted"], "wanted", suite, name)
    count = _number(entry, "count", suite, name)
    return Block(name, texts, count, seeds, each, of, entry.get("optional") is True, without, wanted)


def _texts(value: Any, templates: dict[str, Any], suite: Suite, group: str) -> tuple[Text, ...]:
    """The templates of a block: a list, or the name of a list under `templates`."""
    if isinstance(value, str):
        if value not in templates:
            known = ", ".join(map(str, templates)) or "none yet"
            raise _wrong(suite, group, f"no templates {value!r}", f"add them under `templates` (there are: {known})")
        value = templates[value]
    if not isinstance(value, list) or not value:
        raise _wrong(suite, group, "no texts", "give a list of templates, or the name of one, or `of`")
    return tuple(_text(item, suite, group) for item in value)


def _text(item: Any, suite: Suite, group: str) -> Text:
    entry = {"text": item} if isinstance(item, str) else item
    if not isinstance(entry, dict) or set(entry) - {"text", "twin"} or not isinstance(entry.get("text"), str):
        raise _wrong(suite, group, f"{item!r} is no template", "write a text, or {text: ..., twin: ...}")
    text = Text(" ".join(entry["text"].split()), " ".join(str(entry.get("twin") or "").split()) or None)
    for template in (text.text, text.twin or ""):
        unknown = [name for name in SLOT.findall(template) if name not in SLOTS]
        if unknown or "{" in SLOT.sub("", template) or "}" in SLOT.sub("", template):
            what = f"unknown slot {{{unknown[0]}}}" if unknown else "a brace without its other half"
            raise _wrong(suite, group, f"{what} in {template!r}", f"the slots are {', '.join(SLOTS)}")
    own = {"word", GROUPS[group].subject} & set(slots(text.twin or ""))
    if own:
        raise _wrong(suite, group, f"the twin {text.twin!r} names {{{min(own)}}}", "leave the concept out of it")
    if suite.kind == "style" and "style" in slots(text.text):
        raise _wrong(suite, group, "{style} in a suite of styles", "use {word}, {target} or {neighbour}")
    return text


def _check_data(block: Block, suite: Suite) -> None:
    """Every slot of a group that is not optional has its data, for every target; anchors may come with the edit."""
    used = dict.fromkeys(slot for text in block.texts for slot in (*slots(text.text), *slots(text.twin or "")))
    subject = GROUPS[block.group].subject
    for slot in dict.fromkeys(subject if slot == "word" else slot for slot in used):
        lacking = _lacking(slot, block, suite)
        if lacking:
            field = DATA.get(slot, slot)
            raise _wrong(suite, block.group, f"it uses {{{slot}}}, and {lacking}",
                         f"give `{field}`, or mark the group `optional: true`")  # fmt: skip


def _lacking(slot: str, block: Block, suite: Suite) -> str:
    whole = {"other": suite.others, "style": suite.styles, "background": suite.backgrounds}
    if slot in whole:
        return "" if whole[slot] else "the suite has none"
    if GROUPS[block.group].subject == "other":
        return "this group belongs to no target"
    if block.optional or slot == "anchor":
        return ""
    empty = [target.name for target in suite.concepts or (Target("any target", ""),) if not target.words(slot)]
    # Counted for the whole suite, the words of one target are enough.
    enough = block.each == "suite" and len(empty) < len(suite.concepts)
    return f"{empty[0]!r} has none" if empty and not enough else ""


def _number(entry: dict[str, Any], name: str, suite: Suite, group: str) -> int:
    value = entry.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(suite, group, f"{name}: {value!r}", "give a whole number from 1 on")
    return value


def _words(value: Any, name: str, suite: Suite, group: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise _wrong(suite, group, f"{name}: {value!r}", "give a list of words")
    return tuple(items)


def _wrong(suite: Suite, group: str, what: str, remedy: str) -> UsageError:
    return UsageError(f"the suite {suite.source}, group {group}: {what}: {remedy}")
