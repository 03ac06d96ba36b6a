"""Prompt files of the user: read by the suite's schema, hashed, and refused in one line that says what to change."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

from erasekit.errors import UsageError
from erasekit.evaluation.suites import load_suite

I2P = "case_number,prompt,sd_seed,sd_guidance_scale,categories\n"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_rows_become_prompts(tmp_path: Path) -> None:
    path = written(tmp_path, I2P + '7,"a  portrait, in oil",4068796631,7,sexual\n9,"a ""night""",5.0,12.5,hate\n')
    first, second = load_suite("i2p", prompts=path).prompts(["naked"])
    assert (first.id, first.text, first.seeds, first.guidance) == (
        "implicit/7",
        "a portrait, in oil",
        (4068796631,),
        7.0,
    )
    assert (second.text, second.seeds, second.guidance) == ('a "night"', (5,), 12.5)
    assert {p.group for p in (first, second)} == {"implicit"} and first.target == "nudity"


def test_other_names_of_a_column_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbfPrompt,Evaluation_Seed\r\na caf\xc3\xa9,3\r\n")
    (prompt,) = load_suite("i2p", prompts=path).prompts()
    assert (prompt.text, prompt.seeds, prompt.id, prompt.guidance) == ("a café", (3,), "implicit/row-00001", None)


def test_the_files_bytes_are_in_the_digest(tmp_path: Path) -> None:
    one = load_suite("coco", prompts=written(tmp_path, "caption\na dog\n"))
    again = load_suite("coco", prompts=written(tmp_path, "caption\na dog\n"))
    other = load_suite("coco", prompts=written(tmp_path, "caption\na dog \n"))
    assert one.digest == again.digest != other.digest
    assert [p.text for p in one.prompts(["anything"])] == ["a dog"]


def test_a_file_replaces_the_groups_that_it_has(tmp_path: Path) -> None:
    path = written(tmp_path, "text,group,target\na man asleep,plain,man\na gentleman asleep,synonym,gentleman\n")
    suite = load_suite("erasepro/instance", prompts=path)
    found = suite.prompts(["man"])
    assert [p.text for p in found if p.group == "plain"] == ["a man asleep"]
    assert [(p.target, p.wanted) for p in found if p.group == "synonym"] == [("man", ("man",))]
    assert "unrelated" in {p.group for p in found}
    assert len({p.id for p in found}) == len(found)
    assert not [p for p in found if p.group == "anchor"], "it was made from the group that the file replaces"


def test_rows_of_other_targets_are_left_out(tmp_path: Path) -> None:
    text = "prompt,seed,group,name\na portrait of A,1,plain,A\na portrait of B,1,plain,B\na portrait of C,2,,\n"
    found = load_suite("mace/celebrities", prompts=written(tmp_path, text)).prompts(["a"])
    assert [p.text for p in found] == ["a portrait of A", "a portrait of C"]


def test_what_is_to_be_kept_is_named_in_the_column_of_targets(tmp_path: Path) -> None:
    """MACE's file names the celebrity of every row, erased or kept, in one column."""
    text = "prompt,seed,group,name,wanted\na portrait of A,1,plain,A,\na portrait of B,2,unrelated,B,\n"
    text += "a sketch of C,3,,C,\nD and E,4,,D,D|E\na sketch of a,5,,a,\na crowd,6,,,\n"
    suite = load_suite("mace/celebrities", prompts=written(tmp_path, text))
    found = suite.prompts(["A"])
    assert [(p.group, p.target, p.wanted) for p in found] == [
        ("plain", "A", ("A",)), ("unrelated", "", ("B",)), ("unrelated", "", ("C",)), ("unrelated", "", ("D", "E")),
        ("unrelated", "", ()),
    ]  # fmt: skip
    assert "a sketch of a" not in {p.text for p in found}, "what is to be kept never names the target"
    assert [p.text for p in suite.prompts(["E"])] == ["a portrait of B", "a sketch of C", "a sketch of a", "a crowd"]


def test_a_style_that_is_to_be_kept_need_not_be_one_of_the_suites(tmp_path: Path) -> None:
    text = "text,group,artist\na lake by Hokusai,unrelated,Hokusai\n"
    (row,) = load_suite("erasepro/style", prompts=written(tmp_path, text)).rows
    assert (row.target, row.style, row.wanted) == ("", "Hokusai", ())


def test_long_prompts_are_only_noted(tmp_path: Path) -> None:
    suite = load_suite("coco", prompts=written(tmp_path, "caption\n" + "dog " * 76 + "\n" + "dog " * 75 + "\n"))
    assert suite.notes == ("1 of 2 prompts are longer than the 77 tokens that CLIP reads: the rest is cut",)
    assert len(suite.prompts(["x"])) == 2


@pytest.mark.parametrize(("name", "text", "line"), [
    ("i2p", "", "is empty: its first line names the columns, prompt, sd_seed or evaluation_seed"),
    ("i2p", "\n\n", "is empty"),
    ("i2p", I2P, "holds no prompts"),
    ("i2p", "prompt,colour\na,b\n", r"lacks the column sd_seed or evaluation_seed \(it has prompt, colour\)"),
    ("i2p", I2P + "1,a,5,7,x\n1,b,6,7,x\n", "row 2: the id 'implicit/1' is that of row 1 too"),
    ("i2p", I2P + "1,a,often,7,x\n", "row 1: sd_seed is 'often': write a whole number"),
    ("i2p", I2P + "1,a,5,nan,x\n", "row 1: sd_guidance_scale is 'nan': write a number"),
    ("i2p", I2P + "1, ,5,7,x\n", "row 1: prompt is empty"),
    ("i2p", I2P + '1,"a,5,7,x\n', "is no CSV file"),
    ("i2p", b"prompt,sd_seed\n\xff\xfe,1\n", "is not UTF-8"),
    ("erasepro/instance", "text,group\na man,odd\n", "unknown group 'odd'"),
    ("erasepro/instance", "text,group\na man,plain\n", "the row names none"),
    ("erasepro/instance", "text,group,target\na cow,plain,cow\n", "cannot measure 'cow'"),
])  # fmt: skip
def test_a_wrong_file_is_one_line(tmp_path: Path, name: str, text: str | bytes, line: str) -> None:
    with pytest.raises(UsageError, match=line) as raised:
        load_suite(name, prompts=written(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_file_where_none_belongs_and_none_where_one_does(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"emoji/object takes no prompt file"):
        load_suite("emoji/object", prompts=written(tmp_path, "text\na\n"))
    with pytest.raises(UsageError, match=r"i2p needs a prompt file: I2P's CSV file \(--prompts FILE\)"):
        load_suite("i2p")
    with pytest.raises(UsageError, match=r"cannot read the prompt file .*none.csv \(No such file"):
        load_suite("i2p", prompts=tmp_path / "none.csv")


def test_all_of_a_benchmark(tmp_path: Path) -> None:
    """4703 rows with commas, quotes and line breaks, against the csv module's own reading."""
    path = tmp_path / "i2p.csv"
    texts = [f'{i}, "so"\nit is' for i in range(4703)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "sd_seed"])
        writer.writerows([text, i] for i, text in enumerate(texts))
    suite = load_suite("i2p", prompts=path)
    found = suite.prompts()
    assert [p.text for p in found] == [" ".join(text.split()) for text in texts]
    assert [p.seeds for p in found] == [(i,) for i in range(4703)]
    assert len(suite.digest) == len(hashlib.sha256().hexdigest())
