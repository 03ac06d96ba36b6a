"""The command of all suites: which edits it makes, how many images, one table; a second run draws nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import fakes
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import all_suites  # noqa: E402
import all_suites_table  # noqa: E402

from erasekit.errors import InfeasibleError, UsageError  # noqa: E402
from erasekit.evaluation import arms, drawing, judges, suites  # noqa: E402
from erasekit.evaluation.plan import read  # noqa: E402
from erasekit.evaluation.statistics import wilson  # noqa: E402
from erasekit.worlds.emoji.concepts import names  # noqa: E402


def part(name: str, *words: str) -> all_suites.Part:
    return all_suites.part(name, all_suites.options(list(words)))


def test_every_suite_gets_its_edits() -> None:
    made = {name: part(name, "--methods", "uce", "erasepro:x") for name in all_suites.SUITES}
    count = {name: [len(entry.targets) for entry in one.entries] for name, one in made.items()}
    assert count["emoji/multi-10"] == [10] * 3 and count["emoji/multi-100"] == [100] * 3
    assert all(count[f"emoji/{name}"] == [1] * 4 for name in ("object", "style", "person", "unsafe"))
    first = {name: one.entries[0].targets[0] for name, one in made.items()}
    assert (first["emoji/object"], first["emoji/style"], first["emoji/unsafe"]) == ("cat", "ink style", "bomb")
    assert first["emoji/person"] == "clown", "so one model without cat, bomb, clown and ink stands in every suite of one"
    for one in made.values():
        for entry in one.entries:
            assert entry.anchor == tuple(one.suite.anchor(target) for target in entry.targets) and entry.retain == ()
    assert set(made["emoji/object"].labels.values()) == {"uce", "erasepro:x"}
    assert set(made["emoji/multi-10"].labels.values()) == {"uce", "erasepro:x", "erasepro:crowd:captions=emoji"}


def test_retain_others_is_everything_but_the_targets() -> None:
    ten = part("emoji/multi-10", "--retain", "others").entries[0]
    assert set(ten.retain) == set(names()) - set(ten.targets)
    style = part("emoji/style", "--retain", "others", "--limit-targets", "1").entries[0]
    assert len(style.retain) == 4 and "ink style" not in style.retain


def test_models_that_never_knew_stand_where_their_concept_goes_alone(tmp_path) -> None:
    never = ["--never", f"cat={tmp_path}", f"ink style={tmp_path}"]
    assert part("emoji/object", *never).never == (f"cat={tmp_path}",)
    assert part("emoji/style", *never).never == (f"ink style={tmp_path}",)
    assert part("emoji/person", *never).never == part("emoji/multi-10", *never).never == ()
    with pytest.raises(UsageError, match="CONCEPT=FOLDER"):
        part("emoji/object", "--never", str(tmp_path))
    all_suites.check_never([part("emoji/object", *never), part("emoji/style", *never)], never[1:])
    with pytest.raises(UsageError, match=r"erases 'cta' alone.* cat"):
        all_suites.main(["--suites", "emoji/object", "--estimate", "--never", f"cta={tmp_path}"])


def test_the_estimate_counts_every_arm(tmp_path, capsys) -> None:
    one = part("emoji/object", "--limit-targets", "1", "--methods", "uce", "erasepro", "--never", f"cat={tmp_path}")
    each = sum(len(prompt.seeds) for prompt in one.suite.prompts(["cat"]))
    assert all_suites.images(one, "random") == (1 + 2 * 2 + 1) * each
    assert all_suites.images(one, "none") == (1 + 2 + 1) * each
    (tmp_path / "without.json").write_text('{"concepts": ["cat"], "styles": ["ink"]}')
    assert all_suites.images(one, "none") < (1 + 2 + 1) * each, "what else it never knew it is not asked"
    words = ["--suites", "emoji/object", "--limit-targets", "1", "--estimate", "--out", str(tmp_path / "out")]
    all_suites.main([*words, "--never"])
    shown = capsys.readouterr().out
    assert f"{5 * each} images in all" in shown and "min at" in shown and not (tmp_path / "out").exists()
    all_suites.main(words)
    assert int(capsys.readouterr().out.split(" images in all")[0].split()[-1]) > 5 * each, "with the shipped emoji-never"


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """A tiny suite, judges by rule, and the prompts that were drawn."""
    log: list[str] = []

    def draw(pipe, prompts, *given, **options):
        log.extend(prompts)
        return fakes.draw(pipe, prompts, *given, **options)

    for place in (suites, all_suites):
        monkeypatch.setattr(place, "load_suite", lambda name, *, prompts=None: fakes.suite(name))
    monkeypatch.setattr(judges, "get", fakes.get)
    monkeypatch.setattr(drawing, "draw", draw)
    return log


def test_one_table_and_a_second_run_draws_nothing(drawn, sd1_folder, tmp_path, monkeypatch, capsys) -> None:
    real = arms.load_edits

    def load_edits(plan, *given, **options):
        if plan.edits[0].method == "erasepro":
            raise InfeasibleError("no weight can serve both")
        return real(plan, *given, **options)

    monkeypatch.setattr(arms, "load_edits", load_edits)
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs/all_suites.md").read_text())
    words = ["--suites", "tiny", "--limit-targets", "1", "--model", str(sd1_folder), "--jobs", "1", "--docs",
             "--page", str(page), "--out", str(tmp_path / "out")]  # fmt: skip
    all_suites.main(words)
    shown = capsys.readouterr().out
    assert len(drawn) == 3 * fakes.COUNT, "the unedited model, UCE and its noise"
    assert shown.index("images in all") < shown.index("| suite |")
    text = page.read_text()
    assert all(f"| tiny | {arm} |" in text for arm in ("unedited", "uce", "noise of uce"))
    assert "erasepro on tiny: no weight can serve both" in text and "| tiny | erasepro |" not in text
    plan = read(tmp_path / "out" / "tiny" / "plan.yaml")
    assert plan.model == str(sd1_folder) and [entry.name for entry in plan.edits] == ["uce-cat"]
    all_suites.main(words)
    assert len(drawn) == 3 * fakes.COUNT and page.read_text() == text


def test_rates_are_pooled_over_a_methods_edits() -> None:
    def metric(arm: str, value: float, n: int, **more) -> dict:
        return {"metric": "efficacy", "arm": arm, "group": None, "target": None, "value": value, "n": n,
                "judge": "rule", **more}  # fmt: skip

    found = {
        "arms": [{"arm": f"edit:uce-{t}", "kind": "edit"} for t in ("cat", "dog")] + [{"arm": "never:cat", "kind": "never"}],
        "metrics": [metric("edit:uce-cat", 1 / 3, 3), metric("edit:uce-dog", 4 / 7, 7), metric("never:cat", 1.0, 5),
                    metric("edit:uce-cat", 0.0, 3, group="plain"), metric("edit:uce-cat", 0.0, 3, judge="second")],
    }  # fmt: skip
    uce, never = all_suites_table.pooled("s", {"uce-cat": "uce", "uce-dog": "uce"}, found)
    low, high = wilson(5, 10)
    assert uce["efficacy"] == {"value": 0.5, "low": low, "high": high, "n": 10} and uce["specificity"] is None
    assert (uce["arm"], never["arm"], never["efficacy"]["value"]) == ("uce", "never knew cat", 1.0)
    assert "| s | uce | 50.0 (23.7–76.3) | – | – | – | – | – |" in all_suites_table.table([uce], [])


def test_the_mean_is_of_the_pooled_rates() -> None:
    counts = {"efficacy": (5, 10), "generality": (8, 10), "specificity": (30, 40)}
    row = {"arm": "edit:a", "group": None, "target": None, "judge": "rule"}
    found = {"arms": [{"arm": "edit:a", "kind": "edit"}],
             "metrics": [{**row, "metric": name, "value": hits / n, "n": n} for name, (hits, n) in counts.items()]}  # fmt: skip
    (pooled,) = all_suites_table.pooled("s", {"a": "uce"}, found)
    mean = pooled["erasebench"]
    assert mean["value"] == pytest.approx(3 / (1 / 0.5 + 1 / 0.8 + 1 / 0.75)) and mean["n"] == 60
    assert 0.4 < mean["low"] < mean["value"] < mean["high"] < 0.85
    assert pooled["fidelity"] is None and pooled["net_erasure"] is None


def test_noise_above_the_unedited_models_interval_is_said() -> None:
    def row(arm: str, hits: int) -> dict:
        rates = dict.fromkeys(all_suites_table.COLUMNS, all_suites_table.rate(hits, 100))
        return {"suite": "s", "arm": arm, **rates, "fidelity": None}

    rows = [row("unedited", 10), row("uce", 90), row("noise of uce", 17), row("noise of erasepro", 18)]
    text = all_suites_table.rewarded(rows)
    assert f"{100 * wilson(10, 100)[1]:.1f}" == "17.4"
    assert "| s | of uce | no | no | no | – | no |" in text
    yes = "**yes**: 18.0, over 17.4"
    assert f"| s | of erasepro | {yes} | {yes} | {yes} | – | {yes} |" in text and text.count("| s |") == 2
