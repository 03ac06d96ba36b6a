"""ErasePro, MACE, TRCE and RealEra give on tiny shapes what their textbook forms give, and not what others would."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import closed_form_page  # noqa: E402
import comparing_erasepro  # noqa: E402
import comparing_priors  # noqa: E402
import shapes  # noqa: E402
import textbook  # noqa: E402
import textbook_erasepro  # noqa: E402
import textbook_mace  # noqa: E402
import torch  # noqa: E402
from beside import spent  # noqa: E402
from comparing import COMPARE  # noqa: E402
from tasks import TASKS, bars, basis  # noqa: E402

from erasekit.methods._shells import place  # noqa: E402
from erasekit.methods._templates import shared_rows  # noqa: E402

NEW = ("erasepro", "erasepro100", "mace", "trce", "realera")
BOUND = 1e-6
FEWER = {"targets": ("baba",), "retain": ("foko",)}
"""So much of MACE's 30 sentences each is enough to be told apart."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = shapes.folder_of(tmp_path_factory.mktemp("shapes"), "sd14", True)
    with torch.random.fork_rng(devices=[]):
        shapes.build(place, "sd14-small")
    return place


def compared(task: str, folder: Path, tmp_path: Path, full: bool = True, **changed) -> dict:
    work = replace(TASKS[task].work(True), **changed)
    return COMPARE[TASKS[task].against](work, folder, tmp_path / "edit.safetensors", full)


def apart(*given, **options) -> float:
    return compared(*given, **options)["relative_difference"]["weight"]


@pytest.mark.parametrize("task", NEW)
def test_a_method_equals_its_textbook_form(folder: Path, tmp_path: Path, task: str) -> None:
    found = compared(task, folder, tmp_path)
    assert found["relative_difference"]["weight"] < BOUND
    assert found["relative_difference"]["update"] < 1e-5
    assert found["relative_difference"]["features"] < 1e-5
    assert found["relative_difference"].get("float32", 0.0) < 1e-4
    assert found["textbook"]["matrices"] == [found["ours"]["modules"]] * 2, "every edited matrix was solved"
    kinds = ["encoded_once", "after_encoding"]
    assert [*found["ratios"]] == (["recomputed", *kinds] if task.startswith("erasepro") else kinds)
    assert all(seconds > 0 for seconds in found["textbook_seconds"].values())
    assert basis("after_encoding", found["textbook"]) == "run"


def test_several_targets_and_retained_equal_theirs_too(folder: Path, tmp_path: Path) -> None:
    targets, retain = ("baba", "cebe dibi"), ("foko", "gomo lulu")
    for task in ("trce", "realera"):
        assert apart(task, folder, tmp_path, targets=targets, retain=retain, anchor="hima") < BOUND, task


# -- other formulas are told apart ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "module", "name", "changed"),
    [
        ("erasepro", textbook_erasepro, "erasepro", lambda plain: lambda old, x, y, _: plain(old, x, y, 0.05)),
        ("erasepro100", textbook_erasepro, "erasepro", lambda plain: lambda old, x, y, _: plain(old, x, y, 0.05)),
        ("mace", comparing_priors, "mace", lambda plain: lambda *sides, lamb, eps: plain(*sides, lamb=lamb, eps=2 * eps)),
        ("trce", comparing_priors, "trce", lambda plain: lambda *sides, eps: plain(*sides, eps=2 * eps)),
        ("realera", comparing_priors, "realera",
         lambda plain: lambda *sides, lamb, **scales: plain(*sides, lamb=1.01 * lamb, **scales)),
    ],
)  # fmt: skip
def test_a_changed_formula_differs(folder, tmp_path, monkeypatch, task: str, module, name: str, changed) -> None:
    monkeypatch.setattr(module, name, changed(getattr(module, name)))
    fewer = FEWER if task == "mace" else {}
    assert apart(task, folder, tmp_path, full=False, **fewer) > 10 * BOUND


def test_states_that_are_not_recomputed_with_the_edited_weights_differ(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(textbook_erasepro.States, "write", lambda self, weights: None)
    assert apart("erasepro", folder, tmp_path) > 10 * BOUND


@pytest.mark.parametrize("wrong", ["pairs", "kept"])
def test_mace_with_one_prompt_less_differs(folder, tmp_path, monkeypatch, wrong: str) -> None:
    plain = comparing_priors.mace

    def without(old, pairs, kept, **options):
        pairs, kept = list(pairs), list(kept)
        (pairs if wrong == "pairs" else kept).pop()
        return plain(old, pairs, kept, **options)

    monkeypatch.setattr(comparing_priors, "mace", without)
    assert apart("mace", folder, tmp_path, full=False, **FEWER) > 10 * BOUND


def test_other_draws_differ(folder, tmp_path, monkeypatch) -> None:
    plain = torch.Generator.manual_seed
    monkeypatch.setattr(comparing_priors.torch, "Generator", lambda: _Seeded(plain))
    assert apart("realera", folder, tmp_path, full=False) > 10 * BOUND


class _Seeded:
    """A generator that is seeded otherwise than it is told, but for erasekit's own call, the first."""

    calls = 0

    def __init__(self, plain) -> None:
        self.plain, self.generator = plain, torch._C.Generator()

    def manual_seed(self, seed: int):
        type(self).calls += 1
        return self.plain(self.generator, seed + (type(self).calls > 1))


# -- pieces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "g", "phrase"),
    [
        ([1, 5, 6, 7, 2], [1, 5, 9, 7, 2], [6]),
        ([1, 5, 6, 8, 7, 2], [1, 5, 7, 2], [6, 8]),
        ([1, 6, 2], [1, 2], [6]),
        ([1, 6, 2], [1, 4, 3, 3, 2], [6]),
        ([1, 5, 6, 7, 2], [1, 5, 6, 7, 2], [6]),
    ],
)
def test_mace_faces_the_rows_that_the_method_faces(f: list[int], g: list[int], phrase: list[int]) -> None:
    own = {i for i, token in enumerate(f) if token in phrase}
    assert textbook_mace.shared(f, g, phrase, 9) == shared_rows(f, g, length=9, phrase=own)


