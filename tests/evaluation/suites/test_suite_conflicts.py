"""The suites of many concepts can be asked for: no two targets want two things of one token of the emoji model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer

import erasekit.worlds.emoji
from erasekit.backbones.base import Tokens
from erasekit.concept import EraseRequest
from erasekit.evaluation.suites import load_suite, suite_names
from erasekit.methods._pairs import Plan, plan
from erasekit.worlds.emoji.concepts import names

MANY = [name for name in suite_names() if name.startswith("emoji/multi")]
READER = Tokenizer.from_file(str(Path(erasekit.worlds.emoji.__file__).parent / "model/tokenizer/tokenizer.json"))
READER.no_padding()
READER.no_truncation()


def tokenize(prompts: list[str]) -> Tokens:
    rows = [line.ids for line in READER.encode_batch(list(prompts))]
    padded = [row + [row[-1]] * (77 - len(row)) for row in rows]
    return Tokens(torch.tensor(padded), tuple(len(row) - 1 for row in rows))


def planned(targets: tuple[str, ...], anchors: tuple[str, ...], retain: tuple[str, ...]) -> Plan:
    """ErasePro's columns, of the tokenizer alone."""
    backbone = SimpleNamespace(tokenize=tokenize, token_text=READER.id_to_token)
    return plan(backbone, EraseRequest.build(targets, anchor=anchors, retain=retain), ("{}",))


@pytest.mark.parametrize("name", MANY)
def test_targets_ask_for_nothing_that_contradicts(name: str) -> None:
    suite = load_suite(name)
    anchors = tuple(str(suite.anchor(target)) for target in suite.targets)
    others = tuple(word for word in names() if word not in suite.targets)
    assert planned(suite.targets, anchors, others).conflicts == ()
    lengths = [tokenize(list(side)).ends for side in (suite.targets, anchors)]
    assert all(mine >= its for mine, its in zip(*lengths, strict=True)), "a longer anchor moves the end token"


def test_a_contradiction_would_be_found() -> None:
    targets, anchors = ("fire engine", "fire"), ("bus", "star")
    (found,) = planned(targets, anchors, ()).conflicts
    assert "share the token 'fire</w>'" in found
