"""Two results side by side: published intervals, Holm's rule, refusals, and the command."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import ARMS, RATES, arm, metrics, results, rows

from erasekit.cli import report as cli
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import page_compare
from erasekit.evaluation import results as stored
from erasekit.evaluation.compare import compare, holm, spread
from erasekit.evaluation.rows import WORST
from erasekit.evaluation.statistics import wilson

EDIT = "edit:erasepro-cat"


def share(hits: int, n: int) -> dict[str, float]:
    low, high = wilson(hits, n)
    return {"value": hits / n, "low": low, "high": high}


def worse(shown: int = 40) -> dict:
    return results(metrics=metrics({**RATES, EDIT: shown}))


@pytest.mark.parametrize(("first", "second", "expected"), [
    ((48, 80), (56, 70), (0.0524, 0.3339)),  # Newcombe 1998, table II, examples (a), (b), (c), (g): method 10
    ((3, 10), (9, 10), (0.1705, 0.8090)),
    ((2, 7), (6, 7), (0.0582, 0.8062)),
    ((0, 10), (10, 10), (0.6075, 1.0)),
])  # fmt: skip
def test_spread_is_newcombes(first: tuple[int, int], second: tuple[int, int], expected: tuple[float, float]) -> None:
    assert spread(share(*first), share(*second)) == pytest.approx(expected, abs=6e-5)


def test_spread_needs_both_intervals() -> None:
    assert spread({"value": 1.0, "low": None, "high": None}, share(1, 2)) is None
    assert spread({"value": None, "low": 0.0, "high": 1.0}, share(1, 2)) is None


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_its_definition(values: list[float]) -> None:
    """Adjusted p by the textbook: running maximum of (m - rank) p over the ordered values."""
    order, adjusted, running = sorted(range(len(values)), key=lambda i: values[i]), {}, 0.0
    for rank, i in enumerate(order):
        running = max(running, (len(values) - rank) * values[i])
        adjusted[i] = running
    got = holm(values)
    assert all(got[i] == (adjusted[i] <= 0.05) or abs(adjusted[i] - 0.05) < 1e-9 for i in range(len(values)))


@given(st.integers(0, 60), st.integers(0, 60))
def test_p_and_interval_agree(first: int, second: int) -> None:
    def one(hits: int) -> dict:
        return results(metrics=[{**metrics()[0], **share(hits, 60), "arm": EDIT}])

    (found,) = compare(one(first), one(second)).differences
    assert found.p is not None and found.low is not None and found.high is not None
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0) or abs(found.p - 0.05) < 1e-9
    assert found.significant == (found.p <= 0.05), "a family of one needs no correction"
    (back,) = compare(one(second), one(first)).differences
    assert found.value is not None
    assert (back.value, back.low, back.high, back.p) == pytest.approx((-found.value, -found.high, -found.low, found.p))


@pytest.mark.parametrize("second", [0.0, 1.0])
def test_estimates_without_a_width_have_no_p(second: float) -> None:
    """0 of 2 against 2 of 2 with intervals of no width is no certainty."""
    def one(value: float) -> dict:
        return results(metrics=[{**metrics()[0], "value": value, "low": value, "high": value, "n": 2, "arm": EDIT}])

    (found,) = compare(one(0.0), one(second)).differences
    assert found.value == second and not found.significant
    assert (found.low, found.high, found.p) == (None, None, None)


def test_marks_follow_the_metrics_direction() -> None:
    found = compare(worse(), results())
    marked = {(d.metric, d.group): d for d in found.differences if d.significant}
    assert marked["efficacy", None].verdict == marked["target_rate", None].verdict == "better"
    up, down = (marked[name, None].value or 0.0 for name in ("efficacy", "target_rate"))
    assert up > 0 > down
    assert {d.arms for d in marked.values()} == {(EDIT, EDIT)}
    assert {d.verdict for d in compare(results(), worse()).differences if d.significant} == {"worse"}
    assert not any(d.significant for d in compare(results(), results()).differences)
    kinds = [d.arms[0].partition(":")[0] for d in found.differences]
    assert kinds == sorted(kinds, key=["edit", "random", "never", "base"].index)


def test_arms_match_by_name_then_in_order() -> None:
    other = results()
    other["arms"] = [arm("base"), {**arm(EDIT), "arm": "edit:new"}]
    other["metrics"] = [{**m, "arm": "edit:new"} for m in metrics() if m["arm"] == EDIT]
    first = results(arms=[arm("base"), arm(EDIT), arm("never:cat")])
    found = compare(first, other, names=("old", "new"))
    assert {d.arms for d in found.differences} == {(EDIT, "edit:new")} and len(found.differences) == 11
    assert found.notes == ["Only old has never:cat."]


def test_what_the_runs_do_not_share_is_said() -> None:
    other = results(model={"id": "emoji", "sha256": "00" * 32}, metrics=metrics({**RATES, "base": 50}))
    notes = " ".join(compare(results(), other).notes)
    assert "different base models" in notes and "did not judge the same images" in notes


@pytest.mark.parametrize(("part", "one", "two"), [("names", 21, 22), ("terms", ["a", "b"], ["a"]), ("threshold", 0.6, 0.5)])
def test_a_metric_of_other_names_or_terms_is_left_out_and_said(part: str, one: object, two: object) -> None:
    def run(value: object) -> dict:
        return results(metrics=[m | {part: value} if m["metric"] == "efficacy" else m for m in metrics()])

    found = compare(run(one), run(two))
    assert {d.metric for d in found.differences} == {d.metric for d in compare(run(one), run(one)).differences} - {"efficacy"}
    assert found.notes == ["Not compared, being of other names, terms, thresholds or real images in each: efficacy."]
    assert compare(run(one), run(one)).notes == []


def test_other_suites_and_judges_are_refused_in_one_line() -> None:
    other = results()
    other["suite"] = {**other["suite"], "digest": "00" * 32}
    with pytest.raises(UsageError, match="same suite") as caught:
        compare(results(), other, names=("one", "two"))
    assert "\n" not in str(caught.value) and "one used" in str(caught.value)
    other = results()
    other["suite"]["judges"][0]["weights_sha256"] = "00" * 32
    with pytest.raises(UsageError, match=r"judges differ \(emoji-judge"):
        compare(results(), other)


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add(parser.add_subparsers(dest="command"))
    return parser.parse_args(words)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    drawn = rows(tmp_path / "two", seeds=1)
    seen = Counter((row["arm"], row["status"]) for row in drawn)
    two = results(counts={name: {status: seen[name, status] for status in WORST} for name in ARMS})
    for name, document in (("one", worse()), ("two", two)):
        stored.write(document, tmp_path / name)
    (tmp_path / "two" / "rows.jsonl").write_text("\n".join(map(json.dumps, drawn)) + "\n")
    pair = str(tmp_path / "one"), str(tmp_path / "two" / "results.json")

    cli.run(parse("compare", *pair, "--out", str(tmp_path / "page.html")))
    said = capsys.readouterr().out
    assert "two - one" in said and "▲ better" in said and "points [" in said
    page = (tmp_path / "page.html").read_text()
    assert page == page_compare.html(compare(worse(), two, names=("one", "two")), worse(), two)
    cli.run(parse("compare", *pair, "--json"))
    assert json.loads(capsys.readouterr().out)["names"] == ["one", "two"]

    cli.run(parse("report", str(tmp_path / "two")))
    first = (tmp_path / "two" / "report.html").read_bytes()
    cli.run(parse("report", str(tmp_path / "two" / "results.json")))
    assert (tmp_path / "two" / "report.html").read_bytes() == first
    with pytest.raises(EraseKitError, match=r"rows\.jsonl"):
        cli.run(parse("report", str(tmp_path / "one")))


def test_numbers_of_other_weights_under_one_name_are_refused() -> None:
    one, two = ({"extractors": [{"name": "LPIPS-alex-v0.1@64-short", "weights_sha256": sha * 32}]} for sha in ("4d", "5e"))
    assert compare(results(**one), results(**one)) and compare(results(**one), results())
    with pytest.raises(UsageError, match=r"the weights of LPIPS-alex-v0.1@64-short differ"):
        compare(results(**one), results(**two))


def test_distances_to_other_real_images_are_not_compared() -> None:
    kid = {**metrics()[0], "metric": "kid_real(x)", "judge": "x", "unit": "squared distance", "low": None, "high": None}
    one, two = (results(metrics=[*metrics(), {**kid, "real": sha * 32}]) for sha in ("4d", "5e"))
    assert any(d.metric == "kid_real(x)" for d in compare(one, one).differences)
    other = compare(one, two)
    assert not any(d.metric == "kid_real(x)" for d in other.differences)
    assert any("real images in each: kid_real(x)." in note for note in other.notes)