@pytest.mark.parametrize("longer", [True, False])
def test_a_point_around_a_concept_is_where_the_formula_says(longer: bool) -> None:
    from textbook_realera import placed

    generator = torch.Generator().manual_seed(0)
    e, direction = (torch.randn(24, dtype=torch.float64, generator=generator) for _ in range(2))
    point = placed(e, direction, 0.9, 0.5, longer)
    assert float(point @ e / (point.norm() * e.norm())) == pytest.approx(0.9, abs=1e-12)
    assert float((point - e).norm() / e.norm()) == pytest.approx(0.5, abs=1e-12)
    s, r = torch.tensor([0.9], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    assert torch.allclose(place(e, direction[:, None], s, r, torch.tensor([longer]))[:, 0], point, rtol=1e-12)


def test_a_level_is_computed_from_the_tokens_and_no_further(folder: Path) -> None:
    states, passed = textbook_erasepro.States(folder), []
    for k, layer in enumerate(states.layers):
        layer.mlp.register_forward_hook(lambda *_, k=k: passed.append(k))
    whole = states.levels("baba dede")
    assert len(whole) == states.depth + 1 == 3 and passed == [0, 1]
    for level in range(3):
        passed.clear()
        assert torch.equal(states.levels("baba dede", level)[level], whole[level]) and passed == [*range(level)]


# -- a part for the whole ---------------------------------------------------------------------------------------


def test_a_part_of_erasepro_stands_for_its_loop(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(comparing_erasepro, "FEW", 1)
    found = compared("erasepro100", folder, tmp_path, full=False)
    taken = found["textbook"]
    assert found["relative_difference"]["weight"] < BOUND
    assert {basis(kind, taken) for kind in found["ratios"]} == {"computed"}
    solved, matrices = taken["matrices"]
    assert solved < matrices == found["ours"]["modules"]
    # Two targets at 3 levels, 0, 1 and 2 layers deep of 2, and one anchor: four passes, where once are three prompts.
    assert taken["restarts"] == pytest.approx(taken["encode"] * 4 / 3, abs=2e-3)
    plain = comparing_erasepro.carried
    monkeypatch.setattr(comparing_erasepro, "carried", lambda *given: plain(*given[:-1], 0.05))
    assert apart("erasepro100", folder, tmp_path, full=False) > 10 * BOUND


def test_a_part_of_maces_prompts_stands_for_all(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(comparing_priors, "HELD", 10)
    monkeypatch.setattr(comparing_priors, "SAMPLE", 5)
    found = compared("mace", folder, tmp_path, **FEWER)
    assert found["relative_difference"]["weight"] < BOUND
    assert found["textbook"]["sums"] == [10, 30 + 24 + 3]  # a retained one in three sentences
    assert basis("after_encoding", found["textbook"]) == basis("encoded_once", found["textbook"]) == "computed"


def test_the_time_of_all_prompts_is_that_of_some_and_of_their_number(monkeypatch) -> None:
    monkeypatch.setattr(textbook, "timed", lambda solve, counts: (solve("m"), {}))

    def solve(name: str, pairs: list, kept: list) -> float:
        return 7.0 + 2.0 * len(pairs) + 3.0 * len(kept)

    assert spent(solve, ([0] * 4, [0] * 6), (400, 9000), {"m": 1}) == 7 + 800 + 27_000
    assert spent(solve, ([0] * 4, [0] * 6), (4, 6), {"m": 1}) == 7 + 8 + 18


# -- bars and page ----------------------------------------------------------------------------------------------


def test_only_the_difference_has_a_bar_where_the_issue_names_no_ratio() -> None:
    ours, taken = {"seconds": 1.0, "peak_rss_mb": 900, "residual": 0.0}, {"prompts": [2, 2], "matrices": [68, 68]}
    run = {"ours": ours, "textbook": taken, "ratios": {"encoded_once": 2.0}, "relative_difference": {"weight": 1e-7}}
    found = [bar["what"] for bar in bars({"sd14": dict.fromkeys(NEW, run)})]
    assert not [what for what in found if "times faster" in what]
    assert [what for what in found if "difference" in what] == [f"{task}: relative difference" for task in NEW]
    old = bars({"sd14": {"trce": {"ours": ours}}})
    assert [bar["what"] for bar in old] == ["trce: peak MB"], "results from before the comparison"


def test_the_page_says_what_recomputed_is_made_of(folder: Path, tmp_path: Path) -> None:
    run = compared("erasepro", folder, tmp_path)
    found = {"results": {"sd14": {"erasepro": run}}}
    said = closed_form_page.report(found)
    assert "| x `recomputed` | x `encoded_once` |" in said and "x `as_released`" not in said
    assert "`recomputed` of `erasepro` was run" in said and "at each of 3 levels" in said
    run["textbook"]["looped"] = False
    assert "`recomputed` of `erasepro` was not run" in closed_form_page.report(found)
