"""Rows come back exactly, and a damaged line is named."""

from __future__ import annotations

import json
from dataclasses import replace

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


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0c", "\x1e"])
def test_what_python_takes_for_a_lines_end_stays_in_a_row(end: str) -> None:
    odd = replace(ROW, text=f"a cat{end}and more")
    assert rows.decode(rows.encode([odd, ROW])) == [odd, ROW]
    assert rows.decode(b"") == []


def test_rows_that_were_cut_at_a_lines_end_are_not_those_that_results_count() -> None:
    counts = {"edit:é": {"ok": 2, "failed": 0, "invalid": 0}, "base": {"ok": 0, "failed": 0, "invalid": 0}}
    rows.check_counts([ROW, ROW], counts)
    for wrong in ([ROW], [ROW, replace(ROW, status="invalid")], [ROW, replace(ROW, arm="base")]):
        with pytest.raises(EraseKitError, match=r"rows.jsonl holds [12] images, not the 2 .*same evaluate command"):
            rows.check_counts(wrong, counts)


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
