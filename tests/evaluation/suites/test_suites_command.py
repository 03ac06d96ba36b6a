"""`erasekit suites`: the list, one suite in words and as JSON, and suites that wait for their file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from erasekit.cli import suites
from erasekit.errors import UsageError
from erasekit.evaluation.suites import load_suite, suite_names


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    parser = argparse.ArgumentParser()
    suites.add(parser.add_subparsers(dest="command"))
    assert suites.run(parser.parse_args(["suites", *map(str, words)])) == 0
    return capsys.readouterr().out


def test_the_list(capsys) -> None:
    assert [facts["name"] for facts in json.loads(said(capsys, "--json"))] == suite_names()
    lines = said(capsys).splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == suite_names()
    assert "coco: " in lines[0] and lines[0].endswith("(needs --prompts FILE)")


def test_one_as_json(capsys) -> None:
    facts = json.loads(said(capsys, "emoji/object", "--target", "kitten", "--anchor", "fox", "--json"))
    suite = load_suite("emoji/object")
    expected = suite.prompts(["cat"], ["fox"])
    assert facts["digest"] == suite.digest and facts["count"] == len(expected) and facts["shown_for"] == ["cat"]
    assert [p["id"] for p in facts["prompts"]] == [p.id for p in expected]
    assert facts["images"] == sum(group["images"] for group in facts["groups"].values())


def test_one_in_words(capsys) -> None:
    shown = said(capsys, "emoji/multi-10")
    assert "targets: cat, horse" in shown and "(all together)" in shown and load_suite("emoji/multi-10").digest in shown


def test_one_with_real_images(capsys) -> None:
    assert "real images: emoji, unless --real names others" in said(capsys, "emoji/quality")
    assert "real images" not in said(capsys, "emoji/object")


def test_one_that_waits_for_its_file(capsys, tmp_path: Path) -> None:
    assert "needs --prompts: I2P's CSV file" in said(capsys, "i2p")
    path = tmp_path / "i2p.csv"
    path.write_text("prompt,sd_seed\n" + "word " * 90 + ",1\n")
    shown = said(capsys, "i2p", "--prompts", path)
    assert "1 of 1 prompts are longer" in shown and "digest: " in shown
    with pytest.raises(UsageError, match="name it"):
        said(capsys, "--target", "cat")
