"""A folder's results are not replaced by a run that would not give them again, and more of the same run is welcome."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import results

from erasekit.errors import EraseKitError
from erasekit.evaluation import earlier


def changed(path: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(old())
    *way, last = path.split("/")
    place: Any = found
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return found


def old() -> dict[str, Any]:
    found = results(labels={"cat": ["cat"]})
    found["arms"][3] |= {"edit": found["arms"][1]["edit"] | {"parameters": {"seed": 0}}}
    return found


def written(folder: Path, content: Any) -> Path:
    (folder / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_the_same_run_with_more_in_it_may_go_on(tmp_path: Path) -> None:
    earlier.check(tmp_path, old())
    written(tmp_path, old())
    earlier.check(tmp_path, old())
    more = old()
    more["arms"].append(more["arms"][1] | {"arm": "edit:other"})
    more["labels"]["dog"] = ["dog"]
    earlier.check(tmp_path, more)
    written(tmp_path, json.dumps(old())[:-20])
    earlier.check(tmp_path, more)  # what was cut is no result


@pytest.mark.parametrize(("new", "words"), [
    (changed("model/sha256", "0" * 64), r"another model \(emoji, 3c3c3c"),
    (changed("suite/digest", "0" * 64), r"another suite \("),
    (changed("suite/judges/1/weights_sha256", "0" * 64), r"verdicts of another judge \(clip\[emoji\]\)"),
    (changed("arms/1/edit/sha256", "0" * 64), r"results of ErasePro, made from other files"),
    (changed("arms", old()["arms"][:2]), r"results of UCE, random control, never knew cat, made from"),
    (changed("arms/3/edit/parameters", {"seed": 9}), r"results of random control, made"),
    (changed("labels", {"dog": ["dog"]}), r"results of prompts for cat"),
])  # fmt: skip
def test_what_would_be_lost_is_named(tmp_path: Path, new: dict[str, Any], words: str) -> None:
    before = written(tmp_path, old()) / "results.json"
    content = before.read_bytes()
    with pytest.raises(
        EraseKitError, match=words + ".*which this run would replace: give another --out, or delete that"
    ) as e:
        earlier.check(tmp_path, new)
    assert "\n" not in str(e.value) and before.read_bytes() == content


@pytest.mark.parametrize("other", [{"ladder": {}, "rungs": []}, [1, 2], "null", {"model": 3}])
def test_what_another_command_wrote_is_kept(tmp_path: Path, other: Any) -> None:
    written(tmp_path, other)
    with pytest.raises(EraseKitError, match="what no `erasekit evaluate` wrote"):
        earlier.check(tmp_path, old())
