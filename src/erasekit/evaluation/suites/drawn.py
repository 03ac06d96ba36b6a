"""A template with all that goes into it, and the prompt that it makes: its text, the labels it shows, its style."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from erasekit.evaluation.suites.groups import GROUPS
from erasekit.evaluation.suites.parts import Block, Prompt, Target, Text
from erasekit.evaluation.suites.slots import WORDS, fill, slots
from erasekit.evaluation.suites.suite import Suite


@dataclass(frozen=True)
class Drawn:
    """A template with all that goes into it: the raw form of a prompt. `owner` is the target whose words it takes."""

    block: Block
    owner: Target | None
    text: Text
    values: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]


def prompt_of(suite: Suite, item: Drawn) -> Prompt:
    """The prompt; its id is made of group, target and text."""
    group, values, owner = GROUPS[item.block.group], dict(item.values), item.owner
    text = fill(item.text.text, values)
    target = owner.name if owner and (group.asks or item.block.each == "target") else ""
    labels, style = _labels(suite, item)
    code = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Prompt(
        id="/".join(part for part in (group.name, target.replace(" ", "-"), code) if part), group=group.name, text=text,
        target=target, wanted=labels, style=style, seeds=item.seeds,
        background=values["background"] if "background" in slots(item.text.text) else None,
        twin=fill(item.text.twin, values) if item.text.twin else None,
    )  # fmt: skip


def _labels(suite: Suite, item: Drawn) -> tuple[tuple[str, ...], str | None]:
    """The labels that an image of the prompt shows, in the order of the text, and its style."""
    values, named = dict(item.values), slots(item.text.text)
    style = values["style"] if "style" in named else None
    labels: list[str] = []
    for slot in named if item.block.wanted is None else item.block.wanted:
        if slot in ("style", "background"):
            continue
        label = _label(item, slot, values)
        if suite.kind == "style" and slot in WORDS and not _is_other(item, slot):
            style = label.removesuffix(" style")
        else:
            labels.append(label)
    return tuple(dict.fromkeys(labels)), style


def _label(item: Drawn, slot: str, values: dict[str, str]) -> str:
    subject = GROUPS[item.block.group].subject
    if item.owner and (subject if slot == "word" else slot) in ("target", "synonym", "implicit"):
        return item.owner.label
    return values.get(slot, slot)


def _is_other(item: Drawn, slot: str) -> bool:
    return (GROUPS[item.block.group].subject if slot == "word" else slot) == "other"
