"""From a suite to its prompts: a pure function of the suite and the targets, without a random generator.

Where something is to be chosen (the next template, style, object), the order is that of sha256 over the suite, the
group, the target and the candidate. It is the same on every machine and Python. What belongs to no target does not
depend on the target, so the unedited model's images of it serve every edit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from erasekit.errors import UsageError
from erasekit.evaluation.suites.drawn import Drawn, prompt_of
from erasekit.evaluation.suites.groups import GROUPS
from erasekit.evaluation.suites.names import key
from erasekit.evaluation.suites.parts import Block, Prompt, Target, Text
from erasekit.evaluation.suites.slots import DATA, nth, used_slots
from erasekit.evaluation.suites.suite import Suite

PATIENCE = 400  # candidates refused in a row: then nothing new is to be had


def expand(suite: Suite, targets: tuple[Target, ...]) -> tuple[Prompt, ...]:
    """The suite's prompts for these targets, with unique ids; raises `UsageError` where a slot has no data."""
    known = {name for target in targets for name in target.own}
    drawn: list[Drawn] = []
    found: dict[str, Prompt] = {}
    for block in suite.blocks:
        for part in _parts(block, targets):
            source = _again(suite, block, part, drawn) if block.of else _stream(suite, block, part)
            taken = 0
            barren = 0
            for item in source:
                prompt = prompt_of(suite, item) if _allowed(item, block, targets, known) else None
                fresh = prompt is not None and prompt.id not in found
                barren = 0 if fresh else barren + 1
                if prompt is not None and fresh:
                    found[prompt.id] = prompt
                    drawn.append(item)
                    taken += 1
                if taken == block.count or barren > PATIENCE:
                    break
    return tuple(found.values()) + tuple(row for row in suite.rows if _concerns(row, targets, known))


def _concerns(row: Prompt, targets: tuple[Target, ...], known: set[str]) -> bool:
    """Whether a prompt file's row is for these targets: one of theirs, or one that is to be kept and shows none of them."""
    if row.target:
        return key(row.target) in {key(target.name) for target in targets}
    return known.isdisjoint(map(key, row.wanted)) and key(row.style or "") not in known


def _parts(block: Block, targets: tuple[Target, ...]) -> list[tuple[Target, ...]]:
    """The sets of targets that the block counts its prompts for."""
    return [(target,) for target in targets] if block.each == "target" else [targets]


def _stream(suite: Suite, block: Block, part: tuple[Target, ...]) -> Iterator[Drawn]:
    """Candidates without end; none where the block is optional and a word is missing."""
    subjects = _subjects(suite, block, part)
    if not subjects:
        return
    shared = GROUPS[block.group].subject == "other"
    seed = "|".join((suite.name, block.group, part[0].name if len(part) == 1 and not shared else ""))
    texts = {text.text: text for text in block.texts}
    index = -1
    while True:
        index += 1
        text = texts[nth(tuple(texts), f"{seed}|text", index)]
        word = nth(tuple(subjects), f"{seed}|word", index)
        values = _values(suite, block, text, subjects[word], word, seed, index)
        if values is None:
            return
        yield Drawn(block, subjects[word], text, values, _seeds(suite, block, index))


def _subjects(suite: Suite, block: Block, part: tuple[Target, ...]) -> dict[str, Target | None]:
    """The words that the group is about, each with the target it belongs to."""
    slot = GROUPS[block.group].subject
    if slot == "other":
        return dict.fromkeys(suite.others)
    found: dict[str, Target | None] = {}
    for target in part:
        for word in target.words(slot):
            found.setdefault(word, target)
    if not found and _needs_subject(block) and not (block.optional or slot == "anchor"):
        raise _lacking(suite, block, slot, part)
    # Texts that do not use the group's word need no word (a caption with the twin left out).
    return found or ({} if _needs_subject(block) else {part[0].name: part[0]})


def _needs_subject(block: Block) -> bool:
    return any(_needs(set(used_slots(text)), GROUPS[block.group].subject) for text in block.texts)


def _needs(used: set[str], subject: str) -> bool:
    return bool(used & {"word", subject} - {"other"})


def _values(suite: Suite, block: Block, text: Text, owner: Target | None, word: str, seed: str,
            index: int) -> tuple[tuple[str, str], ...] | None:  # fmt: skip
    """What goes into each slot of the template (and of its twin)."""
    subject = GROUPS[block.group].subject
    values = {"word": word} if subject == "other" else {"word": word, subject: word}
    for slot in dict.fromkeys((*used_slots(text), "style", "background")):
        if slot in values:
            continue
        candidates = _candidates(suite, slot, owner)
        if candidates:
            values[slot] = nth(candidates, f"{seed}|{slot}", index)
        elif slot in used_slots(text):
            if block.optional:
                return None
            raise _lacking(suite, block, slot, (owner,) if owner else ())
    return tuple(values.items())


def _candidates(suite: Suite, slot: str, owner: Target | None) -> tuple[str, ...]:
    whole = {"other": suite.others, "style": suite.styles, "background": suite.backgrounds}
    return whole[slot] if slot in whole else owner.words(slot) if owner else ()


def _again(suite: Suite, block: Block, part: tuple[Target, ...], drawn: list[Drawn]) -> Iterator[Drawn]:
    """The prompts of the group `of` once more: without the concept (twin), or with this group's word in its place."""
    names = {target.name for target in part}
    source = [item for item in drawn if item.block.group == block.of and item.owner and item.owner.name in names]
    for index, item in enumerate(source):
        if block.group == "twin":
            if item.text.twin:
                yield replace(item, block=block, text=Text(item.text.twin))
            continue
        owner = item.owner
        words = owner.words(GROUPS[block.group].subject) if owner else ()
        if words:
            word = nth(words, f"{suite.name}|{block.group}|{owner.name if owner else ''}|word", index)
            values = {**dict(item.values), "word": word, GROUPS[block.group].subject: word}
            yield replace(item, block=block, text=Text(item.text.text), values=tuple(values.items()))


def _allowed(item: Drawn, block: Block, targets: tuple[Target, ...], known: set[str]) -> bool:
    """Whether no word of a prompt that is to be kept means a target, and none is what the block leaves out."""
    values = dict(item.values)
    group = GROUPS[block.group]
    used = set(used_slots(item.text))
    banned = known | {key(word) for target in targets for slot in block.without for word in target.words(slot)}
    if "other" in used and (key(values["other"]) in banned or ("word" in used and values["other"] == values["word"])):
        return False
    if group.asks or (block.of and block.group == "twin"):
        return True
    if group.subject == "anchor":
        return key(values["word"]) not in known
    return not _needs(used, group.subject) or key(values["word"]) not in banned


def _seeds(suite: Suite, block: Block, index: int) -> tuple[int, ...]:
    pool = suite.seeds
    return tuple(pool[(index * block.seeds + j) % len(pool)] for j in range(block.seeds))


def _lacking(suite: Suite, block: Block, slot: str, targets: tuple[Target, ...]) -> UsageError:
    who = f"{targets[0].name!r} has none" if len(targets) == 1 else "no target has any" if targets else "there are none"
    return UsageError(f"the suite {suite.source}: the group {block.group} uses {{{slot}}}, and {who}: "
                      f"give `{DATA.get(slot, slot)}`, or mark the group `optional: true`")  # fmt: skip
