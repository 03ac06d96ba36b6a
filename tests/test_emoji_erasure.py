"""The pictures of single erasures: which rows belong to what, what is drawn again, and that each counts once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import emoji_erasure  # noqa: E402
import emoji_rows  # noqa: E402
import erasepro_knobs  # noqa: E402
import knobs_pictures  # noqa: E402
from emoji_prompts import PAIRS, other_prompts  # noqa: E402
from emoji_rows import Recorder  # noqa: E402

import erasekit  # noqa: E402
from erasekit.errors import UsageError  # noqa: E402
from erasekit.evaluation.judges import emoji  # noqa: E402
from erasekit.worlds.emoji.concepts import names  # noqa: E402
from erasekit.worlds.emoji.judge import Verdict  # noqa: E402

PROMPTS = other_prompts("", "", 10)
MADE = {"model_sha256": "m", "sampling": {"steps": 2, "guidance": 3.0}}
Log = list[tuple[str, int]]


@pytest.fixture
def drawn(monkeypatch) -> Log:
    """What was drawn, in order."""
    log: Log = []

    def sample(pipe, part, *, batch, steps, guidance):
        for shot in part:
            log.append((shot.prompt, shot.seed))
            yield shot, np.zeros((64, 64, 3), dtype=np.uint8)

    monkeypatch.setattr(emoji_rows, "sample", sample)
    monkeypatch.setattr(emoji_rows, "BATCH", 4)
    return log


@pytest.fixture
def make(drawn, sd1, tmp_path):
    """A recorder of the same file each time; its judge finds every word of the prompt that it has a label for."""

    def judge(images) -> Verdict:
        texts = [text for text, _ in drawn[-len(images) :]]
        said = torch.tensor([[float(f" {name} " in f" {text} ") for name in names()] for text in texts])
        return Verdict(said, torch.eye(5)[[0] * len(texts)], torch.eye(8)[[0] * len(texts)])

    return lambda: Recorder(tmp_path / "rows.jsonl", sd1, judge, MADE)


def uce(pipe, lamb: float) -> erasekit.Edit:
    return erasekit.erase(pipe, "cat", anchor="dog", method="uce", lamb=lamb)


def test_a_stopped_run_goes_on_behind_its_last_whole_line(make, drawn) -> None:
    make().record("base", PROMPTS[:4], range(1))
    path = make().path
    with path.open("a") as file:
        file.write('{"run": "half a li')
    rows = make().record("base", PROMPTS, range(1))
    assert drawn == [(p.text, 0) for p in PROMPTS] and [row.best for row in rows] == [p.wanted for p in PROMPTS]
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == [p.text for p in PROMPTS]
    assert make().record("base", PROMPTS, range(1)) == rows and len(drawn) == 10


def test_a_run_is_known_by_what_its_edit_changes(sd1) -> None:
    first, second = uce(sd1, 0.5), uce(sd1, 0.6)
    assert emoji_rows.run_of("uce|cat", first) != emoji_rows.run_of("uce|cat", second)
    assert emoji_rows.run_of("uce|cat", first) == emoji_rows.run_of("uce|cat", uce(sd1, 0.5))
    op = SimpleNamespace(describe=lambda: {"config": {"at": 1}}, tensors=dict)
    other = SimpleNamespace(describe=lambda: {"config": {"at": 2}}, tensors=dict)
    digests = {emoji_rows.edit_digest(SimpleNamespace(ops=[one])) for one in (op, other)}
    assert len(digests) == 2, "an op that is code has settings beside its tensors"


def test_rows_of_another_model_judge_or_sampling_are_in_another_file(sd1_folder, tmp_path, monkeypatch) -> None:
    facts = {"judge": "a" * 64, "model": "b" * 64, "steps": 2}

    def path() -> Path:
        return emoji_rows.recorder(str(sd1_folder), tmp_path / "out").path

    monkeypatch.setattr(erasekit, "load", lambda model: None)
    monkeypatch.setattr(emoji, "load", lambda: SimpleNamespace(name="eye", weights_sha256=facts["judge"], world=None))
    monkeypatch.setattr(emoji_rows, "model_sha256", lambda folder: facts["model"])
    monkeypatch.setattr(emoji_rows.models, "defaults", lambda folder: {"steps": facts["steps"], "guidance": 3.0})
    found = [path(), path()]
    for key, value in {"judge": "c" * 64, "model": "d" * 64, "steps": 3}.items():
        facts[key] = value
        found.append(path())
    assert found[0] == found[1] and len(set(found)) == 4 and found[0].match("out/rows-*.jsonl")


def test_a_picture_that_targets_share_counts_once(make, monkeypatch, capsys) -> None:
    real = erasekit.erase
    monkeypatch.setattr(erasekit, "erase", lambda pipe, target, *, anchor, method, **more: real(
        pipe, "cat", anchor="dog", method=method, **more))  # fmt: skip
    words = "--targets 2 --prompts 3 --seeds 2 --base-seeds 1 --others 5 --other-seeds 1"
    args = emoji_erasure.options(words.split())
    found = emoji_erasure.one_method(make(), "uce:lamb=0.6", args)
    shared = {p.text for target in ("cat", "wolf") for p in other_prompts(target, PAIRS[target], 5)}
    count = {name: measure["images"] for name, measure in found["all"].items()}
    assert count["others before"] == len(shared) < 10 and count["others after"] == 10
    assert count["target before"] == 6 and count["target after"] == count["anchor asked for"] == 12
    assert found["all"]["others before"]["hits"] == len(shared) and found["all"]["target after"]["hits"] == 12
    assert list(found["targets"]) == list(found["edits"]) == ["cat", "wolf"] and found["plan"]["base_seeds"] == 1
    assert f"n = {len(shared)}" in capsys.readouterr().out


def test_results_keep_the_other_methods_of_the_same_model(tmp_path) -> None:
    path = tmp_path / "results.json"
    emoji_erasure.save("erasepro", {"all": 1}, MADE, path)
    emoji_erasure.save("uce", {"all": 2}, MADE, path)
    emoji_erasure.save("uce", {"all": 3}, MADE, path)
    assert json.loads(path.read_text()) == {"made": MADE, "methods": {"erasepro": {"all": 1}, "uce": {"all": 3}}}
    emoji_erasure.save("uce", {"all": 4}, MADE | {"model_sha256": "n"}, path)
    assert json.loads(path.read_text())["methods"] == {"uce": {"all": 4}}


@pytest.mark.parametrize("method", ["erasepor", "erasepro:nonesuch", "uce:nonesuch=1"])
def test_a_wrong_method_is_said_before_anything_is_drawn(method, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(emoji_erasure, "recorder", lambda *given: pytest.fail("it began"))
    with pytest.raises(UsageError, match=method.split(":")[-1].split("=")[0]):
        emoji_erasure.main(["--methods", "uce", method, "--out", str(tmp_path)])


@pytest.mark.parametrize("words", ["--targets 0", "--targets 13", "--seeds 0", "--others 0"])
def test_a_count_of_nothing_is_bad_usage(words, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        emoji_erasure.options(words.split())
    assert error.value.code == 2 and words.split()[0] in capsys.readouterr().err


def test_a_gallery_counts_a_shared_picture_once_and_draws_another_edit_anew(make, drawn, monkeypatch) -> None:
    fitted = {lamb: uce(make().pipe, lamb) for lamb in (0.5, 0.6)}
    now = [0.5]
    monkeypatch.setattr(knobs_pictures, "recorder", lambda model, folder: make())
    monkeypatch.setattr(erasekit, "erase", lambda pipe, target, **given: fitted[now[0]])
    setting = SimpleNamespace(name="uce", method="uce", parameters={})

    def judged() -> tuple[dict, int]:
        before = len(drawn)
        return knobs_pictures.Gallery("emoji", Path(), 2).judge([setting]), len(drawn) - before

    found, first = judged()
    base, edited = found["no edit"]["specificity"]["images"], found["uce"]["specificity"]["images"]
    assert base < edited == 2 * knobs_pictures.OTHERS and judged() == (found, 0)
    now[0] = 0.6
    assert judged()[1] == edited + found["uce"]["efficacy"]["images"] < first


def test_knobs_of_other_weights_do_not_stay_beside_new_ones(monkeypatch) -> None:
    new = {"model": "emoji", "model_sha256": "m", "pairs": [["cat", "dog"]], "knobs": {"templates": [1]}}
    old = new | {"knobs": {"solution": [2]}, "pictures": {}}
    assert set(erasepro_knobs.merged(old, new)["knobs"]) == {"templates", "solution"}
    for other in (old | {"model_sha256": "n"}, {k: v for k, v in old.items() if k != "model_sha256"}, {}):
        assert erasepro_knobs.merged(other, new) == new
    monkeypatch.setattr(erasepro_knobs, "_sha256", lambda model: "m")
    args = erasepro_knobs.arguments(["--again", "--images"])
    assert erasepro_knobs.remembered(old, args) == old
    with pytest.raises(UsageError, match="without --again"):
        erasepro_knobs.remembered(old | {"model_sha256": "n"}, args)
