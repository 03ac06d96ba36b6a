"""The benchmark of many concepts: its sets and prompts, its arms, pictures that are never drawn twice, and its page."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import many_concepts  # noqa: E402
import many_fits  # noqa: E402
import many_images  # noqa: E402
import many_page  # noqa: E402
import many_sets  # noqa: E402
from many_fits import Arm  # noqa: E402
from many_sets import Work  # noqa: E402

import erasekit  # noqa: E402
from erasekit import methods  # noqa: E402
from erasekit.errors import InfeasibleError, TrainingError, UsageError  # noqa: E402
from erasekit.evaluation import drawing, judges  # noqa: E402
from erasekit.evaluation.judges import Judgement  # noqa: E402
from erasekit.evaluation.statistics import Outcomes  # noqa: E402
from erasekit.evaluation.suites import Sampling, load_suite  # noqa: E402
from erasekit.methods import _check  # noqa: E402
from erasekit.methods._mace_concept import Concept, Pictures, Source  # noqa: E402
from erasekit.methods.mace import MACEConfig  # noqa: E402
from erasekit.training import loop  # noqa: E402
from erasekit.training.settings import TrainingConfig  # noqa: E402
from erasekit.worlds.emoji.concepts import names  # noqa: E402

TINY = Work(("cat",), ("dog",), ("fox", "dog"))


# -- sets and prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", many_sets.COUNTS)
def test_a_set_and_what_it_retains_are_the_whole_world(count) -> None:
    work = many_sets.work(count)
    assert work.count == len(set(work.targets)) == count
    assert set(work.targets) | set(work.retained) == set(names()) and not set(work.targets) & set(work.retained)
    assert set(work.anchors) <= set(names()) and not any(
        t == a for t, a in zip(work.targets, work.anchors, strict=True)
    )


def test_the_sets_are_the_suites_own() -> None:
    hundred = many_sets.work(100).targets
    assert many_sets.work(1).targets == ("cat",) and many_sets.work(50).targets == hundred[:50]
    assert hundred == load_suite("emoji/multi-100").targets
    assert many_sets.work(10).targets == load_suite("emoji/multi-10").targets
    assert many_sets.work(10).anchors[0] == "fox" and many_sets.work(100).anchors[0] == "dog"


@pytest.mark.parametrize("count", many_sets.COUNTS)
def test_prompts_ask_for_targets_and_for_retained_concepts(count) -> None:
    work = many_sets.work(count)
    asked, others = many_sets.target_prompts(work), many_sets.other_prompts(work)
    assert len(asked) == len(others) == many_sets.IMAGES
    assert {p.wanted for p in asked} == set(work.targets) and {p.wanted for p in others} <= set(work.retained)
    assert all(p.wanted in p.text for p in asked + others)
    assert asked == many_sets.target_prompts(many_sets.work(count))
    held_out = [p for p in asked if "scene with" in p.text or "in front of" in p.text]
    assert 10 < len(held_out) < len(asked)


def test_sentences_differ_in_the_concept_alone() -> None:
    asked, wanted = many_sets.sentences([("cat", "dog"), ("owl", "apple")], 16)
    assert sum("cat" in a for a in asked) == 8
    for a, b in zip(asked, wanted, strict=True):
        swap = ("a cat", "a dog") if "cat" in a else ("an owl", "an apple")
        assert a.replace(*swap) == b != a


# -- arms and features --------------------------------------------------------------------------------------------


def test_presets_for_many_concepts_join_the_methods(monkeypatch) -> None:
    presets = {
        "erasepro": ("balanced", "many", "crowd", "old"),
        "uce": ("art",),
        "speed": ("few", "people-10", "people50", "people", "explicit"),
    }
    fakes = {name: type(name, (), {"presets": dict.fromkeys(given)}) for name, given in presets.items()}
    monkeypatch.setattr(methods, "METHODS", dict.fromkeys(fakes, ""))
    monkeypatch.setattr(methods, "get", fakes.__getitem__)
    always = ["erasepro:balanced", "erasepro:many", "erasepro:crowd:captions=emoji", "uce", "speed"]
    assert many_fits.specs(10) == ["erasepro", *always, "speed:people-10", "speed:people"]
    assert many_fits.specs(50) == ["erasepro", "erasepro:retain_mode=soft", *always, "speed:people50", "speed:people"]


def test_every_spec_can_be_run_and_has_its_own_settings() -> None:
    found = many_fits.specs(100)
    assert {"erasepro:weighted:captions=emoji", "mace-refine:people-100:retain_templates=3"} <= set(found)
    assert not any("people-50" in spec for spec in found) and len(set(found)) == len(found)
    for spec in found:
        words = spec.split(":")
        cls, preset = methods.resolve(":".join(word for word in words if "=" not in word))
        methods.make_config(cls, {**preset.values, **dict(w.split("=") for w in words if "=" in w)})


def test_features_are_those_of_a_plain_loop() -> None:
    pipe = tiny.sd1()
    probe = many_fits.Probe(pipe, TINY)
    edit = erasekit.erase(pipe, "cat", anchor="dog", method="uce")

    def kv(prompt: str) -> list[torch.Tensor]:
        ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            text = pipe.text_encoder(ids).last_hidden_state
            return [m(text) for n, m in pipe.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]

    asked, wanted = many_sets.sentences([("cat", "dog")])
    aim, before = [kv(p) for p in wanted], [kv(p) for p in probe.kept]
    with edit.applied(pipe):
        now, after = [kv(p) for p in asked], [kv(p) for p in probe.kept]

    def ratio(found, true) -> float:
        pairs = [(a, b) for x, y in zip(found, true, strict=True) for a, b in zip(x, y, strict=True)]
        return (sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)).item() ** 0.5

    measured = probe.measure(pipe, edit)
    assert measured == pytest.approx({"gap": ratio(now, aim), "drift": ratio(after, before)}, rel=1e-3)
    unedited = probe.measure(pipe, None)
    assert unedited == {"gap": pytest.approx(ratio([kv(p) for p in asked], aim), rel=1e-3), "drift": 0.0}


def test_arms_of_a_count_with_control_and_refusal(monkeypatch) -> None:
    pipe, real = tiny.sd1(), erasekit.erase

    def erase(*given, method, **options):
        if method == "erasepro":
            raise InfeasibleError("cat cannot go: choose another")
        return real(*given, method=method, **options)

    monkeypatch.setattr(erasekit, "erase", erase)
    found = list(many_fits.arms(pipe, TINY, ["erasepro", "uce"], ["uce"]))
    assert [arm.name for arm in found] == ["no edit", "erasepro", "uce", "noise of uce"]
    rows = [many_fits.record(pipe, TINY, arm, many_fits.Probe(pipe, TINY)) for arm in found]
    assert rows[1]["refused"] == "cat cannot go: choose another" and "gap" not in rows[1]
    assert rows[2]["bytes"] == found[2].edit.nbytes and rows[2]["seconds"] > 0 and rows[3]["bytes"] is None
    for op, noise in zip(sorted(found[2].edit.ops, key=lambda o: o.module), found[3].edit.ops, strict=True):
        norm = op.delta(pipe.unet.get_submodule(op.module).weight).norm().item()
        assert noise.difference.norm().item() == pytest.approx(norm, rel=1e-4)
    assert len({arm.digest for arm in found}) == 3 and found[2].digest == many_fits.fit(pipe, TINY, "uce").digest
    for wrong in ("nonesuch", "uce:nonesuch", "uce:nonesuch=1"):
        with pytest.raises(UsageError, match="nonesuch"):
            many_fits.fit(pipe, TINY, wrong)
    assert many_fits.fit(pipe, TINY, "uce:lamb=0.6").digest != found[2].digest


def test_what_trains_goes_on_where_it_was_and_has_the_rules_parameters(monkeypatch, tmp_path) -> None:
    asked, real = [], erasekit.erase

    def erase(*given, method, checkpoint=None, **parameters):
        asked.append((method, checkpoint, parameters))
        if checkpoint:
            checkpoint.touch()
        if len(asked) == 1:
            raise KeyboardInterrupt
        return real(*given, method="uce", anchor=parameters["anchor"])

    monkeypatch.setattr(erasekit, "erase", erase)
    pipe, spec = tiny.sd1(), "mace:retain_templates=3"
    with pytest.raises(KeyboardInterrupt):
        many_fits.fit(pipe, TINY, spec, states=tmp_path)
    gone_on = many_fits.fit(pipe, TINY, spec, states=tmp_path)
    (state,) = {path for _, path, _ in asked}
    assert state.parent == tmp_path and state.suffix == ".safetensors" and gone_on.seconds is None
    given = asked[0][2]
    assert given["retain_templates"] == "3" and Path(given["template_file"]).name == "object.txt" and given["steps"] == 12
    state.unlink()
    took = many_fits.fit(pipe, TINY, spec, states=tmp_path).seconds
    assert took is not None and many_fits.fit(pipe, TINY, spec, states=tmp_path).seconds == pytest.approx(took, abs=1e-3)
    many_fits.fit(pipe, TINY, "uce", states=tmp_path)
    assert asked[-1][1] is None, "what does not train has no state"
    assert "mace:people-100:retain_templates=3" in many_fits.specs(100) and spec not in many_fits.specs(1)


def test_a_state_is_of_one_request_and_a_training_that_ends_is_no_refusal(monkeypatch, tmp_path) -> None:
    states, sentences = [], tmp_path / "sentences.txt"

    def erase(*given, checkpoint, **parameters):
        states.append(checkpoint.name)
        raise TrainingError("the GPU's memory is full: lower batch")

    def fit(work: Work, more: str = "") -> None:
        with pytest.raises(TrainingError, match="memory is full"):
            many_fits.fit(None, work, f"mace:template_file={sentences}{more}", states=tmp_path)

    monkeypatch.setattr(erasekit, "erase", erase)
    sentences.write_text("a photo of {}\n")
    others = replace(TINY, anchors=("fox",)), replace(TINY, retained=("fox",)), replace(TINY, targets=("owl",))
    fit(TINY)
    fit(TINY, ":recompute=true")  # saves memory and changes nothing: the training goes on
    for work in others:
        fit(work)
    sentences.write_text("a picture of {}\n")
    fit(TINY)
    assert states[0] == states[1] and len(set(states)) == 5 and len({name.rpartition("-")[0] for name in states}) == 1


def _not_finite_pictures() -> None:
    found = Pictures(torch.full((1, 4, 2, 2), math.nan), torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1).bool())
    made = SimpleNamespace(known=None, config=MACEConfig(), source=Source(), target="cat", _drawn=lambda: found)
    Concept.pictures(made)  # pyright: ignore[reportArgumentType]


def _too_large_check() -> None:
    numbers = {"residual": 1e-9, "residual_cast": math.nan, "relative_update": math.inf}
    _check.require_finite({"sites": [{"site": "unet/there", "drift": None, **numbers}]})


def _not_finite_check() -> None:
    numbers = dict.fromkeys(("residual", "residual_cast", "relative_update"), math.nan)
    _check.require_finite({"sites": [{"site": "unet/here", "drift": None, **numbers}]})


@pytest.mark.parametrize(("diverge", "says"), [
    (lambda: loop._require_finite(math.nan, 0.0, 0, TrainingConfig(), None), "the loss is not a number at step 1"),
    (_not_finite_pictures, "the pictures of 'cat' are not finite"), (_not_finite_check, "unet/here gives numbers"),
    (_too_large_check, "unet/there would need a change too large for the weights' dtype"),
])  # fmt: skip
def test_a_method_that_diverges_is_refused_and_the_others_go_on(diverge, says, monkeypatch) -> None:
    real = erasekit.erase

    def erase(*given, method, **options):
        return diverge() if method == "erasepro" else real(*given, method=method, **options)

    pipe = tiny.sd1()
    monkeypatch.setattr(erasekit, "erase", erase)
    _, diverged, uce = many_fits.arms(pipe, TINY, ["erasepro", "uce"], [])
    assert says in diverged.refused and uce.edit is not None


# -- pictures -----------------------------------------------------------------------------------------------------


class Eye:
    """Finds the last word of the prompt; a black picture is none."""

    name, weights_sha256 = "eye", "e" * 64

    def judge(self, images, prompts):
        black = Judgement("invalid", {"reason": "black"})
        seen = [Judgement("ok", {"found": [prompt.split()[-1]]}) for prompt in prompts]
        return [black if image.max() == 0 else one for image, one in zip(images, seen, strict=True)]


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[str, int]]:
    """What was drawn, in order; prompts that name a wolf come out black."""
    log: list[tuple[str, int]] = []

    def draw(pipe, prompts, seeds, sampling, *, encode=True):
        log.extend(zip(prompts, seeds, strict=True))
        return torch.stack([torch.full((4, 4, 3), 0 if "wolf" in p else 9, dtype=torch.uint8) for p in prompts])

    monkeypatch.setattr(drawing, "draw", draw)
    monkeypatch.setattr(judges, "get", lambda spec: Eye())
    monkeypatch.setattr(many_images, "BATCH", 8)
    return log


def album(path: Path, model: str = "m" * 64) -> many_images.Album:
    return many_images.Album(path, model, Sampling(2, 3.0))


def test_a_stopped_run_goes_on_and_draws_nothing_twice(drawn, tmp_path) -> None:
    path, prompts = tmp_path / "rows.jsonl", many_sets.target_prompts(many_sets.work(10), 30)
    next(album(path).draw(None, Arm("no edit"), prompts))  # one batch, then it is stopped
    with path.open("a") as file:
        file.write('{"run": "half a li')
    again = album(path)
    assert len(again.missing(Arm("no edit"), prompts)) == 22
    assert sum(again.draw(None, Arm("no edit"), prompts)) == 22
    assert drawn == [(p.text, i) for i, p in enumerate(prompts)]
    third = album(path)
    assert not third.missing(Arm("no edit"), prompts) and third.read(Arm("no edit"), prompts) == again.read(
        Arm("no edit"), prompts
    )
    assert len(path.read_text().splitlines()) == 30


def test_rows_of_another_model_or_edit_are_not_taken(drawn, tmp_path) -> None:
    path, prompts = tmp_path / "rows.jsonl", many_sets.target_prompts(many_sets.work(1), 8)
    sum(album(path).draw(None, Arm("no edit"), prompts))
    assert not album(path).missing(Arm("no edit"), prompts)
    assert len(album(path, "n" * 64).missing(Arm("no edit"), prompts)) == 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Eye, "weights_sha256", "f" * 64)
        assert len(album(path).missing(Arm("no edit"), prompts)) == 8, "judged by another"
    pipe = tiny.sd1()
    edits = [erasekit.erase(pipe, "cat", anchor="dog", method="uce", lamb=lamb) for lamb in (0.5, 0.6)]
    sum(album(path).draw(pipe, Arm("uce", edits[0]), prompts))
    assert [len(album(path).missing(Arm("uce", edit), prompts)) for edit in edits] == [0, 8]


def test_rates_need_every_image_and_black_is_not_erased(drawn, tmp_path) -> None:
    work = Work(("cat", "wolf"), ("dog", "fox"), ("owl", "key"))
    one, arm = album(tmp_path / "rows.jsonl"), Arm("no edit")
    sum(one.draw(None, arm, many_sets.target_prompts(work)))
    assert many_images.rates(one, work, arm) == {}
    sum(one.draw(None, arm, many_sets.other_prompts(work)))
    found = many_images.rates(one, work, arm)
    asked, others = many_sets.target_prompts(work), many_sets.other_prompts(work)
    gone = [p.wanted == "cat" and p.text.split()[-1] != "cat" for p in asked]
    assert found["efficacy"]["value"] == sum(gone) / 100 and found["efficacy"]["n"] == 100
    shown = [p.text.split()[-1] == p.wanted for p in others]
    assert found["right"]["value"] == sum(shown) / 100
    assert found["specificity"] | {"low": 0, "high": 0} == {"value": 1.0, "n": sum(shown), "low": 0, "high": 0}


def test_h_is_the_harmonic_mean_of_both_rates_between_its_ends() -> None:
    h = many_images.harmonic(Outcomes(80, 100), Outcomes(60, 100))
    assert h["value"] == pytest.approx(2 / (1 / 0.8 + 1 / 0.6)) and h["low"] < h["value"] < h["high"]
    assert many_images.harmonic(Outcomes(0, 100), Outcomes(100, 100))["value"] == 0
    # Simulated: the true H lies inside in at least 95 of 100 cases.
    rng, true, inside = np.random.default_rng(0), 2 / (1 / 0.7 + 1 / 0.9), 0
    for gone, right in zip(rng.binomial(100, 0.7, 400), rng.binomial(100, 0.9, 400), strict=True):
        h = many_images.harmonic(Outcomes(int(gone), 100), Outcomes(int(right), 100))
        inside += h["low"] <= true <= h["high"]
    assert inside >= 380


# -- the page -----------------------------------------------------------------------------------------------------


def row(targets: int, arm: str, value: float | None = None, width: float = 0.05, **more) -> dict:
    rate = {} if value is None else {"value": value, "low": value - width, "high": value + width, "n": 100}
    rates = dict.fromkeys(("efficacy", "specificity", "right", "h"), rate) if rate else {}
    return {"targets": targets, "arm": arm, "refused": "", "gap": 0.5, "drift": 0.25, **rates, **more}


def test_table_has_a_line_an_arm_and_says_why_a_method_refused() -> None:
    refused = {"targets": 10, "arm": "erasepro", "refused": "two anchors for one token"}
    text = many_page.table([row(1, "no edit"), row(1, "uce", 0.9, seconds=0.123, bytes=2048), refused])
    lines = text.splitlines()
    assert (
        lines[3].split("|")[3:5] == [" 0.500 ", " 0.250 "]
        and "90.0 (85.0–95.0)" in lines[3]
        and "| 0.12 | 2 |" in lines[3]
    )
    assert lines[4].startswith("| 10 | erasepro | refused |") and len({line.count("|") for line in lines[:5]}) == 1
    assert lines[-1] == "- erasepro, 10 targets: two anchors for one token"


def test_claims_follow_the_intervals() -> None:
    rows = [row(1, "uce", 0.9), row(100, "uce", 0.3), row(100, "speed", 0.8), row(100, "mace-refine", 0.32),
            row(100, "noise of uce", 0.31)]  # fmt: skip
    collapse, speed, mace, control = many_page.claims(rows).splitlines()
    assert "**shown**" in collapse and "**shown**" in speed and "**not shown" in mace
    assert "not shown for uce at 100, mace-refine at 100" in control and "speed" not in control
    (collapse, *_) = many_page.claims([row(1, "uce", 0.9), row(100, "uce", 0.85)]).splitlines()
    assert "**not shown" in collapse
    assert "not measured" in many_page.claims([row(100, "uce", 0.9)]).splitlines()[0], "one count shows no collapse"
    features = many_page.claims([row(100, "uce"), row(100, "speed", drift=0.1), row(100, "mace-refine", drift=0.3)])
    assert "No pictures" in features and "speed 0.100, uce 0.250, mace-refine 0.300" in features
    assert "less than UCE: speed of speed, mace-refine" in features


def test_without_a_control_or_pictures_nothing_is_shown_of_it() -> None:
    refused = {"targets": 100, "arm": "erasepro", "refused": "two anchors for one token"}
    *_, alone = many_page.claims([row(1, "uce", 0.9), row(100, "uce", 0.8)]).splitlines()
    assert "**not measured**" in alone and "for uce at 1, uce at 100." in alone
    rows = [row(1, "uce"), row(1, "noise of uce"), row(100, "uce", 0.9), row(100, "noise of uce", 0.1), refused]
    *_, some = many_page.claims(rows).splitlines()
    assert "**shown**" in some and "for uce at 1, erasepro at 100." in some
    (*_, most) = many_page.claims([row(100, "uce", 0.9), row(100, "noise of uce", 0.1)]).splitlines()
    assert most.endswith("**shown**.")


def test_rewrite_touches_only_what_stands_between_the_markers(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n")
    many_page.rewrite(page, {"x": "new", "y": "more"})
    wanted = "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb\n<!-- begin y -->\nmore\n<!-- end y -->\n"
    assert page.read_text() == wanted
    with pytest.raises(UsageError, match="begin z"):
        many_page.rewrite(page, {"x": "lost", "z": "?"})
    assert page.read_text() == wanted


def test_rows_of_earlier_runs_on_the_model_and_the_sets_stay_until_measured_again(monkeypatch, tmp_path) -> None:
    path = tmp_path / "results.json"
    many_concepts.save([row(100, "uce"), row(1, "noise of uce"), row(1, "uce")], "s" * 64, path)
    found = many_concepts.save([row(1, "speed"), row(1, "no edit"), row(100, "uce", drift=0.1)], "s" * 64, path)
    order = [(1, "no edit"), (1, "uce"), (1, "speed"), (1, "noise of uce"), (100, "uce")]
    assert [(one["targets"], one["arm"]) for one in found] == order and found[-1]["drift"] == 0.1
    assert many_concepts.earlier(path, "s" * 64) == found and many_concepts.earlier(path, "t" * 64) == []
    monkeypatch.setattr(many_sets, "work", lambda count: replace(TINY, anchors=("fox",)))
    monkeypatch.setattr(many_concepts, "works_sha256", many_sets.works_sha256.__wrapped__)
    assert many_concepts.earlier(path, "s" * 64) == [], "of other anchors"


def test_rows_of_another_layout_or_model_are_put_aside_before_they_are_replaced(tmp_path, capsys) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"model_sha256": "s" * 64, "rows": [row(1, "uce")]}))  # no sets yet
    for sha256 in ("s" * 64, "s" * 64, "t" * 64):
        many_concepts.save([row(1, "speed")], sha256, path)
    aside = [json.loads(one.read_text()) for one in tmp_path.glob("results-*.json")]
    assert sorted(one["rows"][0]["arm"] for one in aside) == ["speed", "uce"] and capsys.readouterr().out.count("kept as") == 2


def test_the_shipped_page_has_the_markers_and_the_command_fills_them(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs/many_concepts.md").read_text())
    args = many_concepts.options(["--docs", "--page", str(page), "--out", str(tmp_path)])
    many_concepts.finish([row(100, "uce"), row(100, "speed", drift=0.1)], "s" * 64, args)
    assert "| 100 | speed | 0.500 | 0.100 |" in page.read_text() and many_page.PUBLISHED in page.read_text()
    assert json.loads((tmp_path / "results.json").read_text())["model_sha256"] == "s" * 64
