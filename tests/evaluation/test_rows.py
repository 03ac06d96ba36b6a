"""Rows come back exactly, and a damaged line is named."""

from __future__ import annotations

import json

import pytest

from erasekit.errors import EraseKitError
from erasekit.evaluation import rows
from erasekit.evaluation.rows import Row

ROW = Row("edit:é", "plain/1", "plain", "a cat\n", "cat", ["cat", "dog"], "noto", None, 7, "images/x.png", "ab",
          "ok", {"judge@0.5": {"status": "ok", "scores": {"cat": 0.1 + 0.2}, "found": []}})  # fmt: skip


def test_comes_back_exactly_and_as_the_same_bytes() -> None:
    data = rows.encode([ROW, ROW])
    assert rows.decode(data) == [ROW, ROW]
    assert rows.encode(rows.decode(data)) == data
    assert data.count(b"\n") == 2, "a row is one line, whatever its text"
    assert rows.decode(data)[0].judgements["judge@0.5"]["scores"]["cat"] == 0.30000000000000004


def test_the_order_of_keys_does_not_matter() -> None:
    line = json.loads(rows.encode([ROW]))
    shuffled = json.dumps(dict(reversed(list(line.items())))).encode()
    assert rows.encode(rows.decode(shuffled)) == rows.encode([ROW])


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data.replace(b'"seed"', b'"sead"'),
                                    lambda data: b"[]\n" + data])  # fmt: skip
def test_a_damaged_line_is_named(damage, tmp_path) -> None:
    good = rows.encode([ROW])
    with pytest.raises(EraseKitError, match=r"line [12] of .*rows.jsonl is no row.*same evaluate command"):
        rows.decode(good + damage(good) if damage(good)[:1] != b"[" else damage(good))


def test_a_missing_file_is_one_line(tmp_path) -> None:
    with pytest.raises(EraseKitError, match=r"cannot read .*No such file") as error:
        rows.read(tmp_path / "rows.jsonl")
    assert "\n" not in str(error.value)


def test_the_worst_status_counts() -> None:
    assert rows.worst(["ok", "invalid", "failed"]) == "invalid"
    assert rows.worst(["ok", "failed"]) == "failed"
    assert rows.worst([]) == "ok"


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        rows.canonical({"p": float("nan")})
