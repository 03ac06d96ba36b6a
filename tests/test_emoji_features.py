"""The table of features: what it was measured on stands beside it, and README has what is committed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import emoji_features  # noqa: E402

import erasekit  # noqa: E402


def features_found(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def test_the_table_of_features_is_written_with_what_it_was_measured_on(tmp_path: Path, capsys, monkeypatch) -> None:
    names = ("none", *emoji_features.VARIANTS)
    table = dict.fromkeys(names, emoji_features._mean([(0.5, 0.25, 2048)] * 2, 2))
    table["uce"] = emoji_features._mean([], 2)
    monkeypatch.setattr(erasekit, "load", lambda model: None)
    monkeypatch.setattr(emoji_features, "measure", lambda pipe, pairs: table)
    monkeypatch.setattr(emoji_features, "model_sha256", lambda folder: "m")
    out, page = tmp_path / "new" / "features.json", tmp_path / "page.md"
    page.write_text("a\n<!-- begin features -->\n<!-- end features -->\nb\n")
    emoji_features.main(["--out", str(out), "--docs", str(page)])
    found, said = features_found(out), page.read_text()
    assert found["model_sha256"] == "m" and "torch" in found["versions"] and "NaN" not in out.read_text()
    assert [list(one) for one in found["pairs"]["unlike counts"]] == [list(pair) for pair in emoji_features.UNLIKE]
    assert "| no edit | 0.500 | 0 |  |" in said and "| ErasePro | 0.500 | 0.250 | 2 |" in said
    assert "| UCE | – | – | – |" in said and "gap of 0.500, with a drift of 0.250" in said
    assert capsys.readouterr().out.count("erasepro, ridge 1e-3") == 2


def test_the_readme_has_the_committed_table_of_features() -> None:
    if not (found := features_found(emoji_features.OUT)):
        pytest.skip("no features are committed")
    assert emoji_features.report(found) in emoji_features.PAGE.read_text(), "run benchmarks/emoji_features.py --docs"
