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
    found["extractors"] = [{"name": "LPIPS-alex-v0.1@64-short", "weights_sha256": "4d" * 32}]
    found["attacks"] = [{"name": name, "arm": "edit:erasepro-cat", "target": "cat", "budget": "9 cases", "value": 0.5,
                         "low": 0.2, "high": 0.8, "n": 9} for name in ("p4d", "relearning")]  # fmt: skip
    found["real"] = {"name": "coco", "sha256": "7a" * 32, "images": 5000}
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
    more["real"]["name"] = "renamed"
    more["extractors"].append({"name": "inception-2015", "weights_sha256": "5e" * 32})
    more["attacks"] = [more["attacks"][0] | {"budget": "99 cases"}, *more["attacks"][1:], more["attacks"][0] | {"name": "x"}]
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
    (changed("extractors", []), r"distances by LPIPS-alex-v0.1@64-short \(give its weights again to keep them\)"),
    (changed("extractors/0/weights_sha256", "6f" * 32), r"distances by LPIPS-alex"),
    (changed("real/sha256", "8b" * 32), r"distances to the real images coco, 7a7a7a7a7a7a \(give --real with the same images"),
    ({key: value for key, value in old().items() if key != "real"}, r"distances to the real images coco"),
    ({key: value for key, value in old().items() if key != "attacks"}, r"the attacks p4d, relearning \(name their folders"),
    (changed("attacks", old()["attacks"][:1]), r"the attacks relearning \(.* with --attacks again"),
])  # fmt: skip
def test_what_would_be_lost_is_named(tmp_path: Path, new: dict[str, Any], words: str) -> None:
    before = written(tmp_path, old()) / "results.json"
    content = before.read_bytes()
    with pytest.raises(
        EraseKitError, match=words + ".*which this run would replace: give another --out, or delete that"
    ) as e:
        earlier.check(tmp_path, new)
    assert "\n" not in str(e.value) and before.read_bytes() == content


def test_an_edit_that_is_still_to_be_fitted_is_known_by_its_files_name(tmp_path: Path) -> None:
    written(tmp_path, old())
    waits = changed("arms/1/edit/sha256", "")
    waits["arms"][3]["edit"]["sha256"] = ""
    earlier.check(tmp_path, waits)
    for arm, label in ((1, "ErasePro"), (3, "random control")):
        other = copy.deepcopy(waits)
        other["arms"][arm]["edit"]["file"] = "erasepro-cat-01234567.safetensors"
        with pytest.raises(EraseKitError, match=f"results of {label}, made from other files"):
            earlier.check(tmp_path, other)


@pytest.mark.parametrize("other", [{"ladder": {}, "rungs": []}, [1, 2], "null", {"model": 3}])
def test_what_another_command_wrote_is_kept(tmp_path: Path, other: Any) -> None:
    written(tmp_path, other)
    with pytest.raises(EraseKitError, match="what no `erasekit evaluate` wrote"):
        earlier.check(tmp_path, old())
